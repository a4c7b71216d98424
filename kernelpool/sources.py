"""Sources: what pools are made from. Opens each backend once, prepares runtimes, and has the doctor judge them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kernelpool.backends import BACKENDS, load_backend
from kernelpool.backends.base import Backend, Finding, Say
from kernelpool.errors import InvalidRequest, StartFailed
from kernelpool.gateway import PoolSource
from kernelpool.pool.settings import PoolSettings
from kernelpool.runtimes import Runtime, load_runtimes

log = logging.getLogger(__name__)


class Sources:
    """An async context manager, over the backends that pools turn out to need."""

    def __init__(self, state_dir: Path, say: Say, *, allow_insecure: bool = False) -> None:
        self._state_dir = state_dir
        self._say = say
        self._allow_insecure = allow_insecure
        # The mutable state: backends by name, entered in the order in which pools wanted them.
        self._backends: dict[str, Backend] = {}
        self._stack = AsyncExitStack()
        # One after the other: what they do in the beginning keeps all cores busy as it is.
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        self._backends.clear()

    async def make(self, pool: PoolSettings) -> PoolSource:
        """Raises `InvalidRequest` for a backend or runtime that does not exist, `StartFailed` when its sandboxes would
        not isolate, unless that was allowed by name."""
        async with self._lock:
            runtime, backend = await self._parts(pool)
            metadata = await backend.prepare(runtime, self._say)
            self._judge(pool, await backend.check(runtime, pool.limits.to_limits()))
            return PoolSource(pool, runtime, backend, metadata)

    async def check(self, pool: PoolSettings) -> Sequence[Finding]:
        """What the sandboxes of a pool promise on this machine."""
        async with self._lock:
            runtime, backend = await self._parts(pool)
            await backend.prepare(runtime, self._say)
            return await backend.check(runtime, pool.limits.to_limits())

    async def open(self, pool: PoolSettings) -> Backend:
        """The backend of a pool, entered."""
        async with self._lock:
            return await self._open(pool)

    async def _parts(self, pool: PoolSettings) -> tuple[Runtime, Backend]:
        runtimes = await asyncio.to_thread(load_runtimes)
        if pool.runtime not in runtimes:
            raise InvalidRequest(
                f"pool {pool.name!r}: there is no runtime {pool.runtime!r}, only {', '.join(runtimes)}"
            )
        return runtimes[pool.runtime], await self._open(pool)

    async def _open(self, pool: PoolSettings) -> Backend:
        if pool.backend not in BACKENDS:
            raise InvalidRequest(
                f"pool {pool.name!r}: there is no backend {pool.backend!r}, only {', '.join(BACKENDS)}"
            )
        if pool.backend not in self._backends:
            # What all backends' constructors have in common: a directory of their own.
            make: Any = load_backend(pool.backend)
            backend = await self._stack.enter_async_context(make(self._state_dir / pool.backend))
            self._backends[pool.backend] = backend
        return self._backends[pool.backend]

    def _judge(self, pool: PoolSettings, findings: Sequence[Finding]) -> None:
        broken = [finding for finding in findings if not finding.holds]
        for finding in broken:
            self._say(f"pool {pool.name}: {describe(finding)}")
        essential = [finding.name for finding in broken if finding.essential]
        if not essential:
            return
        if not self._allow_insecure:
            raise StartFailed(
                f"the sandboxes of pool {pool.name!r} do not isolate on this machine: {', '.join(essential)}. "
                "`kernelpool doctor` says how to mend it; --allow-insecure serves all the same"
            )
        log.warning("serving without isolation", extra={"pool": pool.name, "broken": essential})


def describe(finding: Finding) -> str:
    state = "holds" if finding.holds else "DOES NOT HOLD" if finding.essential else "does not hold, not essential"
    detail = f"seen {finding.seen}, wanted {finding.wanted}" if not finding.holds else finding.seen
    remedy = f"\n    {finding.remedy}" if finding.remedy and not finding.holds else ""
    return f"{finding.name}: {state} ({detail}){remedy}"
