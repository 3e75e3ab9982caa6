from __future__ import annotations

import asyncio

import uvicorn
from starlette.types import Receive, Scope, Send
from typing_extensions import override
from uvicorn.server import ServerState

from server.transport.connection.protocol import GuardedProtocol, _JoinedWrites


class Recorder(asyncio.Transport):
    """Notes the packets that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.packets: list[bytes] = []
        self.closed = False
        self.paused = False

    @override
    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.packets.append(bytes(data))

    @override
    def is_closing(self) -> bool:
        return self.closed

    @override
    def close(self) -> None:
        self.closed = True

    @override
    def can_write_eof(self) -> bool:
        return False

    @override
    def pause_reading(self) -> None:
        self.paused = True

    @override
    def resume_reading(self) -> None:
        self.paused = False


async def joined() -> tuple[_JoinedWrites, Recorder]:
    recorder = Recorder()
    return _JoinedWrites(recorder, asyncio.get_running_loop()), recorder


async def _head_and_body() -> list[bytes]:
    transport, recorder = await joined()
    transport.write(b"head ")
    transport.write(b"body")
    await asyncio.sleep(0)
    return recorder.packets


def test_head_and_body_of_a_response_are_one_packet() -> None:
    assert asyncio.run(_head_and_body()) == [b"head body"]


async def _head_alone() -> list[bytes]:
    transport, recorder = await joined()
    transport.write(b"head")
    await asyncio.sleep(0.01)
    before = list(recorder.packets)
    transport.write(b"event")
    await asyncio.sleep(0.01)
    return [*before, b"|", *recorder.packets]


def test_a_head_whose_body_comes_later_does_not_wait_for_it() -> None:
    assert asyncio.run(_head_alone()) == [b"head", b"|", b"head", b"event"]


async def _closed_after(write: bytes) -> tuple[list[bytes], bool]:
    transport, recorder = await joined()
    transport.write(write)
    transport.close()
    await asyncio.sleep(0)
    return recorder.packets, recorder.closed


def test_a_close_sends_what_was_written_before_it() -> None:
    assert asyncio.run(_closed_after(b"refusal")) == ([b"refusal"], True)


async def _lost_in_between() -> list[bytes]:
    transport, recorder = await joined()
    transport.write(b"head")
    recorder.closed = True
    await asyncio.sleep(0)
    return recorder.packets


def test_nothing_is_written_to_a_connection_that_was_lost_meanwhile() -> None:
    assert asyncio.run(_lost_in_between()) == []


async def _paused_before_and_after_a_key_is_known() -> list[bool]:
    is_known = asyncio.Event()

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        await is_known.wait()
        await receive()

    recorder = Recorder()
    protocol = GuardedProtocol(uvicorn.Config(app, log_config=None), ServerState(), {})
    protocol.connection_made(recorder)
    protocol.data_received(b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 99\r\n\r\n")
    before = recorder.paused
    is_known.set()
    await asyncio.sleep(0.01)
    protocol.connection_lost(None)
    return [before, recorder.paused]


def test_a_body_is_not_read_while_its_key_is_looked_up() -> None:
    assert asyncio.run(_paused_before_and_after_a_key_is_known()) == [True, False]
