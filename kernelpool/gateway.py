"""Gateway: the dozen things that a client can ask for, whatever the surface."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self
from uuid import uuid4

from kernelpool.agents import Connect
from kernelpool.auth.principal import Principal
from kernelpool.backends.base import Backend, RuntimeMetadata
from kernelpool.backends.container import Probe
from kernelpool.errors import Conflict, InvalidIdentifier, InvalidIdentifierLength, KernelNotFound, PoolNotFound
from kernelpool.heartbeat import Heartbeat
from kernelpool.journal import Journal
from kernelpool.kernel import Kernel
from kernelpool.life import LiveSession, SessionInfo
from kernelpool.liveness import Liveness
from kernelpool.pool.launcher import Connected, Launcher
from kernelpool.pool.pool import WarmPool
from kernelpool.pool.settings import PoolSettings
from kernelpool.quotas import Quotas
from kernelpool.recovery import Found, Recovery
from kernelpool.runtimes import Runtime
from kernelpool.session import Admission, Calls, Session
from kernelpool.sessions import Held, Sessions
from kernelpool.survey import Survey, Surveyed
from kernelpool.telemetry import SILENT, Telemetry
from kernelpool.telemetry.audit import Action
from kernelpool.telemetry.endings import Endings
from kernelpool.telemetry.logs import log_context
from kernelpool.telemetry.readings import PoolReading
from kernelpool.telemetry.watch import Watch, Who

__all__ = ["Gateway", "PoolInfo", "PoolSource", "Principal", "Session", "SessionInfo", "new_execution_id"]

log = logging.getLogger(__name__)

BEATS_PER_LEASE = 4
_IDENTIFIER = re.compile(r"""[A-Za-z0-9_|}{\[\]:";'<>?/.,@#$%^&*()\-+=!~`]*""")


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """A pool's numbers now, and the settings that surfaces need."""

    name: str
    runtime: str
    language: str
    display_name: str
    has_debugger: bool
    ready: int
    outdated: int
    """Of the ready ones: made from settings that the pool has no more."""
    starting: int
    waiting: int
    """Callers who wait for a sandbox."""
    sessions: int
    settings: PoolSettings


@dataclass(frozen=True, slots=True)
class PoolSource:
    """What a pool is made from. The backend has prepared the runtime, and is entered and left by whoever made it."""

    settings: PoolSettings
    runtime: Runtime
    backend: Backend
    metadata: RuntimeMetadata


@dataclass(slots=True)
class _Pool:
    source: PoolSource
    launcher: Launcher
    warm: WarmPool[Connected]
    sessions: Sessions
    heartbeat: Heartbeat
    liveness: Liveness | None
    """Of custom containers."""
    stack: AsyncExitStack


