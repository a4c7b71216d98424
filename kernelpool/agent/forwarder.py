"""The forwarder: 127.0.0.1:3128 in a sandbox is the proxy outside, by a Unix socket. It only pipes bytes.

A part of the agent, and a program of its own where there is no agent: `python -I -S forwarder.py <socket>`. It needs
the standard library and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from types import TracebackType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any, Self

PORT = 3128
CONNECTIONS = 64
"""At the same time; more wait unaccepted."""
_CHUNK = 64 << 10


def environment(port: int = PORT) -> dict[str, str]:
    """What makes programs use it: both cases, for nobody agrees on one."""
    url = f"http://127.0.0.1:{port}"
    values = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), url) | {"NO_PROXY": "localhost,127.0.0.1,::1"}
    return values | {name.lower(): value for name, value in values.items()}


class Forwarder:
    """An async context manager that listens while it is entered."""

    def __init__(self, path: str, port: int = PORT) -> None:
        self._path = path
        self._port = port
        self._slots = asyncio.Semaphore(CONNECTIONS)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Raises `OSError`."""
        listener = socket.create_server(("127.0.0.1", self._port), backlog=CONNECTIONS)
        listener.setblocking(False)
        self._keep(self._accept(listener))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                await self._slots.acquire()
                try:
                    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
                except OSError:  # no descriptor is free
                    self._slots.release()
                    await asyncio.sleep(0.5)
                else:
                    self._keep(self._visit(connection))

    async def _visit(self, connection: socket.socket) -> None:
        try:
            with connection:
                reader, writer = await asyncio.open_connection(sock=connection, limit=_CHUNK)
                try:
                    await self._forward(reader, writer)
                finally:
                    writer.close()
                await writer.wait_closed()
        except OSError:
            pass  # either side has left
        finally:
            self._slots.release()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs_reader, theirs = await asyncio.open_unix_connection(self._path, limit=_CHUNK)
        pumps = [asyncio.create_task(_pump(reader, theirs)), asyncio.create_task(_pump(theirs_reader, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
            for pump in pumps:
                if not pump.cancelled():
                    pump.exception()  # seen
            theirs.close()
            with contextlib.suppress(OSError):
                await theirs.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An end of one direction is passed on, and the other goes on."""
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def _main(path: str) -> None:
    async with Forwarder(path):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
