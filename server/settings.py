"""Settings of the gateway, on top of those of workers, and `load_settings` for all of them."""

from __future__ import annotations

import difflib
import os
import re
import sys
from decimal import Decimal
from ipaddress import ip_network
from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from models.request.catalogue import CATALOGUE, FAST_MOCHI
from models.settings import ENV_PREFIX, PathOrName
from server.errors import SettingsError
from server.webhooks.address_rules import Guard
from worker.billing import Tariff
from worker.settings import WorkerSettings

CLIENT_VARIABLES = frozenset({"MOCHI_URL", "MOCHI_API_KEY"})
"""Read by `mochi-server generate`; no settings of a server."""
DEAREST = tuple(
    kind.model_validate({"prompt": "any"} | {name: kind.most(name) for name in ("frames", "steps")})
    for kind in (model.parameters for model in CATALOGUE.values())
)
"""The most expensive request of each model."""
_PRICES = ("price_base", "price_frame_step", "price_gpu_second", "price_most_gpu_seconds")
MOST_CREDITS = 1_000_000
"""Most that one request may cost. Larger amounts would lose precision in the broker's Lua."""
_SERVICE_LINK = re.compile(
    rf"""{ENV_PREFIX}(\w+_)?(
        SERVICE_HOST=[0-9a-f.:]+ | SERVICE_PORT(_\w+)?=\d+ | PORT=(tcp|udp|sctp)://.* |
        PORT_\d+_(TCP|UDP|SCTP)(=(tcp|udp|sctp)://.* | _PROTO=(tcp|udp|sctp) | _PORT=\d+ |
            _ADDR=[0-9a-f.:]+)
    )""",
    re.VERBOSE,
)
"""Variables that Kubernetes sets in a pod for each Service, here for those named mochi or mochi-…

https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
"""
_ORIGIN = re.compile(
    r"(http(?!.*:80$)|https(?!.*:443$))://([a-z0-9_.-]+|\[[0-9a-f:]+\])(:(\d{1,5}|\*))?"
)
"""As browsers send it; `*` in place of the port is every one."""
_FACTOR = re.compile(r"(1000|\d{1,3})(\.\d{1,6})?")
LOCAL_ORIGINS = ("http://localhost:*", "http://127.0.0.1:*")
SECRET = frozenset({"redis_url"})
"""Settings that may hold a password: error messages leave their values out."""


def _credits(description: str) -> Any:  # noqa: ANN401 (as pydantic's Field)
    return Field(default=Decimal(0), ge=0, le=1_000_000, decimal_places=6, description=description)


