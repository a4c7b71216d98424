"""Management: pools made, changed and deleted while the gateway runs, and there again after its next start.

Pools of the settings file belong to whoever writes that file: they can be changed here, which is kept and counts from
then on, but not deleted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import ValidationError

from kernelpool.auth.principal import Principal
from kernelpool.errors import Conflict, InvalidRequest, KernelpoolError, PoolNotFound, QuotaExceeded
from kernelpool.gateway import Gateway, PoolInfo, PoolSource
from kernelpool.pool.container import REVEAL
from kernelpool.pool.settings import PoolSettings, fingerprint
from kernelpool.pool.store import PoolStore
from kernelpool.sentences import sentences
from kernelpool.tasks import Tasks
from kernelpool.telemetry.audit import Action, Audit, Entry, Unaudited

log = logging.getLogger(__name__)
R = TypeVar("R")

Make = Callable[[PoolSettings], Awaitable[PoolSource]]
CLOSE_SECONDS = 5.0
"""For changes under way when the gateway leaves. What is cut short then is swept up by the next start."""


class Management:
    """An async context manager. A change that has begun is finished, whoever leaves; one pool, one change at a time."""

    def __init__(
        self,
        gateway: Gateway,
        make: Make,
        store: PoolStore,
        declared: Collection[str],
        max_pools: int = 64,
        audit: Audit | None = None,
    ) -> None:
        """`declared`: names of the pools of the settings file."""
        self._gateway = gateway
        self._make = make
        self._store = store
        self._declared = frozenset(declared)
        self._max_pools = max_pools
        self._audit = audit or Unaudited()
        self.on_deleted: Callable[[str], Awaitable[None]] = _nobody
        """Told the name of a pool that is no more, before there can be another one of it."""
        # The mutable state: pools being changed, and those of them that are not there yet.
        self._changing: set[str] = set()
        self._coming: set[str] = set()
        self._tasks = Tasks("management")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.aclose(grace=CLOSE_SECONDS)

    async def put(self, who: Principal, pool: PoolSettings) -> tuple[PoolInfo, bool]:
        """Makes it, or gives it exactly these settings; says whether it is new. Raises `InvalidRequest`, `Conflict`
        while it is being changed, `StartFailed` when its sandboxes would not isolate."""
        return await self._finish(who, Action.POOL_PUT, pool.name, self._put(pool))

    async def patch(self, who: Principal, name: str, changes: Mapping[str, Any]) -> PoolInfo:
        """Merges changes into its settings as RFC 7396 does: null is the default. Raises as `put`, and
        `PoolNotFound`."""
        pool = merged(self._gateway.source_of(name).settings, changes)
        info, _ = await self._finish(who, Action.POOL_PATCH, name, self._put(pool))
        return info

    async def delete(self, who: Principal, name: str) -> None:
        """With every session in it. Raises `PoolNotFound`, `Conflict` for one of the settings file."""
        await self._finish(who, Action.POOL_DELETE, name, self._delete(name))

    async def wait_idle(self, timeout: float) -> None:
        """Until nothing is being changed, or the time is over."""
        await self._tasks.wait(timeout)

    async def _finish(self, who: Principal, action: Action, name: str, work: Coroutine[Any, Any, R]) -> R:
        return await asyncio.shield(self._tasks.spawn(self._audited(who, action, name, work), f"change {name}"))

    async def _audited(self, who: Principal, action: Action, name: str, work: Coroutine[Any, Any, R]) -> R:
        began, outcome = time.monotonic(), KernelpoolError.code
        try:
            with self._alone(name, work):
                result = await work
            outcome = "succeeded"
        except KernelpoolError as error:
            outcome = error.code
            if notes := getattr(error, "__notes__", None):
                log.warning("pool not changed", extra={"pool": name, "error": error.message, "notes": notes})
            raise
        else:
            return result
        finally:
            seconds = time.monotonic() - began
            self._audit.record(Entry(action, outcome, who.tenant, who.name, name, seconds=seconds))

    @contextmanager
    def _alone(self, name: str, work: Coroutine[Any, Any, R]) -> Iterator[None]:
        if name in self._changing:
            work.close()
            raise Conflict(f"Pool '{name}' is being changed; try again when that is done.")
        self._changing.add(name)
        try:
            yield
        finally:
            self._changing.discard(name)

    async def _put(self, pool: PoolSettings) -> tuple[PoolInfo, bool]:
        self._gateway.admit()
        try:
            now = self._gateway.source_of(pool.name)
        except PoolNotFound:
            return await self._open(pool), True
        if (now.settings.container is None) != (pool.container is None):
            raise Conflict(
                f"Pool '{pool.name}' cannot change between a kernel and a custom container: sessions of both would be "
                "in it. Delete it, or make another one."
            )
        is_same = fingerprint(now.settings, now.runtime) == fingerprint(pool, now.runtime)
        if is_same and now.settings.runtime == pool.runtime:
            source = PoolSource(pool, now.runtime, now.backend, now.metadata)
        else:
            source = await self._make(pool)
        await asyncio.to_thread(self._store.save, pool)
        return self._gateway.change_pool(source), False

    async def _open(self, pool: PoolSettings) -> PoolInfo:
        if self._gateway.pool_count + len(self._coming) >= self._max_pools:
            raise QuotaExceeded(f"There are {self._max_pools} session pools, the most that are allowed.")
        self._coming.add(pool.name)
        try:
            source = await self._make(pool)
            await asyncio.to_thread(self._store.save, pool)
            try:
                return await self._gateway.open_pool(source)
            except KernelpoolError:
                await asyncio.to_thread(self._store.remove, pool.name)
                raise
        finally:
            self._coming.discard(pool.name)

    async def _delete(self, name: str) -> None:
        self._gateway.admit()
        self._gateway.source_of(name)
        if name in self._declared:
            raise Conflict(f"Pool '{name}' is declared in the gateway's settings; delete it there, and restart.")
        # The file first: a gateway that is killed half-way must not bring the pool back.
        await asyncio.to_thread(self._store.remove, name)
        await self._gateway.close_pool(name)
        await self.on_deleted(name)


async def _nobody(pool: str) -> None:
    pass


def validated(values: Mapping[str, Any]) -> PoolSettings:
    """Of JSON, in which a number is no text. Raises `InvalidRequest`, naming each field that is wrong."""
    try:
        return PoolSettings.model_validate(dict(values), strict=True)
    except ValidationError as error:
        raise InvalidRequest(sentences(error)) from None


def merged(pool: PoolSettings, changes: Mapping[str, Any]) -> PoolSettings:
    """RFC 7396. Raises `InvalidRequest`."""
    return validated(_merge(pool.model_dump(mode="json", context=REVEAL), {**changes, "name": pool.name}))


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(below)
    for name, value in above.items():
        if value is None:
            values.pop(name, None)
        elif isinstance(value, Mapping):
            under = values.get(name)
            values[name] = _merge(under if isinstance(under, dict) else {}, value)
        else:
            values[name] = value
    return values
