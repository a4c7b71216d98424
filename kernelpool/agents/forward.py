"""One request to a custom container and its answer: HTTP/1.1 over a connection of its own, WebSocket upgrades included.

h11 keeps the protocol; here are its I/O and limits. The container is hostile: heads are bounded, floods of interim
answers and of tiny chunks are cut short or take turns with everybody else, silence has a limit, no redirect is
followed, nothing is unpacked, and no connection is used twice, so that nothing left on one can become the answer to
another request.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import h11

from kernelpool.agents.answers import clean
from kernelpool.agents.hygiene import from_container, to_container
from kernelpool.backends.base import Address, UnixAddress
from kernelpool.errors import ContainerFault, ContainerSilent, ContainerUnreachable, InvalidRequest

CHUNK = 64 << 10
MAX_HEAD = 64 << 10
"""Bytes of an answer's head, or of a chunk's."""
MAX_HEADERS = 200
MAX_INTERIM = 16
"""Answers of the 1xx kind before the real one. They are not passed on."""
CHUNKS_A_TURN = 64
"""Chunks that are parsed before others get their turn."""
LAST_WORDS = 16
"""Chunks that are read of what a container said before it closed."""
CONNECT_SECONDS = 5.0
SWITCHING = 101
LAST_STATUS = 599


@dataclass(frozen=True, slots=True)
class Forward:
    """A caller's request, as it came."""

    method: str
    target: str
    """Path and query, as they are to be sent: never parsed, decoded or normalized."""
    headers: tuple[tuple[str, str], ...] = ()
    body: AsyncIterator[bytes] | None = None
    length: int | None = None
    """Of the body: None when there is none, -1 when nobody knows."""
    upgrades: bool = False
    """It asks for a WebSocket."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a container answers; headers that end at the gateway are gone already."""

    status: int
    headers: tuple[tuple[str, str], ...]
    chunks: AsyncIterator[bytes]
    """Of the body; after an upgrade, whatever it sends. Raises when it breaks off, so that a part never looks whole."""
    tunnel: asyncio.StreamWriter | None = None
    """Where to write to after an upgrade."""


@asynccontextmanager
async def forwarded(address: Address, port: int, silence: float, request: Forward) -> AsyncIterator[Answer]:
    """Raises `ContainerUnreachable`, `ContainerSilent`, `ContainerFault`; reading the answer's chunks does so, too."""
    reader, writer = await _connected(address, port)
    exchange = _Exchange(reader, writer, port, silence)
    try:
        head = exchange.begin(request)
        sending = asyncio.create_task(exchange.send(head, request))
        # Whatever keeps it from being sent keeps it from being answered.
        sending.add_done_callback(lambda task: _abort_unless_sent(task, writer))
        try:
            yield await exchange.answer()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    finally:
        writer.transport.abort()


