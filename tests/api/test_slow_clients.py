"""Clients that take their time: with a head, a body, an answer, a handshake. They are closed, alone."""

from __future__ import annotations

import asyncio
import re
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kernelpool.api import listener
from kernelpool.api.connections import Pace
from kernelpool.api.listener import Listener, raise_file_limit
from tests.api.conftest import TOKEN, VERSION, Api, api_of

QUICK = Pace(head_seconds=0.3, stall_seconds=0.3, least=1024)
MANY = 50
POST = (
    f"POST /pools/python/executions?identifier=slow-1&api-version={VERSION} HTTP/1.1\r\nHost: localhost\r\n"
    f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with api_of(tmp_path, server={"pace": QUICK}) as served:
        yield served


@asynccontextmanager
async def connected(api: Api) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    try:
        async with asyncio.timeout(60):
            yield reader, writer
    finally:
        writer.close()


async def closed(reader: asyncio.StreamReader) -> bytes:
    """What came until the server closed."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


async def drip(writer: asyncio.StreamWriter) -> None:
    """A byte now and then, for ever."""
    while not writer.is_closing():
        writer.write(b"x")
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("beginning", [b"", b"G", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
async def test_a_connection_that_does_not_come_to_the_point_is_closed(api: Api, beginning: bytes) -> None:
    assert await api.raw(beginning) == b""


async def test_a_head_that_drips_is_closed_at_its_time(api: Api) -> None:
    async with connected(api) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nX: ")
        dripping = asyncio.create_task(drip(writer))

        assert await closed(reader) == b""
        dripping.cancel()


async def test_the_head_of_a_later_request_has_the_same_time_but_idleness_has_more(api: Api) -> None:
    async with connected(api) as (reader, writer):
        request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for _ in range(2):
            writer.write(request)
            assert b" 200 " in await reader.readuntil(b'"alive"}')
            await asyncio.sleep(2 * QUICK.head_seconds)
        writer.write(b"GET /healthz HTTP/1.1\r\n")

        assert await closed(reader) == b""


@pytest.mark.parametrize("framing", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
async def test_a_body_that_drips_is_closed_at_its_time(api: Api, framing: str) -> None:
    async with connected(api) as (reader, writer):
        writer.write((POST + framing + "\r\n\r\n").encode())
        dripping = asyncio.create_task(drip(writer))

        assert b" 200 " not in await closed(reader)
        dripping.cancel()


async def test_a_body_that_comes_slowly_but_steadily_is_taken(tmp_path: Path) -> None:
    pace = Pace(stall_seconds=3.0, least=1024)  # more than a slow machine adds to a pause
    body = b'{"code":"1"}' + b" " * 12_000
    async with api_of(tmp_path, server={"pace": pace}) as api, connected(api) as (reader, writer):
        writer.write((POST + f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n").encode())
        for start in range(0, len(body), 1500):
            writer.write(body[start : start + 1500])
            await asyncio.sleep(pace.stall_seconds / 7)

        assert b" 200 " in await closed(reader)


async def test_time_that_the_gateway_takes_is_not_held_against_the_client(api: Api) -> None:
    api.server._pace = replace(QUICK, head_seconds=20)
    async with asyncio.timeout(60):
        running = asyncio.create_task(api.run("while True: pass", identifier="slow-2"))
        process = await api.process("slow-2")
        while not process.status().running:
            await asyncio.sleep(0.01)
        await asyncio.sleep(3 * QUICK.stall_seconds)

        assert not running.done()
        running.cancel()


async def test_a_reader_that_takes_nothing_of_its_answer_is_closed(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "kernelpool.api")
    process = await api.process()
    process.files |= {f"{number}.bin": (b"\0" * (1 << 20), 0.0) for number in range(6)}
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", api.port))
        head = f"HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        for number in range(6):
            path = f"/pools/python/files/{number}.bin/content?identifier=abcd-1&api-version={VERSION}"
            await loop.sock_sendall(client, f"GET {path} {head}".encode())
        async with asyncio.timeout(60):
            while "client reads too slowly" not in caplog.text:
                await asyncio.sleep(0.01)
    assert await api.works.wait_idle(60)


async def test_many_slow_connections_harm_nobody_and_are_all_closed(api: Api) -> None:
    api.server._pace = replace(QUICK, head_seconds=1.5, stall_seconds=1.5)  # enough for the one that is quick
    async with AsyncExitStack() as stack:
        readers = []
        for number in range(MANY):
            reader, writer = await stack.enter_async_context(connected(api))
            writer.write(b"GET / HTTP/1.1\r\nX: " if number % 2 else (POST + "Content-Length: 9\r\n\r\n").encode())
            readers.append(reader)

        assert (await api.run("1 + 1"))["result"]["executionResult"] == 2
        await asyncio.gather(*(closed(reader) for reader in readers))


# --- files run out


async def test_the_soft_limit_of_open_files_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))

        assert raise_file_limit() > 256
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_without_files_accepting_rests_and_goes_on_when_there_are_some(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    api.server._pace = Pace()
    attempts = 0
    original = Listener._accept

    def count(self: Listener) -> None:
        nonlocal attempts
        attempts += 1
        original(self)

    monkeypatch.setattr(listener, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(Listener, "_accept", count)
    await api.run("1")
    [listening] = api.server._listeners
    asyncio.get_running_loop().add_reader(listening._socket, listening._accept)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as client:
        client.setblocking(False)
        resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
        fillers = []
        try:
            while True:
                fillers.append(socket.socket())
        except OSError:
            pass
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", api.port))
        async with asyncio.timeout(30):
            while caplog.text.count("no connection can be accepted") < 3:
                await asyncio.sleep(0.01)
        resting = attempts
        await api.run("1")  # the connection that there is goes on
        for filler in fillers:
            filler.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await asyncio.get_running_loop().sock_sendall(client, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(30):
            answer = await asyncio.get_running_loop().sock_recv(client, 65536)

    assert resting < 10
    assert re.match(rb"HTTP/1.1 200 ", answer)
