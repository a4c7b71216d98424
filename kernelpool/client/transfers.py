"""Where uploads come from and downloads go to: memory, paths and open files. All that is here may block."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Union

CHUNK = 256 << 10

Readable = Union[bytes, str, "os.PathLike[str]", IO[bytes]]
"""Bytes, the path of a file (text is a path), or a file that is open for reading."""
Writable = Union[str, "os.PathLike[str]", IO[bytes]]


@dataclass(frozen=True, slots=True)
class Source:
    """What is uploaded."""

    open: Callable[[], IO[bytes]]
    """At its start, also when it has been read before."""
    is_ours: bool
    """Opened by us, and so closed by us."""
    name: str | None
    """Of the file, without directories."""
    replayable: bool
    """It can be opened a second time."""

    def close(self, file: IO[bytes]) -> None:
        if self.is_ours:
            file.close()


def source_of(readable: Readable) -> Source:
    if isinstance(readable, bytes):
        return Source(lambda: io.BytesIO(readable), True, None, True)
    if isinstance(readable, str | os.PathLike):
        path = Path(readable)
        return Source(lambda: path.open("rb"), True, path.name, True)
    start = readable.tell() if readable.seekable() else None

    def rewound() -> IO[bytes]:
        if start is not None:
            readable.seek(start)
        return readable

    name = getattr(readable, "name", None)
    return Source(rewound, False, Path(name).name if isinstance(name, str) else None, start is not None)


def bytes_left(file: IO[bytes]) -> int | None:
    """None for what has no end that is known, such as a pipe."""
    if not file.seekable():
        return None
    here = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(here)
    return end - here


class Destination:
    """What a download is written to. A file appears whole or not at all: it is written under another name first."""

    def __init__(self, writable: Writable) -> None:
        self._path = Path(writable) if isinstance(writable, str | os.PathLike) else None
        self._scratch: Path | None = None
        self._file: IO[bytes] | None = writable if not isinstance(writable, str | os.PathLike) else None

    def open(self) -> None:
        if self._path is None:
            return
        self._path = self._path.resolve()  # behind a link, what it leads to is written
        if self._path.exists() and not self._path.is_file():  # a device or a pipe: to be written to, not replaced
            self._file = self._path.open("wb")
            return
        self._scratch = self._path.with_name(f".{uuid.uuid4().hex}.part")
        self._file = self._scratch.open("xb")

    def write(self, data: bytes) -> None:
        assert self._file is not None  # `open` was called
        self._file.write(data)

    def close(self, *, complete: bool) -> None:
        if self._path is None or self._file is None:
            return
        self._file.close()
        if self._scratch is not None and self._path is not None:
            if complete:
                self._scratch.replace(self._path)
            else:
                self._scratch.unlink(missing_ok=True)