class ServerSettings(WorkerSettings):
    """Where the gateway listens, what it accepts and what it charges."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on; `::` is all IPv6 and IPv4 addresses.",
    )
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one."
    )
    public_url: str = Field(
        default="",
        pattern=r"^(https?://[^/?#\s]+(/[\w.~%-]+)*/?)?$",
        description=(
            "What links in responses begin with, like https://videos.example or "
            "https://example.com/mochi; empty: scheme and host of the request."
        ),
    )
    keys_file: PathOrName = Field(
        default="",
        description="API keys in TOML, applied at start-up; see `mochi-server keys apply`.",
    )
    tls_cert: PathOrName = Field(
        default="",
        description="PEM certificate with its chain; the gateway then serves HTTPS only.",
    )
    tls_key: PathOrName = Field(
        default="",
        validate_default=True,
        description="PEM private key of the certificate, without a passphrase.",
    )
    trusted_proxies: str = Field(
        default="",
        description=(
            "Proxies whose X-Forwarded-For and X-Forwarded-Proto headers are trusted: addresses or "
            "networks, comma-separated, like 10.0.0.7,fd00::/8."
        ),
    )
    cors_origins: str = Field(
        default="",
        description=(
            "Origins whose pages may call this server from a browser, comma-separated, like "
            "https://app.example; * is every one, and http://localhost:* every port. Empty: none; "
            "with mock weights, those of this machine."
        ),
    )
    webhook_allow: str = Field(
        default="",
        description=(
            "Internal hosts that webhooks may reach: names, addresses or networks, "
            "comma-separated, like hooks.internal,10.1.0.0/16."
        ),
    )
    docs: bool = Field(
        default=True,
        description=(
            "Serve /docs, /openapi.json, /version and the page at / without a key. When false, "
            "/version needs a key, and the others are not there."
        ),
    )
    metrics_public: bool = Field(
        default=False,
        description="Serve /metrics without a key; otherwise it needs the scope `admin`.",
    )
    body_bytes: int = Field(default=131_072, ge=1024, description="Largest request body in bytes.")
    v1_seconds: float = Field(
        default=600, gt=0, description="How long a blocking call waits before it returns 504."
    )
    wait_for_worker: bool = Field(
        default=False,
        description=(
            "Let blocking calls wait while no worker is alive, as when workers scale to zero; "
            "otherwise they get 502. `/readyz` then answers 200 without a worker, too."
        ),
    )
    cancel_on_disconnect: bool = Field(
        default=True,
        description=(
            "Cancel a blocking call whose client hangs up, unless it has an Idempotency-Key; "
            "otherwise the request runs on and can be fetched later."
        ),
    )
    most_waiting: int = Field(
        default=10_000,
        ge=1,
        description="Longest queue; a full one returns 429, except to a key that has none waiting.",
    )
    history_days: int = Field(
        default=90,
        ge=0,
        le=3650,
        description=(
            "How long the history of a key lists a request after its end, without the video; "
            "at most 10,000 of each key; 0 is off."
        ),
    )
    history_prompts: bool = Field(
        default=False,
        description=(
            "Keep the first 500 characters of prompts in the history, too; otherwise prompts live "
            "for the hour only. A row has 270 bytes, and with prompts up to 4 kB."
        ),
    )
    price_base: Decimal = _credits("Credits for each request.")
    price_frame_step: Decimal = _credits("Credits for each denoising step of each frame.")
    price_gpu_second: Decimal = _credits("Credits for each GPU second of the successful run.")
    price_most_gpu_seconds: int = Field(
        default=600,
        ge=1,
        le=1_000_000,
        description="Most GPU seconds charged for a request; a submit reserves this many.",
    )
    price_factors: str = Field(
        default="",
        validate_default=True,
        description=(
            "Factors by which the prices of models are multiplied, comma-separated, like "
            f"{FAST_MOCHI.slug}=0.3; 1 for a model without one."
        ),
    )
    cache: bool = Field(
        default=False,
        description=(
            "Result cache: complete a request at once while the video of an equal one is kept, and "
            "make one run of equal requests that wait at the same time."
        ),
    )
    cache_price: Decimal = Field(
        default=Decimal(0),
        ge=0,
        le=1,
        decimal_places=6,
        description="Share of the usual price that such a request is charged, from 0 (free) to 1.",
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Workers that `mochi-server up` or `mochi-server worker` starts, one GPU each, "
        "or one group of MOCHI_GPUS_PER_VIDEO, from cuda:0 on.",
    )

    @property
    def tariff(self) -> Tariff:
        """The price list."""
        return Tariff(
            self.price_base,
            self.price_frame_step,
            self.price_gpu_second,
            self.price_most_gpu_seconds,
            _factors(self.price_factors),
            self.cache_price,
        )

    @property
    def origins(self) -> tuple[str, ...]:
        """Whose pages may call; see `cors_origins`."""
        given = tuple(origin.strip() for origin in self.cors_origins.split(",") if origin.strip())
        return given or (LOCAL_ORIGINS if self.is_mock else ())

    @property
    def scheme(self) -> str:
        """The scheme that the gateway itself serves."""
        return "https" if self.tls_cert else "http"

    @field_validator("public_url")
    @classmethod
    def _without_slash(cls, url: str) -> str:
        return url.rstrip("/")

    @field_validator("tls_key")
    @classmethod
    def _goes_with_certificate(cls, key: str, info: ValidationInfo) -> str:
        if bool(key) != bool(info.data.get("tls_cert")):
            raise PydanticCustomError(
                "tls_key", "Set both MOCHI_TLS_CERT and MOCHI_TLS_KEY, or neither"
            )
        return key

    @field_validator("price_factors")
    @classmethod
    def _limits_price(cls, factors: str, info: ValidationInfo) -> str:
        by_model = _factors(factors)
        if not set(_PRICES) <= info.data.keys():
            return factors  # one of them is invalid, and the error will name it
        base, frame_step, gpu_second, most_seconds = (info.data[name] for name in _PRICES)
        tariff = Tariff(base, frame_step, gpu_second, most_seconds, by_model)
        dearest = max((tariff.price(params) for params in DEAREST), key=lambda price: price.most)
        if dearest.most > MOST_CREDITS:
            raise PydanticCustomError(
                "price",
                "The most expensive request would cost {dearest} credits; the limit is {most}. "
                "Lower one of the MOCHI_PRICE_ variables",
                {"dearest": f"{dearest.most:,f}", "most": f"{MOST_CREDITS:,}"},
            )
        return factors

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, proxies: str) -> str:
        for proxy in filter(None, proxies.split(",")):
            try:
                is_everything = ip_network(proxy.strip()).prefixlen == 0
            except ValueError as error:
                raise PydanticCustomError("network", "{why}", {"why": str(error)}) from None
            if is_everything:
                raise PydanticCustomError(
                    "network",
                    "A network of all addresses would let any client forge these headers",
                )
        return proxies

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: str) -> str:
        for origin in filter(None, map(str.strip, origins.split(","))):
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise PydanticCustomError(
                    "origin",
                    "{origin} is no origin as browsers send it: scheme and host in small letters, "
                    "and the port if it is not the scheme's own; no path",
                    {"origin": origin},
                )
        return origins

    @field_validator("webhook_allow")
    @classmethod
    def _are_hosts(cls, allowed: str) -> str:
        try:
            Guard(allowed)
        except ValueError as error:
            raise PydanticCustomError("hosts", "{why}", {"why": str(error)}) from None
        return allowed


def _factors(text: str) -> dict[str, Decimal]:
    """Raises PydanticCustomError."""
    factors = {}
    for item in filter(None, map(str.strip, text.split(","))):
        slug, _, number = item.partition("=")
        if slug not in CATALOGUE or not _FACTOR.fullmatch(number):
            raise PydanticCustomError(
                "factors",
                "{item} is no factor: write MODEL=FACTOR with one of {all}, and a number from 0 "
                "to 1000 of at most six decimals",
                {"item": item, "all": ", ".join(CATALOGUE)},
            )
        factors[slug] = Decimal(number)
    return factors


def load_settings() -> ServerSettings:
    """Read the `MOCHI_*` variables of this process, those of workers included.

    Those that Kubernetes sets for a Service are removed from the environment.

    Raises:
        SettingsError: a value is invalid or a variable unknown; names the variable and the rule.
    """
    _remove_service_links()
    _refuse_unknown()
    try:
        return ServerSettings()
    except ValidationError as error:
        raise SettingsError(_explain(error.errors(include_url=False)[0])) from None


def _explain(error: ErrorDetails) -> str:
    name = str(error["loc"][0])
    what = ServerSettings.model_fields[name].description
    came = "the value is hidden" if name in SECRET else f"got {str(error['input'])!r}"
    is_form = error["type"] == "string_pattern_mismatch"
    rule = "The form is wrong" if is_form else error["msg"]  # without the regular expression
    return f"{ENV_PREFIX}{name.upper()}: {came}. {rule}. Expected: {what}"


def _remove_service_links() -> None:
    for name, value in [*os.environ.items()]:
        if _SERVICE_LINK.fullmatch(f"{name}={value}"):
            del os.environ[name]
            if name == "MOCHI_PORT":
                sys.stderr.write(
                    f"{name}={value} is not used as a setting: Kubernetes sets it for the Service "
                    "`mochi`. `enableServiceLinks: false` in the pod leaves such variables out.\n"
                )


def _refuse_unknown() -> None:
    known = {ENV_PREFIX + name.upper() for name in ServerSettings.model_fields} | CLIENT_VARIABLES
    for variable in os.environ:
        if variable.startswith(ENV_PREFIX) and variable not in known:
            close = difflib.get_close_matches(variable, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise SettingsError(f"{variable}: there is no such setting.{hint}")
