"""Bytes going both ways, until both ends have finished, nothing moves any more, or a limit is met."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

CHUNK: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class FlowLimits:
    """Of one connection."""

    idle: float = 300.0
    """Seconds in which nothing moves either way; a peer that does not read is such a one."""
    seconds: float = 6 * 3600.0
    size: int = 64 << 30
    """Bytes, both ways together."""


class Flow:
    """Counts what moves, and ends what does not."""

    def __init__(self, limits: FlowLimits) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self.sent = 0
        """From the sandbox."""
        self.received = 0
        self._began = self._moved = self._loop.time()

    @property
    def seconds(self) -> float:
        return self._loop.time() - self._began

    def count(self, *, sent: int = 0, received: int = 0) -> None:
        """Raises `TimeoutError` past the limit of bytes."""
        self.sent += sent
        self.received += received
        self._moved = self._loop.time()
        if self.sent + self.received > self._limits.size:
            raise TimeoutError("too many bytes")

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Raises `TimeoutError` in its body when nothing moves any more, or it takes too long."""
        ends = self._began + self._limits.seconds
        async with asyncio.timeout_at(min(ends, self._moved + self._limits.idle)) as timeout:
            watch = asyncio.create_task(self._postpone(timeout, ends))
            try:
                yield
            finally:
                watch.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watch

    async def _postpone(self, timeout: asyncio.Timeout, ends: float) -> None:
        """Looks often enough to come before the deadline that it moves."""
        while True:
            await asyncio.sleep(self._limits.idle / 4)
            timeout.reschedule(min(ends, self._moved + self._limits.idle))

    async def tunnel(
        self,
        inside: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        outside: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        """Raises `OSError`, `TimeoutError`. An end of one direction is passed on, and the other goes on."""
        pumps = [
            asyncio.create_task(self._pump(inside[0], outside[1], is_sent=True)),
            asyncio.create_task(self._pump(outside[0], inside[1], is_sent=False)),
        ]
        try:
            async with self.watched():
                done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
        for pump in done:
            pump.result()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_sent: bool) -> None:
        while data := await reader.read(CHUNK):
            self.count(sent=len(data) if is_sent else 0, received=0 if is_sent else len(data))
            writer.write(data)
            await writer.drain()
            self._moved = self._loop.time()
        writer.write_eof()