class Gateway:
    """An async context manager. Entering it takes over what an earlier gateway left behind; leaving it keeps sessions
    and ready sandboxes alive for the next one, unless it is closed with `aclose(discard=True)` before."""

    def __init__(
        self,
        sources: Sequence[PoolSource],
        connect: Connect,
        journal: Journal,
        quotas: Quotas | None = None,
        wall: Callable[[], float] = time.time,
        telemetry: Telemetry = SILENT,
    ) -> None:
        self._telemetry = telemetry
        self._endings = Endings(telemetry.observer, telemetry.tracing)
        self._survey = Survey()
        self._sources = tuple(sources)
        self._connect = connect
        self._journal = journal
        self._quotas = quotas or Quotas()
        self._wall = wall
        self._pools: dict[str, _Pool] = {}
        self._calls = Calls()

    def __repr__(self) -> str:
        pools = ", ".join(f"{pool.warm!r} {pool.sessions!r}" for pool in self._pools.values())
        return f"<Gateway {pools or 'closed'}{' draining' if self._calls.draining else ''}>"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as on_failure:
            launchers: dict[str, Launcher] = {}
            stacks: dict[str, AsyncExitStack] = {}
            for source in self._sources:
                name = source.settings.name
                stacks[name] = await on_failure.enter_async_context(AsyncExitStack())
                launchers[name] = await stacks[name].enter_async_context(self._launcher(source))
            backends = {id(source.backend): source.backend for source in self._sources}
            found = await Recovery(launchers, self._journal).run(backends.values())
            for source in self._sources:
                name = source.settings.name
                self._pools[name] = await self._open(stacks[name], source, launchers[name], found[name])
            on_failure.pop_all()  # from now on each pool has its own
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def session_in(self, sandbox: str) -> str:
        """The guid of the session that has this sandbox, for logs; "" when none has."""
        lives = (live for pool in self._pools.values() for live in pool.sessions)
        return next((live.record.session for live in lives if live.record.sandbox == sandbox), "")

    async def aclose(self, *, discard: bool = False) -> None:
        """`discard` destroys every session and ready sandbox instead of leaving them to the next gateway."""
        self._calls.draining = True
        pools = list(self._pools.values())
        async with AsyncExitStack() as stack:
            for pool in pools:
                stack.push_async_exit(pool.stack)
                pool.warm.refuse()
            await self._calls.aclose()
            if discard:
                for pool in pools:
                    await pool.sessions.stop_all()
                    await pool.warm.aclose(discard=True)
        self._pools.clear()

    async def drain(self, timeout: float) -> int:
        """Refuses new sessions and executions with `GatewayDraining`, and waits for the callers who wait for one, at
        most `timeout` seconds. Returns how many still wait. Polling, streams and files go on."""
        self._calls.draining = True
        await self._calls.wait_idle(timeout)
        return len(self._calls)

    def pool(self, principal: Principal, name: str) -> PoolInfo:
        """Raises `PoolNotFound`."""
        return _pool_info(self._pool(name))

    def pools(self, principal: Principal) -> Sequence[PoolInfo]:
        """Those that the principal may enter."""
        return [_pool_info(pool) for name, pool in self._pools.items() if principal.may_enter(name)]

    def runs_containers(self, name: str) -> bool:
        """Whether the paths below a pool belong to custom containers. Tells nobody whether there is such a pool."""
        pool = self._pools.get(name)
        return pool is not None and pool.source.settings.container is not None

    @asynccontextmanager
    async def use(self, principal: Principal, pool: str, identifier: str) -> AsyncIterator[Session]:
        """The identifier's session, allocated from the pool when there is none yet.
        Raises `PoolNotFound`, `InvalidIdentifier`, `SessionLimitReached`, `QuotaExceeded`, `AllocationTimeout`,
        `GatewayDraining`."""
        owner = self._pool(pool)
        _check_identifier(identifier)
        if not owner.sessions.has(principal.tenant, identifier):
            self._calls.admit()
            await self._check_quota(owner, principal.tenant, identifier)
        async with owner.sessions.use(principal.tenant, identifier) as held:
            with _log_context(held):
                yield self._session(owner, principal, held)

    @asynccontextmanager
    async def find(self, principal: Principal, pool: str, identifier: str) -> AsyncIterator[Session]:
        """As `use`, but raises `SessionNotFound` instead of allocating."""
        owner = self._pool(pool)
        _check_identifier(identifier)
        async with owner.sessions.find(principal.tenant, identifier) as held:
            with _log_context(held):
                yield self._session(owner, principal, held)

    async def list_sessions(self, principal: Principal, pool: str) -> Sequence[SessionInfo]:
        """The principal's own, oldest first."""
        sessions = self._pool(pool).sessions
        return [sessions.describe(live) for live in sessions if live.record.tenant == principal.tenant]

    def kernels(self, principal: Principal, name: str | None = None) -> list[Kernel]:
        """The principal's sessions as kernels, oldest first: of one pool, or of all that he may enter. Those with
        custom containers have none."""
        return [
            self._kernel(pool, principal, live)
            for pool in self._kernel_pools(principal, name)
            for live in pool.sessions
            if live.record.tenant == principal.tenant
        ]

    def kernel(self, principal: Principal, guid: str, name: str | None = None) -> Kernel:
        """Raises `KernelNotFound`."""
        for pool in self._kernel_pools(principal, name):
            if (live := pool.sessions.of_guid(principal.tenant, guid)) is not None:
                return self._kernel(pool, principal, live)
        raise KernelNotFound(f"There is no kernel '{guid[:40]}'.")

    async def stop_session(self, principal: Principal, pool: str, identifier: str) -> None:
        """Destroys it now, whatever runs. Raises `SessionNotFound`."""
        owner = self._pool(pool)
        _check_identifier(identifier)
        watch = self._watch(owner, principal, owner.sessions.guid(principal.tenant, identifier))
        with watch.acting(Action.SESSION_STOP):
            await owner.sessions.stop(principal.tenant, identifier)

    async def metadata(self, principal: Principal, pool: str) -> RuntimeMetadata:
        return self._pool(pool).source.metadata

    # --- for whoever manages pools

    def admit(self) -> None:
        """Raises `GatewayDraining` when it takes no new work."""
        self._calls.admit()

    async def open_pool(self, source: PoolSource) -> PoolInfo:
        """Adds a pool. Raises `Conflict` when there is one of that name."""
        name = source.settings.name
        if name in self._pools:
            raise Conflict(f"There is a session pool '{name}' already.")
        self._calls.admit()
        async with AsyncExitStack() as on_failure:
            stack = await on_failure.enter_async_context(AsyncExitStack())
            launcher = await stack.enter_async_context(self._launcher(source))
            self._pools[name] = await self._open(stack, source, launcher, Found())
            on_failure.pop_all()
        return _pool_info(self._pools[name])

    def change_pool(self, source: PoolSource) -> PoolInfo:
        """Gives a pool other settings. Sessions stay as they are; ready sandboxes that differ are replaced one by one.
        Raises `PoolNotFound`."""
        pool = self._pool(source.settings.name)
        pool.source = source
        pool.launcher.change(source.settings, source.runtime, source.backend)
        pool.sessions.change(source.settings)
        pool.heartbeat.quicken(source.settings.lease / BEATS_PER_LEASE)
        if pool.liveness is not None:
            pool.liveness.change(_liveness_probe(source.settings))
        pool.warm.change(source.settings.sizes)
        log.info("pool changed", extra={"pool": source.settings.name})
        return _pool_info(pool)

    async def close_pool(self, name: str) -> None:
        """Destroys a pool with all that is in it. Nothing finds it any more from the beginning on.
        Raises `PoolNotFound`."""
        pool = self._pool(name)
        del self._pools[name]
        pool.warm.refuse(PoolNotFound(f"The session pool '{name}' was deleted."))
        async with pool.stack:
            await pool.sessions.stop_all("its pool was deleted")
            await pool.warm.aclose(discard=True)
        self._telemetry.observer.pool_closed(name)
        log.info("pool deleted", extra={"pool": name})

    @property
    def pool_count(self) -> int:
        return len(self._pools)

    def source_of(self, name: str) -> PoolSource:
        """Raises `PoolNotFound`."""
        return self._pool(name).source

    async def _check_quota(self, owner: _Pool, tenant: str, identifier: str) -> None:
        """Whether a tenant may have one session more. What it has is counted last, in the tick of the allocation, by
        when another caller may have asked for the same one."""
        self._quotas.check_execution(tenant)
        await self._check_stored(tenant)
        if not owner.sessions.has(tenant, identifier):
            self._quotas.check_sessions(tenant, sum(pool.sessions.count(tenant) for pool in self._pools.values()))

    async def _check_stored(self, tenant: str) -> None:
        if self._quotas.of(tenant).stored_bytes is not None:
            stored = [await pool.sessions.stored(tenant) for pool in list(self._pools.values())]
            self._quotas.check_stored(tenant, sum(stored))

    def _launcher(self, source: PoolSource) -> Launcher:
        return Launcher(source.settings, source.runtime, source.backend, self._connect)

    async def survey(self) -> Sequence[PoolReading]:
        """All pools' numbers and all sessions' usage, for the operator. Bounded, and no more often than agents like."""
        return await self._survey.take(
            [Surveyed(pool.source.settings.sizes, pool.warm, pool.sessions) for pool in self._pools.values()]
        )

    async def _open(self, stack: AsyncExitStack, source: PoolSource, launcher: Launcher, found: Found) -> _Pool:
        settings = source.settings
        in_use = [survivor.connected for survivor in found.survivors]
        warm = WarmPool(settings.name, settings.sizes, launcher, self._telemetry, ready=found.ready, in_use=in_use)
        sessions = Sessions(settings, warm, self._journal, found.survivors, self._wall, self._telemetry)
        for record, why in found.lost:
            sessions.remember(record.tenant, record.identifier, why)
        await stack.enter_async_context(warm)
        await stack.enter_async_context(sessions)
        heartbeat = await stack.enter_async_context(Heartbeat(settings.lease / BEATS_PER_LEASE, warm, sessions))
        liveness = None
        if settings.container is not None:
            liveness = await stack.enter_async_context(Liveness(warm, sessions, _liveness_probe(settings), self._wall))
        log.info("pool opened", extra={"pool": settings.name, "adopted": len(found.ready), "sessions": len(in_use)})
        return _Pool(source, launcher, warm, sessions, heartbeat, liveness, stack)

    def _kernel_pools(self, principal: Principal, name: str | None) -> list[_Pool]:
        pools = self._pools if name is None else {name: self._pool(name)}
        return [
            pool for name, pool in pools.items() if principal.may_enter(name) and pool.source.settings.container is None
        ]

    def _kernel(self, pool: _Pool, principal: Principal, live: LiveSession) -> Kernel:
        watch = self._watch(pool, principal, live.record.session)
        return Kernel(live, pool.sessions, self._calls, self._admission(principal.tenant), watch)

    def _session(self, pool: _Pool, principal: Principal, held: Held) -> Session:
        watch = self._watch(pool, principal, held.live.record.session)
        admission = self._admission(principal.tenant)
        return Session(held, pool.sessions, pool.source.settings, self._calls, admission, watch)

    def _admission(self, tenant: str) -> Admission:
        return Admission(partial(self._quotas.count_execution, tenant), partial(self._check_stored, tenant))

    def _watch(self, pool: _Pool, principal: Principal, session: str) -> Watch:
        who = Who(principal.tenant, principal.name)
        return Watch(self._telemetry, self._endings, who, pool.source.settings.name, session)

    def _pool(self, name: str) -> _Pool:
        pool = self._pools.get(name)
        if pool is None:
            raise PoolNotFound(f"There is no session pool '{name}'.")
        return pool


