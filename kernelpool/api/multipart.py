"""Uploads as they come in: bytes of a body → parts with names and pieces of files, in constant memory."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote, unquote_to_bytes

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from kernelpool.errors import InvalidFileName, InvalidRequest

MAX_PARTS = 100
MAX_BOUNDARY = 72  # RFC 2046: 70, and the two dashes before it

_EXTENDED_NAME = re.compile(rb"(?i)filename\*=utf-8''([^;\s]+)")
"""What .NET adds to an encoded word in `filename`; RFC 7578 forbids both."""


@dataclass(frozen=True, slots=True)
class FileStart:
    name: str


@dataclass(frozen=True, slots=True)
class FileData:
    data: bytes


@dataclass(frozen=True, slots=True)
class FileEnd:
    pass


Piece = FileStart | FileData | FileEnd


class Reader(Protocol):
    """Turns a body into pieces; the first of a file is its `FileStart`, the last its `FileEnd`."""

    def feed(self, chunk: bytes) -> list[Piece]:
        """Raises `InvalidRequest`."""

    def finish(self) -> list[Piece]:
        """The body is complete. Raises `InvalidRequest` when it does not look so."""


class RawReader:
    """The whole body is one file."""

    def __init__(self, name: str) -> None:
        self._start: list[Piece] = [FileStart(name)]

    def feed(self, chunk: bytes) -> list[Piece]:
        start, self._start = self._start, []
        return [*start, FileData(chunk)]

    def finish(self) -> list[Piece]:
        return [*self._start, FileEnd()]


class MislabelledReader:
    """multipart/form-data under another Content-Type, told by its first line: Semantic Kernel for Python leaves the
    application/json of its last call on its client when it uploads."""

    def __init__(self, content_type: str) -> None:
        self._content_type = content_type
        self._start = bytearray()
        self._reader: MultipartReader | None = None

    def feed(self, chunk: bytes) -> list[Piece]:
        if self._reader is not None:
            return self._reader.feed(chunk)
        self._start += chunk
        line, newline, _ = self._start.partition(b"\r\n")
        if not newline and len(self._start) <= MAX_BOUNDARY:
            return []
        boundary = line[2:].decode("ascii", "replace")
        told = line.startswith(b"--") and re.fullmatch(r"[\w'()+,./:=? -]{1,70}", boundary, re.ASCII)
        self._reader = MultipartReader(f'multipart/form-data; boundary="{boundary}"' if told else self._content_type)
        return self._reader.feed(bytes(self._start))

    def finish(self) -> list[Piece]:
        return (self._reader or MultipartReader(self._content_type)).finish()


class MultipartReader:
    """multipart/form-data. Parts without a file name are form fields: read and forgotten."""

    def __init__(self, content_type: str, *, percent_encoded_names: bool = False) -> None:
        """Raises `InvalidRequest` when the header announces something else or no boundary."""
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise InvalidRequest("Content-Type must be multipart/form-data with a boundary, and the part's name 'file'")
        self._percent_encoded_names = percent_encoded_names
        self._pieces: list[Piece] = []
        self._parts = 0
        self._in_file = False
        self._complete = False
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError:
            raise InvalidRequest("the boundary of Content-Type is too long") from None

    def feed(self, chunk: bytes) -> list[Piece]:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise InvalidRequest(f"body is not valid multipart/form-data: {error}") from None
        pieces, self._pieces = self._pieces, []
        return pieces

    def finish(self) -> list[Piece]:
        if not self._complete:
            raise InvalidRequest("body ends before the closing boundary")
        return []

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"body has more than {MAX_PARTS} parts")
        self._disposition = b""

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        name = file_name_of(self._disposition)
        self._in_file = name is not None
        if name is not None:
            self._pieces.append(FileStart(unquote(name) if self._percent_encoded_names else name))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._pieces.append(FileData(data[start:end]))

    def _on_part_end(self) -> None:
        if self._in_file:
            self._pieces.append(FileEnd())
        self._in_file = False

    def _on_end(self) -> None:
        self._complete = True


def file_name_of(disposition: bytes) -> str | None:
    """The file name of a part's Content-Disposition; None for a form field."""
    _, options = parse_options_header(disposition)
    plain = options.get(b"filename")
    extended = _EXTENDED_NAME.search(disposition) if plain is None or plain.startswith(b"=?") else None
    if plain is None and extended is None:
        return None
    try:
        if extended:
            return unquote_to_bytes(extended[1]).decode()
        # Browsers and urllib3 write a quote in a name as %22; nothing else of theirs is encoded.
        name = (plain or b"").decode().replace("%22", '"')
    except UnicodeDecodeError:
        raise InvalidFileName("file name is not UTF-8") from None
    if not name:
        raise InvalidFileName("file name is missing")
    return name


class Pipe:
    """Pieces on their way from who reads the body to who stores the files; a few at most, so that a slow store
    slows the sender down."""

    def __init__(self, limit: int = 4) -> None:
        self._limit = limit
        self._pieces: deque[Piece] = deque()
        self._no_more = False
        self._changed = asyncio.Condition()

    async def put(self, piece: Piece) -> None:
        """Waits for room. After `close` it returns at once, and the piece is gone."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._pieces) < self._limit or self._no_more)
            if not self._no_more:
                self._pieces.append(piece)
                self._changed.notify_all()

    async def close(self) -> None:
        """From either end: no more pieces. Those that are in it can still be taken."""
        async with self._changed:
            self._no_more = True
            self._changed.notify_all()

    async def get(self) -> Piece | None:
        """None when there are no more."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._pieces) or self._no_more)
            if not self._pieces:
                return None
            piece = self._pieces.popleft()
            self._changed.notify_all()
            return piece

    async def file(self) -> AsyncIterator[bytes]:
        """The data of the file whose `FileStart` was taken last. Raises `InvalidRequest` when it has no end."""
        while (piece := await self.get()) is not None:
            match piece:
                case FileData(data):
                    yield data
                case FileEnd():
                    return
                case FileStart():
                    break
        raise InvalidRequest("the upload was cut off")
