"""A raw stream through an engine on TCP, as of `docker attach` and `docker exec`: HTTP first, bytes from then on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

_MAX_WORDS: Final = 2000
_FRAME: Final = struct.Struct(">B3xI")
_STDOUT: Final = 1
_PIECE: Final = 64 << 10
"""And the most that a head may have."""
_DEFAULTS: Final = {"http": 80, "https": 443}


class Refused(Exception):
    """The engine has answered, with another status."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status
        self.said = said


@dataclass(frozen=True, slots=True)
class Stream:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def output(self) -> AsyncIterator[bytes]:
        """What the program at the other end prints, in pieces; the engine puts heads between them. Ends with it; raises
        `OSError`."""
        try:
            while True:
                kind, left = _FRAME.unpack(await self.reader.readexactly(_FRAME.size))
                while left:
                    piece = await self.reader.read(min(left, _PIECE))
                    if not piece:
                        return
                    left -= len(piece)
                    if kind == _STDOUT:
                        yield piece
        except asyncio.IncompleteReadError:
            return

    def abort(self) -> None:
        self.writer.transport.abort()

    async def aclose(self) -> None:
        """Whatever is on its way is lost."""
        self.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


async def open_stream(url: str, tls: ssl.SSLContext | None, body: Mapping[str, Any] | None) -> Stream:
    """Raises `Refused`, `OSError`, `EOFError`, `ValueError`. The deadline is the caller's."""
    place = urlsplit(url)
    port = place.port or _DEFAULTS[place.scheme]
    reader, writer = await asyncio.open_connection(place.hostname, port, ssl=tls, limit=_PIECE)
    try:
        writer.write(_request(place, body))
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status not in (101, 200):  # 200 is what it was before engines upgraded
            async with asyncio.timeout(1):
                said = await reader.read(_MAX_WORDS)
            raise Refused(status, said.decode(errors="replace"))
    except BaseException:
        writer.transport.abort()
        raise
    return Stream(reader, writer)


def _request(place: SplitResult, body: Mapping[str, Any] | None) -> bytes:
    content = json.dumps(body).encode() if body is not None else b""
    head = [
        f"POST {place.path}{'?' if place.query else ''}{place.query} HTTP/1.1",
        f"Host: {place.netloc}",
        "Connection: Upgrade",
        "Upgrade: tcp",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    ]
    return "\r\n".join([*head, "", ""]).encode() + content