def _log_context(held: Held) -> AbstractContextManager[None]:
    record = held.live.record
    return log_context(pool=record.pool, session=record.session, sandbox=record.sandbox)


def new_execution_id() -> str:
    """For callers who brought none."""
    return uuid4().hex


def _pool_info(pool: _Pool) -> PoolInfo:
    settings = pool.source.settings
    statistics = pool.warm.statistics()
    return PoolInfo(
        name=settings.name,
        runtime=settings.runtime,
        language=pool.source.runtime.language,
        display_name=pool.source.runtime.display_name,
        has_debugger=pool.source.runtime.debugger,
        ready=statistics.now.ready,
        outdated=statistics.outdated,
        starting=statistics.now.starting,
        waiting=statistics.now.waiting,
        sessions=len(pool.sessions),
        settings=settings,
    )


def _liveness_probe(settings: PoolSettings) -> Probe | None:
    return settings.container.to_spec().liveness if settings.container else None


def _check_identifier(identifier: str) -> None:
    """ACA's rule: one set of characters, 4 to 128 of them."""
    if not 4 <= len(identifier) <= 128:
        raise InvalidIdentifierLength(f"The session identifier has {len(identifier)} characters; 4 to 128 are allowed.")
    if not _IDENTIFIER.fullmatch(identifier):
        raise InvalidIdentifier("The session identifier has a character that is not allowed.")
