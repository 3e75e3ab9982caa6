"""The socket that a gateway listens on."""

from __future__ import annotations

import socket

from server.settings import SettingsError

BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """Listen on an IPv4 or IPv6 address or a host name; port 0 takes a free one.

    Raises:
        SettingsError: that cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"Cannot listen on {host} port {port}: {error.strerror}. "
            "Choose another with --host and --port, or MOCHI_HOST and MOCHI_PORT."
        ) from None
