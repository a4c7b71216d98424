"""Sources: what pools are made from. Opens each backend once, prepares runtimes, and has the doctor judge them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kernelpool.backends import BACKENDS, load_backend
from kernelpool.backends.base import Backend, ContainerBackend, Finding, RuntimeMetadata, Say
from kernelpool.egress.doors import DoorKeeper
from kernelpool.errors import InvalidRequest, StartFailed
from kernelpool.gateway import PoolSource
from kernelpool.pool.settings import PoolSettings, sandbox_spec
from kernelpool.runtimes import Runtime, container_runtime, load_runtimes

log = logging.getLogger(__name__)


class Sources:
    """An async context manager, over the backends that pools turn out to need."""

    def __init__(
        self,
        state_dir: Path,
        say: Say,
        settings: Mapping[str, object] | None = None,
        doors: DoorKeeper | None = None,
        *,
        allow_insecure: bool = False,
    ) -> None:
        """`settings` are those of backends, by name; one that is not in there goes by its defaults."""
        self._state_dir = state_dir
        self._settings = settings or {}
        self._say = say
        self._allow_insecure = allow_insecure
        self._doors = doors
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
            metadata = await self._prepare(pool, runtime, backend)
            self._judge(pool, await self._check(pool, runtime, backend))
            return PoolSource(pool, runtime, backend, metadata)

    async def check(self, pool: PoolSettings) -> Sequence[Finding]:
        """What the sandboxes of a pool promise on this machine."""
        async with self._lock:
            runtime, backend = await self._parts(pool)
            await self._prepare(pool, runtime, backend)
            return await self._check(pool, runtime, backend)

    async def open(self, pool: PoolSettings) -> Backend:
        """The backend of a pool, entered."""
        async with self._lock:
            return await self._open(pool)

    async def _prepare(self, pool: PoolSettings, runtime: Runtime, backend: Backend) -> RuntimeMetadata:
        if pool.container is None:
            return await backend.prepare(runtime, self._say)
        if not isinstance(backend, ContainerBackend):
            raise InvalidRequest(
                f"pool {pool.name!r}: the backend {pool.backend!r} runs no custom containers; say docker"
            )
        return await backend.prepare_container(pool.container.to_spec(), pool.container.to_registry(), self._say)

    async def _check(self, pool: PoolSettings, runtime: Runtime, backend: Backend) -> Sequence[Finding]:
        try:
            return await backend.check(sandbox_spec(pool, runtime))
        except InvalidRequest as error:
            raise InvalidRequest(f"pool {pool.name!r}: {error}") from None

    async def _parts(self, pool: PoolSettings) -> tuple[Runtime, Backend]:
        if pool.container is not None:
            return container_runtime(pool.container.image), await self._open(pool)
        runtimes = await asyncio.to_thread(load_runtimes)
        if pool.runtime not in runtimes:
            raise InvalidRequest(
                f"pool {pool.name!r}: there is no runtime {pool.runtime!r}, only {', '.join(runtimes)}"
            )
        return replace(runtimes[pool.runtime], image=pool.image or ""), await self._open(pool)

    async def _open(self, pool: PoolSettings) -> Backend:
        if pool.backend not in BACKENDS:
            raise InvalidRequest(
                f"pool {pool.name!r}: there is no backend {pool.backend!r}, only {', '.join(BACKENDS)}"
            )
        if pool.backend not in self._backends:
            # What all backends' constructors have in common: a directory of their own, settings, the egress proxy.
            make: Any = load_backend(pool.backend)
            made = make(self._state_dir / pool.backend, self._settings.get(pool.backend), doors=self._doors)
            self._backends[pool.backend] = await self._stack.enter_async_context(made)
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
