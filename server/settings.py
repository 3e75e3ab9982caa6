"""Settings of the gateway, on top of the job system's; and the one way to load them all."""

from __future__ import annotations

import difflib
import os
from decimal import Decimal
from ipaddress import ip_network
from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from models.params import GenerateParams
from models.settings import ENV_PREFIX
from server.errors import SettingsError
from server.webhooks.address_rules import Guard
from worker.billing import Tariff
from worker.settings import WorkerSettings

CLIENT_VARIABLES = frozenset({"MOCHI_URL", "MOCHI_API_KEY"})
"""Read by the commands that are clients."""
DEAREST = GenerateParams(prompt="any", frames=160, steps=75)
MOST_CREDITS = 1_000_000
"""That one request may cost."""
SECRET = frozenset({"redis_url"})
"""Settings that may hold a password."""


def _credits(description: str) -> Any:  # noqa: ANN401 (as pydantic's Field)
    return Field(default=Decimal(0), ge=0, le=1_000_000, decimal_places=6, description=description)


class ServerSettings(WorkerSettings):
    """How the gateway listens and what it lets in."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one."
    )
    public_url: str = Field(
        default="",
        pattern=r"^(https?://[^/?#\s]+)?$",
        description=(
            "Scheme and host of the links in answers, like https://videos.example; "
            "empty means those that were called."
        ),
    )
    keys_file: str = Field(
        default="",
        description="API keys in TOML, put in force at the start; see `mochi-server keys apply`.",
    )
    tls_cert: str = Field(
        default="",
        description="Certificate as PEM, with its chain; the gateway speaks HTTPS then, alone.",
    )
    tls_key: str = Field(
        default="",
        validate_default=True,
        description="The private key of the certificate as PEM, without a password.",
    )
    trusted_proxies: str = Field(
        default="",
        description=(
            "Proxies whose X-Forwarded-For and -Proto are believed: addresses or networks, "
            "comma-separated, like 10.0.0.7,fd00::/8."
        ),
    )
    webhook_allow: str = Field(
        default="",
        description=(
            "Hosts inside that webhooks may be sent to all the same: names, addresses or "
            "networks, comma-separated, like hooks.internal,10.1.0.0/16."
        ),
    )
    docs: bool = Field(
        default=True, description="Serve /docs, /openapi.json and the page at /, without a key."
    )
    metrics_public: bool = Field(
        default=False,
        description="Serve /metrics without a key; otherwise to keys with the scope `admin`.",
    )
    body_bytes: int = Field(default=131_072, ge=1024, description="Largest request body.")
    v1_seconds: float = Field(
        default=600, gt=0, description="How long a blocking call waits before it answers 504."
    )
    most_waiting: int = Field(
        default=10_000,
        ge=1,
        description="Requests that may wait; then 429, but for the first one of a key.",
    )
    price_base: Decimal = _credits("Credits that a request costs, whatever it asks for.")
    price_frame_step: Decimal = _credits("Credits for each denoising step of each frame.")
    price_gpu_second: Decimal = _credits("Credits for each second of the run that made the video.")
    price_most_gpu_seconds: int = Field(
        default=600,
        ge=1,
        le=1_000_000,
        validate_default=True,
        description="As many seconds of a run are charged at most, and reserved at the submit.",
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Workers that `mochi-server up` starts; each has a GPU, from cuda:0 on.",
    )

    @property
    def tariff(self) -> Tariff:
        """What requests cost."""
        return Tariff(
            self.price_base,
            self.price_frame_step,
            self.price_gpu_second,
            self.price_most_gpu_seconds,
        )

    @property
    def scheme(self) -> str:
        """What the gateway speaks itself."""
        return "https" if self.tls_cert else "http"

    @field_validator("tls_key")
    @classmethod
    def _goes_with_certificate(cls, key: str, info: ValidationInfo) -> str:
        if bool(key) != bool(info.data.get("tls_cert")):
            raise PydanticCustomError(
                "tls_key", "It goes with MOCHI_TLS_CERT: set both of them, or none"
            )
        return key

    @field_validator("price_most_gpu_seconds")
    @classmethod
    def _is_no_fortune(cls, seconds: int, info: ValidationInfo) -> int:
        """With larger amounts the broker would reckon wrongly."""
        prices = info.data
        if not {"price_base", "price_frame_step", "price_gpu_second"} <= prices.keys():
            return seconds  # one of them is wrong, and will be named
        dearest = Tariff(
            prices["price_base"], prices["price_frame_step"], prices["price_gpu_second"], seconds
        ).price(DEAREST)
        if dearest.most > MOST_CREDITS:
            raise PydanticCustomError(
                "price",
                "The dearest request would cost {dearest} credits, and may cost {most}: lower one "
                "of the MOCHI_PRICE_ variables",
                {"dearest": f"{dearest.most:,f}", "most": f"{MOST_CREDITS:,}"},
            )
        return seconds

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, proxies: str) -> str:
        for proxy in filter(None, proxies.split(",")):
            try:
                is_everybody = ip_network(proxy.strip()).prefixlen == 0
            except ValueError as error:
                raise PydanticCustomError("network", "{why}", {"why": str(error)}) from None
            if is_everybody:
                raise PydanticCustomError("network", "That is everybody, who could forge them")
        return proxies

    @field_validator("webhook_allow")
    @classmethod
    def _are_hosts(cls, allowed: str) -> str:
        try:
            Guard(allowed)
        except ValueError as error:
            raise PydanticCustomError("hosts", "{why}", {"why": str(error)}) from None
        return allowed


def load_settings() -> ServerSettings:
    """Read the `MOCHI_*` variables of this process. A worker's are among them.

    Raises:
        SettingsError: naming the variable, the rule and what came.
    """
    _refuse_unknown()
    try:
        return ServerSettings()
    except ValidationError as error:
        raise SettingsError(_explain(error.errors(include_url=False)[0])) from None


def _explain(error: ErrorDetails) -> str:
    name = str(error["loc"][0])
    what = ServerSettings.model_fields[name].description
    came = "what came may hold a password" if name in SECRET else f"got {error['input']!r}"
    is_form = error["type"] == "string_pattern_mismatch"  # a regular expression helps nobody
    rule = "The form is wrong" if is_form else error["msg"]
    return f"{ENV_PREFIX}{name.upper()}: {came}. {rule}. It is: {what}"


def _refuse_unknown() -> None:
    known = {ENV_PREFIX + name.upper() for name in ServerSettings.model_fields} | CLIENT_VARIABLES
    for variable in os.environ:
        if variable.startswith(ENV_PREFIX) and variable not in known:
            close = difflib.get_close_matches(variable, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise SettingsError(f"{variable}: there is no such setting.{hint}")