async def _connected(address: Address, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(limit=CHUNK)
            protocol = _LastWords(reader)
            transport: asyncio.Transport
            if isinstance(address, UnixAddress):
                transport, _ = await loop.create_unix_connection(lambda: protocol, address.path)
            else:
                transport, _ = await loop.create_connection(lambda: protocol, address.host, address.port)
            return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
    except (OSError, TimeoutError) as error:
        raise ContainerUnreachable(f"Nothing takes connections on port {port} of the container.") from error


class _LastWords(asyncio.StreamReaderProtocol):
    """What a container says before it closes is heard also when something was being sent to it: asyncio lets go of a
    connection that cannot be written to, with whatever there is to read."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        super().__init__(reader)
        self._reader = reader
        self._socket = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._socket = transport.get_extra_info("socket").fileno()

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, ConnectionError):
            with suppress(OSError):
                for _ in range(LAST_WORDS):
                    if not (data := os.read(self._socket, CHUNK)):
                        exc = None  # the end of what it says, after which there is no more to send either
                        break
                    self._reader.feed_data(data)
        super().connection_lost(exc)


def _abort_unless_sent(sending: asyncio.Task[None], writer: asyncio.StreamWriter) -> None:
    if not sending.cancelled() and sending.exception() is not None:
        writer.transport.abort()


class _Exchange:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, silence: float) -> None:
        self._reader = reader
        self._writer = writer
        self._port = port
        self._silence = silence
        self._loop = asyncio.get_running_loop()
        # The mutable state: where both sides are in HTTP, by when the container has to say or take something, and
        # whether it has begun to answer, and has closed.
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._due = math.inf
        self._answered = False
        self._closed = False

    # --- the request

    def begin(self, request: Forward) -> bytes:
        """Raises `InvalidRequest` for a head that cannot be passed on."""
        headers = to_container(request.headers, self._port, length=request.length, upgrades=request.upgrades)
        target = re.sub(r"[^\x21-\x7e]", lambda match: f"%{ord(match[0]):02X}", request.target)
        try:
            return self._http.send(h11.Request(method=request.method, target=target, headers=_encoded(headers))) or b""
        except h11.LocalProtocolError as error:
            raise InvalidRequest(f"the request cannot be forwarded: {clean(error)}") from None

    async def send(self, head: bytes, request: Forward) -> None:
        # A container that stops reading may have answered all the same: what it said is for `answer` to find out.
        with suppress(ConnectionError):
            await self._write(head)
            if request.body is not None:
                async for chunk in request.body:
                    await self._write(self._http.send(h11.Data(data=chunk)))
                    # The next one is the caller's to send: how long that takes is not held against the container.
                    self._due = math.inf
            await self._write(self._http.send(h11.EndOfMessage()))

    async def _write(self, data: bytes | None) -> None:
        self._due = self._loop.time() + self._silence
        if data:
            self._writer.write(data)
            await self._writer.drain()
        self._due = self._loop.time() + self._silence

    # --- the answer

    async def answer(self) -> Answer:
        for _ in range(MAX_INTERIM + 1):
            event = await self._event()
            if isinstance(event, h11.Response):
                return self._answer(event)
            if isinstance(event, h11.InformationalResponse) and event.status_code == SWITCHING:
                return self._answer(event)
        raise ContainerFault(f"The container sent more than {MAX_INTERIM} interim answers.")

    def _answer(self, event: h11.Response | h11.InformationalResponse) -> Answer:
        self._answered = True
        if event.status_code > LAST_STATUS:
            raise ContainerFault(f"The container answered with the status {event.status_code}, which does not exist.")
        if len(event.headers) > MAX_HEADERS:
            raise ContainerFault(f"The container answered with more than {MAX_HEADERS} headers.")
        raw = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers.raw_items()]
        headers = tuple(from_container(raw, event.status_code))
        if event.status_code == SWITCHING:
            return Answer(SWITCHING, headers, self._tunnelled(), self._writer)
        return Answer(event.status_code, headers, self._chunks())

    async def _chunks(self) -> AsyncIterator[bytes]:
        pieces: list[bytes] = []
        while True:
            event = self._parsed()
            if isinstance(event, h11.Data):
                pieces.append(bytes(event.data))
            if pieces and (len(pieces) == CHUNKS_A_TURN or not isinstance(event, h11.Data)):
                yield b"".join(pieces)
                pieces.clear()
                await asyncio.sleep(0)
            if event is h11.NEED_DATA:
                await self._receive()
            elif not isinstance(event, h11.Data):
                return

    async def _tunnelled(self) -> AsyncIterator[bytes]:
        """Until the container closes. It may be silent as long as it likes."""
        early, _ = self._http.trailing_data
        if early:
            yield early
        while data := await self._reader.read(CHUNK):
            yield data

    async def _event(self) -> Any:
        while (event := self._parsed()) is h11.NEED_DATA:
            await self._receive()
        return event

    def _parsed(self) -> Any:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as error:
            if not self._closed:
                raise ContainerFault(f"The container answered with bad HTTP: {clean(error)}") from error
            if self._answered:
                raise ContainerFault("The container broke off its answer.") from error
            raise ContainerUnreachable(
                f"The container closed the connection to port {self._port} unanswered."
            ) from error

    async def _receive(self) -> None:
        data = await self._read()
        self._closed = not data
        self._http.receive_data(data)

    async def _read(self) -> bytes:
        self._due = self._due if self._due == math.inf else self._loop.time() + self._silence
        while True:
            limit = min(self._due, self._loop.time() + self._silence)
            try:
                async with asyncio.timeout_at(limit):
                    return await self._reader.read(CHUNK)
            except TimeoutError:
                if self._loop.time() >= self._due:
                    raise ContainerSilent(f"The container said nothing for {self._silence:g} s.") from None
            except ConnectionError:
                return b""


def _encoded(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
