"""A line: many connections over one stream, the real relay at its other end, or one that breaks the rules."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from kernelpool.backends.docker import relay
from kernelpool.backends.docker.line import MOST, SILENCE, Broken, Line
from kernelpool.backends.docker.relay import CHUNK, COUNT, DATA, END, GONE, HEAD, OPEN, OPENED, PING, ROOM, WINDOW
from kernelpool.backends.docker.streams import Stream
from tests.virtual_time import virtual_time

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Caller = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Pipes:
    """What a `Stream` is to a line, of the pipes of a process here."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self.reader, self.writer = process.stdout, process.stdin
        self.said = bytearray()

    async def output(self) -> AsyncIterator[bytes]:
        while piece := await self.reader.read(1 << 16):
            self.said += piece
            yield piece

    def abort(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def aclose(self) -> None:
        self.abort()
        await self.process.wait()


@asynccontextmanager
async def relayed(serve: Serve | None) -> AsyncIterator[Line]:
    """A line to a server on loopback, or to a port at which nobody is."""
    async with contextlib.AsyncExitStack() as stack:
        if serve is not None:
            server = await stack.enter_async_context(await asyncio.start_server(serve, "127.0.0.1", 0))
            port = server.sockets[0].getsockname()[1]
        else:
            held = stack.enter_context(socket.socket())
            held.bind(("127.0.0.1", 0))  # and listens not: nobody else gets it meanwhile
            port = held.getsockname()[1]
        text = Path(relay.__file__).read_text()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", text, str(port)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        line = Line(cast("Stream", Pipes(process)))
        try:
            yield line
        finally:
            await line.aclose()


@asynccontextmanager
async def connected(line: Line) -> AsyncIterator[Caller]:
    """A caller's end of a connection that the line carries."""
    near, far = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=near)
    ours = await asyncio.open_connection(sock=far)

    async def carry() -> None:
        try:
            await line.carry(reader, writer)
        except OSError:
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    carrying = asyncio.create_task(carry())
    try:
        async with asyncio.timeout(30):
            yield ours
    finally:
        ours[1].close()
        with contextlib.suppress(OSError):
            await ours[1].wait_closed()
        async with asyncio.timeout(30):
            await carrying


async def say_it_backwards(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.read())[::-1])
    writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def test_each_side_may_end_first_and_still_be_answered() -> None:
    async with relayed(say_it_backwards) as line, connected(line) as (reader, writer):
        writer.write(b"abc")
        writer.write_eof()

        assert await reader.read() == b"cba"


async def test_many_connections_keep_their_bytes_apart_and_in_order() -> None:
    async def one(line: Line) -> bool:
        sent = os.urandom(700_000)
        async with connected(line) as (reader, writer):
            writer.write(sent)
            got = await reader.readexactly(len(sent))
        return got == sent

    async with relayed(echo) as line:
        assert await asyncio.gather(*(one(line) for _ in range(12))) == [True] * 12


async def test_who_reads_nothing_holds_up_nobody_else_and_its_sender_waits() -> None:
    written = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        first = await reader.read(1)
        with contextlib.suppress(OSError):
            while first == b"f":
                writer.write(bytes(CHUNK))
                await writer.drain()
                written += CHUNK
            writer.write(first)
        writer.close()

    async def until_it_stands_still() -> int:
        before = -1
        while written != before:
            before = written
            await asyncio.sleep(0.3)
        return written

    async with relayed(flood) as line, connected(line) as (_, writer):
        writer.write(b"f")
        async with asyncio.timeout(20):
            while not written:
                await asyncio.sleep(0.01)
            stood = await until_it_stands_still()
        async with connected(line) as (reader, other):
            other.write(b"x")
            assert await reader.read(1) == b"x"

    # What sockets of a machine hold is megabytes; what the line adds to that is its window.
    assert stood < 16 << 20


async def test_it_is_known_whether_anybody_takes_connections() -> None:
    async with relayed(echo) as line:
        assert await line.is_answered()
    async with relayed(None) as line:
        assert not await line.is_answered()
        async with connected(line) as (reader, _):
            assert await reader.read() == b""
        assert not line.is_broken


async def test_a_caller_who_is_gone_is_gone_for_the_agent_too() -> None:
    gone = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(b"hello")
            while await reader.read(100):
                pass
        gone.set()
        writer.close()

    async with relayed(wait) as line:
        async with connected(line) as (reader, writer):
            assert await reader.readexactly(5) == b"hello"
            writer.transport.abort()
        async with asyncio.timeout(30):
            await gone.wait()
        assert repr(line) == "<Line [0 connections]>"


async def test_an_agent_that_ends_nothing_holds_no_connection_whose_caller_is_gone() -> None:
    release = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await release.wait()
        writer.close()

    async with relayed(hold) as line:
        async with connected(line) as (reader, _):
            assert await reader.readexactly(5) == b"hello"
        assert repr(line) == "<Line [0 connections]>"
        release.set()


