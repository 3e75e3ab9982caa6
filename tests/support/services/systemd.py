"""The half of systemd that a service talks to: a datagram socket that keeps what it is told."""

from __future__ import annotations

import socket
from pathlib import Path
from types import TracebackType

WATCHDOG_SECONDS = 0.4


class ServiceManager:
    """Listens to the notifications of services."""

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._path)
        self._socket.setblocking(False)
        self._told: list[str] = []

    def __enter__(self) -> ServiceManager:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    @property
    def environ(self) -> dict[str, str]:
        """What systemd starts a watched service with."""
        return {"NOTIFY_SOCKET": self._path, "WATCHDOG_USEC": f"{WATCHDOG_SECONDS * 1e6:.0f}"}

    def told(self) -> list[str]:
        """Every assignment so far, in order."""
        while True:
            try:
                datagram = self._socket.recv(4096)
            except BlockingIOError:
                return self._told
            self._told += datagram.decode().splitlines()

    def statuses(self) -> list[str]:
        """Each status so far, without repetitions."""
        statuses = [line for line in self.told() if line.startswith("STATUS=")]
        return list(dict.fromkeys(status.partition("=")[2] for status in statuses))

    def beats(self) -> int:
        return self.told().count("WATCHDOG=1")
