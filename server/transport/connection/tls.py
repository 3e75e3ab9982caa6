"""TLS in the gateway itself, where no proxy in front terminates it."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import uvloop
from typing_extensions import override

from server.errors import SettingsError
from server.settings import ServerSettings
from server.transport.connection.listener import HEAD_SECONDS


class Loop(uvloop.Loop):
    """Limits TLS handshake and shutdown to the time for a head; uvicorn has no option for it."""

    @override
    async def create_server(  # type: ignore[override]  # without its overloads
        self, *args: Any, **options: Any
    ) -> asyncio.AbstractServer:
        if options.get("ssl") is not None:  # without TLS these limits are not allowed
            options |= {"ssl_handshake_timeout": HEAD_SECONDS, "ssl_shutdown_timeout": HEAD_SECONDS}
        return await super().create_server(*args, **options)


def tls_context(settings: ServerSettings) -> ssl.SSLContext | None:
    """The TLS context of the settings; None without a certificate.

    Raises:
        SettingsError: a file cannot be used. The text names its variable.
    """
    if not settings.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Only to tell a bad certificate from a bad key: the next call does not.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(settings.tls_cert)
    except OSError as error:
        raise _unusable("tls_cert", settings.tls_cert, error) from None
    try:
        # Without any password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except OSError as error:
        raise _unusable("tls_key", settings.tls_key, error) from None
    return context


def _unusable(name: str, path: str, error: OSError) -> SettingsError:
    what = {
        "tls_cert": "a certificate as PEM, those that lead to its root after it",
        "tls_key": "the private key of that certificate as PEM, without a password",
    }[name]
    why = getattr(error, "reason", error.strerror) or "it cannot be read"  # OpenSSL's, if it is
    return SettingsError(f"MOCHI_{name.upper()}: {path} cannot be used: {why}. Expected {what}.")
