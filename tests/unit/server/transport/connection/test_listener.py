from __future__ import annotations

import socket

import pytest

from server.errors import SettingsError
from server.transport.connection.listener import listen


def test_a_client_that_has_vanished_is_noticed_within_a_minute() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, interval, count = (
                accepted.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
    assert idle + interval * count <= 60


def test_a_taken_port_is_named_without_the_terms_of_a_library() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        said = f"Cannot listen on 127.0.0.1 port {port}: Address already in use. Choose another"
        with pytest.raises(SettingsError, match=said):
            listen("127.0.0.1", port)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="a machine without IPv6")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_unspecified_address_of_ipv6_is_that_of_ipv4_too(address: str) -> None:
    with listen("::", 0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection((address, port), timeout=5):
            pass
