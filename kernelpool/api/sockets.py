"""WebSockets that are open: who wants to leave tells them, and they say goodbye to their clients."""

from __future__ import annotations

import asyncio
from typing import Protocol

RESTARTS = 1012
"""Not 1001: JupyterLab takes going away as the end, and stays disconnected when the gateway is back."""


class Socket(Protocol):
    """As Tornado's WebSocketHandler."""

    def close(self, code: int | None = None, reason: str | None = None) -> None: ...


class OpenSockets:
    """A handler adds itself in `open` and discards itself in `on_close`."""

    def __init__(self) -> None:
        self._open: set[Socket] = set()
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._closing = False

    def __len__(self) -> int:
        return len(self._open)

    def add(self, socket: Socket) -> None:
        self._open.add(socket)
        self._nobody.clear()
        if self._closing:
            socket.close(RESTARTS, "the gateway is stopping")

    def discard(self, socket: Socket) -> None:
        self._open.discard(socket)
        if not self._open:
            self._nobody.set()

    async def close_all(self, timeout: float) -> bool:
        """Tells each client that the gateway restarts, and waits for them to answer it. Whether all did."""
        self._closing = True
        for socket in list(self._open):
            socket.close(RESTARTS, "the gateway is stopping")
        try:
            await asyncio.wait_for(self._nobody.wait(), timeout)
        except TimeoutError:
            return False
        return True
