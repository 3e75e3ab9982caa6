"""The socket that a gateway listens on."""

from __future__ import annotations

import socket

from server.errors import SettingsError

BACKLOG = 2048
PROBE_OPTIONS = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""A client whose link is cut sends no FIN. After 60 s without a sign of life, the kernel ends its
connection, and its blocking call is cancelled."""
RECEIVE_BYTES = 16 << 10
"""The kernel's buffer for each connection, which it doubles. A body waits there, and in the client,
until its key is known, and only the first read of it in our memory."""
HEAD_SECONDS = 10.0
"""From the opening of a connection, or the first byte after a response, to the last header. TLS has
as long for its handshake."""
INHERITED = "--listen-fd"
"""The argument that gives a gateway the number of a socket that listens already."""


def listen(host: str, port: int) -> socket.socket:
    """Listen on an IPv4 or IPv6 address, or a name of an IPv4 one; port 0 takes a free one.

    `::` is all addresses of both kinds, as of most servers.

    Raises:
        SettingsError: that cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    is_dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=is_dual
        )
    except (OSError, UnicodeError) as error:
        why, _, _ = str(getattr(error, "strerror", None) or error).partition(" (while attempting")
        raise SettingsError(
            f"Cannot listen on {host} port {port}: {why}. "
            "Choose another with --host and --port, or MOCHI_HOST and MOCHI_PORT."
        ) from None
    _set_options(listener)
    return listener


def url_of(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def own_address() -> str:
    """The address at which other machines reach this one; its name where it has no route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # finds the route, and sends nothing
        except OSError:
            return socket.gethostname()
        return str(probe.getsockname()[0])


def inherited(arguments: list[str]) -> socket.socket | None:
    """The socket that the parent opened for this process, if it did."""
    if INHERITED not in arguments:
        return None
    return socket.socket(fileno=int(arguments[arguments.index(INHERITED) + 1]))


def _set_options(listener: socket.socket) -> None:
    """Accepted sockets inherit these options."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in PROBE_OPTIONS.items():
        if hasattr(socket, name):  # macOS lacks one
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
