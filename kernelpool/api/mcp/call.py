"""Call: who calls a tool, of which pool, and which session is meant when none is named. Answer: what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kernelpool.api.mcp.transcript import Image
from kernelpool.gateway import Gateway, PoolInfo, Principal, Session

TICK_SECONDS = 3.0
"""Between two signs of life of a tool: clients give up on one that shows none for a minute or two."""

Report = Callable[[float, float | None, str], Awaitable[None]]
"""Seconds so far, seconds at most, a sentence."""
T = TypeVar("T")


async def _nobody(seconds: float, most: float | None, sentence: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Caller:
    """Behind one request: the same for all that it calls."""

    gateway: Gateway
    principal: Principal
    pool: PoolInfo
    identifier: str
    """The session that is meant when the caller names none."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool."""

    caller: Caller
    report: Report = _nobody

    @property
    def pool(self) -> PoolInfo:
        return self.caller.pool

    def use(self, identifier: str) -> AbstractAsyncContextManager[Session]:
        """As `Gateway.use`; "" is the caller's own session."""
        return self.caller.gateway.use(self.caller.principal, self.pool.name, identifier or self.caller.identifier)

    def find(self, identifier: str) -> AbstractAsyncContextManager[Session]:
        """As `Gateway.find`; "" is the caller's own session."""
        return self.caller.gateway.find(self.caller.principal, self.pool.name, identifier or self.caller.identifier)

    async def ticking(self, work: Awaitable[T], most: float | None, what: str) -> T:
        """Does the work, and reports every few seconds that it goes on."""
        ticking = asyncio.create_task(self._tick(most, what))
        try:
            return await work
        finally:
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking

    async def _tick(self, most: float | None, what: str) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            seconds = loop.time() - began
            try:
                await self.report(round(seconds, 1), most, f"{what} for {seconds:.0f} s")
            except OSError:  # the client has left
                return


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool says: text once for whoever reads, the same as data for whoever computes."""

    text: str
    data: Mapping[str, Any] | None = None
    """As the tool's output schema has it."""
    images: Sequence[Image] = field(default_factory=tuple)
    is_error: bool = False
