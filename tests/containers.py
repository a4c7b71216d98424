"""Custom containers in memory: each a real server on the Unix sockets that a sandbox of that kind has."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from kernelpool.backends.base import RuntimeMetadata, Sandbox, SandboxSpec, Say, UnixAddress
from kernelpool.backends.container import APP_SOCKET, KNOCK_SOCKET, ContainerSpec, Registry
from tests.fakes import METADATA, FakeBackend, FakeSandbox

Close = Callable[[], Awaitable[None]]
Serve = Callable[[str], Awaitable[Close]]
"""Listens on a path; what it returns makes it stop."""
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]

CONTAINER = {"image": "example/app:1", "target_port": 8080}


def raw(handler: Handler) -> Serve:
    """A container that does with each connection whatever it likes."""

    async def serve(path: str) -> Close:
        writers: set[asyncio.StreamWriter] = set()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.add(writer)
            try:
                with suppress(OSError, asyncio.CancelledError):
                    await handler(reader, writer)
            finally:
                writer.close()
                writers.discard(writer)

        server = await asyncio.start_unix_server(handle, path)

        async def close() -> None:
            server.close()
            await _turns()  # until what was accepted by now is in `writers`
            for writer in list(writers):
                writer.transport.abort()
            while writers:
                await _turns()
            await _turns()  # until their sockets are closed

        return close

    return serve


async def _turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def saying(*pieces: bytes) -> Serve:
    """One that reads the head of a request, says this, and closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    return raw(handle)


def app(make: Callable[[], web.Application]) -> Serve:
    """One that is an application of aiohttp."""

    async def serve(path: str) -> Close:
        runner = web.AppRunner(make(), shutdown_timeout=0)
        await runner.setup()
        await web.UnixSite(runner, path).start()
        return runner.cleanup

    return serve


class FakeContainers(FakeBackend):
    """A backend whose sandboxes run `serve`. They outlive gateways, as those of `FakeBackend` do."""

    def __init__(self, serve: Serve) -> None:
        super().__init__()
        self._serve = serve
        self._folder = Path(tempfile.mkdtemp(prefix="kpc"))
        self._open: dict[str, asyncio.Task[list[Close]]] = {}
        self._stops: list[asyncio.Future[None]] = []
        """Of what died."""
        self.is_listening = asyncio.Event()
        """Whether something is behind the target port."""
        self.is_listening.set()

    async def prepare_container(self, container: ContainerSpec, registry: Registry | None, say: Say) -> RuntimeMetadata:
        return METADATA

    async def create(self, spec: SandboxSpec) -> Sandbox:
        sandbox = await super().create(spec)
        assert isinstance(sandbox, FakeSandbox)
        folder = self._folder / spec.id
        sandbox.address = UnixAddress(str(folder / APP_SOCKET))
        # A pool that closes cancels its starts, anywhere in here: what listens by then is for `aclose` to stop.
        opening = self._open[spec.id] = asyncio.create_task(self._listen(folder))
        await asyncio.shield(opening)
        sandbox.process.dead.add_done_callback(lambda _: self._stops.append(asyncio.ensure_future(self.stop(spec.id))))
        return sandbox

    async def stop(self, id: str) -> None:
        """What listens there stops, whatever the rest of the sandbox does."""
        if (opening := self._open.pop(id, None)) is not None:
            for close in await opening:
                await close()

    async def aclose(self) -> None:
        for id in list(self._open):
            await self.stop(id)
        await asyncio.gather(*self._stops)
        await asyncio.to_thread(shutil.rmtree, self._folder)

    async def _listen(self, folder: Path) -> list[Close]:
        await asyncio.to_thread(folder.mkdir)
        knock = await raw(self._knocked)(str(folder / KNOCK_SOCKET))
        return [await self._serve(str(folder / APP_SOCKET)), knock]

    async def _knocked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_listening.is_set():
            writer.write(b"1")
            await writer.drain()
