"""The gateway's end of a line: connections of ours, carried by a relay in a sandbox. `relay.py` says how.

What comes out of it need not be the relay's: whatever breaks the rules ends the line.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from kernelpool.backends.docker.holder import is_hung_up
from kernelpool.backends.docker.relay import CHUNK, COUNT, DATA, END, GONE, HEAD, OPEN, OPENED, PING, ROOM, WINDOW
from kernelpool.backends.docker.streams import Stream
from kernelpool.tasks import Tasks

MOST: Final = 256
"""Connections at the same time; one more is refused. Each may hold up to `WINDOW` in either direction."""
PING_SECONDS: Final = 4.0
SILENCE: Final = 12.0
"""Seconds without a word after which a line is broken, though nobody has said so."""
_LENGTHS: Final = {
    OPENED: (0, 0),
    DATA: (1, CHUNK),
    ROOM: (COUNT.size, COUNT.size),
    END: (0, 0),
    GONE: (0, 0),
    PING: (0, 0),
}


class Broken(ConnectionError):
    """A connection, or the line that carries it."""


@dataclass(eq=False, slots=True)
class _Carried:
    """One connection."""

    id: int
    heard: bytearray = field(default_factory=bytearray)
    """What is still to be passed on."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Of any field but `room`."""
    room: int = WINDOW
    """What the relay takes."""
    has_room: asyncio.Event = field(default_factory=asyncio.Event)
    owed: int = WINDOW
    """What the relay may send."""
    is_taken: bool = False
    is_read_out: bool = False
    is_gone: bool = False

    def lose(self) -> None:
        self.is_gone = True
        self.news.set()
        self.has_room.set()


class Line:
    """Over a stream that is the line's from now on, until `aclose`."""

    def __init__(self, stream: Stream, *, silence: float = SILENCE) -> None:
        self._stream = stream
        self._silence = silence
        # The mutable state: connections by number, the last number, and when the relay was heard last.
        self._carried: dict[int, _Carried] = {}
        self._last = 0
        self._heard_at = asyncio.get_running_loop().time()
        self._broken = asyncio.Event()
        self._tasks = Tasks("line")
        self._tasks.spawn(self._listen(), "listen", apart=True)
        self._tasks.spawn(self._ping(), "ping", apart=True)

    def __repr__(self) -> str:
        return f"<Line [{'broken' if self.is_broken else f'{len(self._carried)} connections'}]>"

    @property
    def is_broken(self) -> bool:
        return self._broken.is_set()

    async def wait_broken(self) -> None:
        await self._broken.wait()

    async def aclose(self) -> None:
        """Breaks what it carries."""
        self._break()
        await self._tasks.aclose()
        await self._stream.aclose()

    async def is_answered(self) -> bool:
        """Whether somebody takes connections at the other end."""
        with self._opened() as carried:
            while not (carried.is_taken or carried.is_gone):
                await carried.news.wait()
                carried.news.clear()
            return not carried.is_gone

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection of ours, to its end. Raises `OSError` when it breaks, at whichever side."""
        with self._opened() as carried:
            ways = [
                asyncio.create_task(self._send(carried, reader, writer)),
                asyncio.create_task(self._receive(carried, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.wait(ways)
            errors = [way.exception() for way in ways if not way.cancelled()]
            if error := next(filter(None, errors), None):
                raise error

    @contextlib.contextmanager
    def _opened(self) -> Iterator[_Carried]:
        if self.is_broken or len(self._carried) >= MOST:
            raise Broken("the line carries no more")
        self._last += 1
        carried = self._carried[self._last] = _Carried(self._last)
        self._say(OPEN, carried.id)
        try:
            yield carried
        finally:
            # Also where both sides have said their END: it is one that the relay has forgotten.
            self._say(GONE, carried.id)
            del self._carried[carried.id]

    async def _send(self, carried: _Carried, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await self._read(carried, reader):
            carried.room -= len(data)
            self._say(DATA, carried.id, data)
            await self._stream.writer.drain()
        if writer.is_closing() or is_hung_up(writer.get_extra_info("socket")):
            # Not only silent, but gone: who still works for it is to hear of that.
            raise Broken("the caller is gone")
        self._say(END, carried.id)

    async def _read(self, carried: _Carried, reader: asyncio.StreamReader) -> bytes:
        while not carried.room:
            carried.has_room.clear()
            await carried.has_room.wait()
            if carried.is_gone:
                raise Broken("the sandbox takes no more")
        return await reader.read(min(CHUNK, carried.room))

    async def _receive(self, carried: _Carried, writer: asyncio.StreamWriter) -> None:
        while True:
            if carried.heard:
                data = bytes(carried.heard)
                carried.heard.clear()
                writer.write(data)
                await writer.drain()
                carried.owed += len(data)
                self._say(ROOM, carried.id, COUNT.pack(len(data)))
            elif carried.is_read_out:
                writer.write_eof()
                return
            elif carried.is_gone:
                raise Broken("the sandbox broke it off")
            else:
                await carried.news.wait()
                carried.news.clear()

    # --- the line

    def _say(self, kind: int, id: int, payload: bytes = b"") -> None:
        if not self.is_broken:
            self._stream.writer.write(HEAD.pack(kind, id, len(payload)) + payload)

    async def _listen(self) -> None:
        heard = bytearray()
        try:
            async for piece in self._stream.output():
                self._heard_at = asyncio.get_running_loop().time()
                heard += piece
                self._understand(heard)
        except OSError:
            pass  # as if it had ended
        finally:
            self._break()

    def _understand(self, heard: bytearray) -> None:
        begin = 0
        while len(heard) - begin >= HEAD.size:
            kind, id, length = HEAD.unpack_from(heard, begin)
            least, most = _LENGTHS.get(kind, (1, 0))
            if not least <= length <= most or id > self._last:
                raise Broken("the relay does not speak as a relay")
            end = begin + HEAD.size + length
            if len(heard) < end:
                break
            if (carried := self._carried.get(id)) is not None:  # else it was given up while this was on its way
                _take(carried, kind, bytes(heard[begin + HEAD.size : end]))
            begin = end
        del heard[:begin]

    async def _ping(self) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() - self._heard_at < self._silence:
            self._say(PING, 0)
            await asyncio.sleep(min(PING_SECONDS, self._silence / 3))
        self._break()

    def _break(self) -> None:
        self._broken.set()
        self._stream.abort()
        for carried in self._carried.values():
            carried.lose()


def _take(carried: _Carried, kind: int, payload: bytes) -> None:
    """Raises `Broken` when the relay sends what it may not."""
    if kind == DATA:
        if len(payload) > carried.owed or carried.is_read_out:
            raise Broken("the relay sends more than there is room for")
        carried.owed -= len(payload)
        carried.heard += payload
    elif kind == ROOM:
        carried.room += COUNT.unpack(payload)[0]
        if carried.room > WINDOW:
            raise Broken("the relay took more than it was given")
        carried.has_room.set()
        return
    elif kind == OPENED:
        carried.is_taken = True
    elif kind == END:
        carried.is_read_out = True
    elif kind == GONE:
        carried.lose()
    carried.news.set()
