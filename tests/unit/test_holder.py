"""The holder of a custom container's network, as a process of its own: what it relays, how it ends, what it costs."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from kernelpool.backends.docker import holder
from kernelpool.backends.docker.context import find_target

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
RUN = """\
import runpy, sys
program = runpy.run_path(sys.argv[1])
program["main"].__globals__.update(FOLDER=sys.argv[2], MOST=8)
program["main"]([sys.argv[3]])
"""


class Holding:
    def __init__(self, folder: Path, process: asyncio.subprocess.Process) -> None:
        self.folder = folder
        self.process = process

    async def connect(self, name: str = "app.sock") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self.folder / name))

    async def listens(self) -> bool:
        """As the gateway finds out: the file is there a moment earlier."""
        try:
            _, writer = await self.connect()
        except OSError:
            return False
        writer.close()
        return True

    def memory(self, kind: str) -> int:
        lines = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{kind}:"))


@asynccontextmanager
async def holding(serve: Handler | None) -> AsyncIterator[Holding]:
    """A holder, whose application is `serve`; with room for 8 connections."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert serve is not None
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await serve(reader, writer)
        finally:
            writer.close()

    place = socket.create_server(("127.0.0.1", 0)) if serve else socket.socket()
    if serve is None:
        place.bind(("127.0.0.1", 0))  # where nobody listens, and nobody else may meanwhile
    port = place.getsockname()[1]
    server = await asyncio.start_server(handle, sock=place) if serve else None
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="kph"))
    argv = [sys.executable, "-I", "-S", "-c", RUN, str(Path(holder.__file__)), str(folder), str(port)]
    process = await asyncio.create_subprocess_exec(*argv)
    try:
        held = Holding(folder, process)
        async with asyncio.timeout(60):
            while not await held.listens():
                await asyncio.sleep(0.02)
        yield held
        assert process.returncode is None
    finally:
        if server is not None:
            server.close()
        place.close()
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await asyncio.to_thread(shutil.rmtree, folder)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def test_bytes_pass_both_ways_whatever_their_number() -> None:
    async with holding(echo) as held:
        reader, writer = await held.connect()
        data = bytes(range(256)) * (1 << 14)
        sending = asyncio.create_task(_send(writer, data))

        assert await reader.readexactly(len(data)) == data
        await sending
        writer.close()


async def test_who_has_said_all_may_still_be_answered() -> None:
    async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"got %d" % len(await reader.read()))
        await writer.drain()

    async with holding(answer_at_the_end) as held:
        reader, writer = await held.connect()
        writer.write(b"x" * 100_000)
        writer.write_eof()

        assert await reader.read() == b"got 100000"
        writer.close()


async def test_callers_who_are_gone_make_room_though_the_application_holds_on() -> None:
    async def hold_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(1))
        await writer.drain()
        await reader.read()
        with suppress(TimeoutError):
            async with asyncio.timeout(120):
                await asyncio.Event().wait()

    async with holding(hold_on) as held, asyncio.timeout(60):
        for _ in range(3 * 8):
            reader, writer = await held.connect()
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            writer.transport.abort()


async def test_nobody_there_is_a_connection_closed_at_once_and_no_knock() -> None:
    async with holding(None) as held:
        reader, writer = await held.connect()
        knocked, knocking = await held.connect("knock.sock")

        assert await reader.read() == b""
        assert await knocked.read() == b""
        writer.close()
        knocking.close()


async def test_a_knock_is_answered_when_somebody_listens() -> None:
    async with holding(echo) as held:
        reader, writer = await held.connect("knock.sock")

        assert await reader.read() == b"1"
        writer.close()


async def test_beyond_its_room_connections_wait_for_others_to_end() -> None:
    async with holding(echo) as held:
        writers = []
        for _ in range(8):
            reader, writer = await held.connect()
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            writers.append(writer)
        late, waiting = await held.connect()
        waiting.write(b"late")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await late.readexactly(4)

        writers[0].close()

        assert await late.readexactly(4) == b"late"
        for writer in (*writers, waiting):
            writer.close()


async def test_who_does_not_read_costs_a_chunk_and_no_more() -> None:
    async with holding(echo) as held:
        before = held.memory("Anonymous")  # its own: what it shares is the less its, the more others share it
        writers = []
        for _ in range(4):
            _, writer = await held.connect()
            writer.write(b"x" * (8 << 20))
            writers.append(writer)
        await asyncio.sleep(1)

        assert held.memory("Anonymous") - before < 4 << 20
        for writer in writers:
            writer.transport.abort()


async def test_it_is_small() -> None:
    async with holding(echo) as held:
        assert held.memory("Pss") < 16 << 20


def test_its_image_has_its_file_and_nothing_secret() -> None:
    assert any("holder" in part for part in find_target("net").parts)


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
