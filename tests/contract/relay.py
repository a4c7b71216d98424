"""A way to the engine that a test can cut and mend, and on which it sees what is asked."""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from types import TracebackType
from typing import Self

_MAKING = re.compile(rb"POST /v[0-9.]+/containers/(create|[^/ ]+/start)")


class Relay:
    """An async context manager, at the Unix socket `path`, to the one at `engine`."""

    def __init__(self, path: Path, engine: str) -> None:
        self.path = path
        self._engine = engine
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._making: set[asyncio.StreamWriter] = set()
        self.most_at_once = 0
        """Containers that were asked for at the same time."""
        self.cut_before = b""
        """Whoever asks for this finds the engine gone."""
        self.deaf_to = b""
        """Whoever asks for this gets no answer."""

    @property
    def host(self) -> str:
        return f"unix://{self.path}"

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()

    async def mend(self) -> None:
        self.cut_before = b""
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    def cut(self) -> None:
        """As an engine that is killed: nothing accepts, and what was open breaks off."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self.path.unlink(missing_ok=True)
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # it was cut just after it had accepted this one
            writer.transport.abort()
            return
        self._writers.add(writer)
        engine_reader, engine_writer = await asyncio.open_unix_connection(self._engine)
        self._writers.add(engine_writer)
        try:
            if writer.is_closing():  # it was cut meanwhile
                return
            await asyncio.gather(self._ask(reader, engine_writer), self._answer(engine_reader, engine_writer, writer))
        finally:
            self._writers -= {writer, engine_writer}
            for one in (writer, engine_writer):
                one.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, engine: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(1 << 16):
                if self.cut_before and self.cut_before in chunk:
                    self.cut()
                    return
                if self.deaf_to and self.deaf_to in chunk:
                    continue
                if _MAKING.match(chunk):
                    self._making.add(engine)
                    self.most_at_once = max(self.most_at_once, len(self._making))
                engine.write(chunk)
        engine.transport.abort()

    async def _answer(
        self, reader: asyncio.StreamReader, engine: asyncio.StreamWriter, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(1 << 16):
                self._making.discard(engine)
                writer.write(chunk)
        self._making.discard(engine)
        writer.transport.abort()