async def test_one_connection_too_many_is_refused() -> None:
    async with relayed(echo) as line, contextlib.AsyncExitStack() as stack:
        for _ in range(MOST):
            _, writer = await stack.enter_async_context(connected(line))
            writer.write(b"x")
        async with asyncio.timeout(20):
            while str(MOST) not in repr(line):
                await asyncio.sleep(0.01)

        async with connected(line) as (reader, _):
            assert await reader.read() == b""


async def test_a_line_whose_relay_ends_is_broken_and_so_is_what_it_carried() -> None:
    async with relayed(echo) as line, connected(line) as (reader, writer):
        writer.write(b"x")
        assert await reader.read(1) == b"x"

        cast("Any", line)._stream.process.terminate()

        async with asyncio.timeout(30):
            await line.wait_broken()
        assert await reader.read() == b""
        with pytest.raises(Broken):
            await line.is_answered()


# --- a relay that is none


class Said:
    """A stream that says what a test lets it say, and keeps what it hears."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[bytes] = asyncio.Queue()
        self.heard = bytearray()
        self.writer = self

    def write(self, data: bytes) -> None:
        self.heard += data

    async def drain(self) -> None:
        pass

    async def output(self) -> AsyncIterator[bytes]:
        while piece := await self.said.get():
            yield piece

    def abort(self) -> None:
        self.said.put_nowait(b"")

    async def aclose(self) -> None:
        pass


def frame(kind: int, id: int, payload: bytes = b"") -> bytes:
    return HEAD.pack(kind, id, len(payload)) + payload


MUCH = b"".join(frame(DATA, 1, bytes(CHUNK)) for _ in range(WINDOW // CHUNK))
WRONG = {
    "no kind": frame(0, 1),
    "another kind": frame(PING + 1, 1),
    "what only we say": frame(OPEN, 1),
    "nobody has opened it": frame(DATA, 2, b"x"),
    "no data": frame(DATA, 1),
    "too much at once": frame(DATA, 1, bytes(CHUNK + 1)),
    "more than there is room for": MUCH + frame(DATA, 1, b"x"),
    "after its end": frame(END, 1) + frame(DATA, 1, b"x"),
    "an end with a payload": frame(END, 1, b"x"),
    "room for half a number": frame(ROOM, 1, b"xx"),
    "room that it never filled": frame(ROOM, 1, COUNT.pack(1)),
    "a payload to come that is too long": HEAD.pack(PING, 0, 60_000),
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_no_relay_says_ends_the_line(name: str) -> None:
    stream = Said()
    line = Line(cast("Stream", stream))
    asking = asyncio.create_task(line.is_answered())
    await asyncio.sleep(0)
    assert bytes(stream.heard).endswith(frame(OPEN, 1))

    stream.said.put_nowait(WRONG[name])

    async with asyncio.timeout(30):
        await line.wait_broken()
        assert await asking is False
    await line.aclose()


async def test_a_relay_may_speak_in_any_pieces_and_of_what_was_given_up() -> None:
    stream = Said()
    line = Line(cast("Stream", stream))
    asking = asyncio.create_task(line.is_answered())
    await asyncio.sleep(0)

    for byte in frame(PING, 0) + frame(OPENED, 1):
        stream.said.put_nowait(bytes([byte]))

    async with asyncio.timeout(30):
        assert await asking is True
    stream.said.put_nowait(frame(DATA, 1, b"late") + frame(END, 1) + frame(GONE, 1) + frame(PING, 0))
    async with asyncio.timeout(30):
        while not stream.said.empty():
            await asyncio.sleep(0)
    assert not line.is_broken
    await line.aclose()


async def test_a_line_that_says_nothing_any_more_is_broken() -> None:
    with virtual_time():
        stream = Said()
        line = Line(cast("Stream", stream))

        async with asyncio.timeout(SILENCE * 2):
            await line.wait_broken()

        assert bytes(stream.heard).startswith(frame(PING, 0))
        await line.aclose()


async def test_a_line_whose_pings_are_answered_is_not_silent() -> None:
    class Answering(Said):
        def write(self, data: bytes) -> None:
            super().write(data)
            assert data == frame(PING, 0)
            self.said.put_nowait(data)

    with virtual_time():
        line = Line(cast("Stream", Answering()))

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SILENCE * 10):
                await line.wait_broken()

        await line.aclose()


async def test_a_relay_answers_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelpool.backends.docker.line.PING_SECONDS", 0.1)
    answers = frame(PING, 0) * 5
    async with relayed(echo) as line:
        stream = cast("Any", line)._stream
        async with asyncio.timeout(30):
            while len(stream.said) < len(answers):
                await asyncio.sleep(0.01)

        assert stream.said.startswith(answers)
