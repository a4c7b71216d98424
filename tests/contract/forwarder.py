"""The machine's engine at a TCP address, as if it were elsewhere. In a thread: who uses it has a loop of his own."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from concurrent.futures import Future

from kernelpool.tasks import Tasks


class Forwarder:
    """From its making to `close`."""

    def __init__(self, engine: str, tls: ssl.SSLContext | None = None) -> None:
        """`engine` is the path of its socket."""
        self._engine = engine
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        listening: Future[int] = Future()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve(listening)])
        self._thread.start()
        self.host = f"tcp://127.0.0.1:{listening.result(timeout=60)}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self, listening: Future[int]) -> None:
        tasks = Tasks("forwarder")

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.spawn(self._forward(reader, writer), "connection")

        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=self._tls)
        listening.set_result(server.sockets[0].getsockname()[1])
        await self._closing.wait()
        server.close()
        await tasks.aclose()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            engine_reader, engine_writer = await asyncio.open_unix_connection(self._engine)
        except OSError:  # it is away
            writer.transport.abort()
            return
        ways = [asyncio.create_task(_pump(reader, engine_writer)), asyncio.create_task(_pump(engine_reader, writer))]
        try:
            await asyncio.wait(ways)
        finally:
            for way in ways:
                way.cancel()
            for each in (writer, engine_writer):
                each.transport.abort()
                with contextlib.suppress(OSError):
                    await each.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(1 << 16):
            writer.write(chunk)
            await writer.drain()
    with contextlib.suppress(OSError):
        if writer.can_write_eof():
            writer.write_eof()
        else:
            writer.close()
