"""Sessions: (tenant, identifier) → sandbox, for one pool. Allocation, holds, expiry, death, and what is said later.

A session ends in one place, `_end`: the identifier is free at once; sandbox and record go in the background.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from uuid import uuid4

from kernelpool.agents import pulse
from kernelpool.errors import (
    AgentFault,
    BackendUnavailable,
    Conflict,
    GatewayDraining,
    SandboxLost,
    SandboxUnreachable,
    SessionNotFound,
    StartFailed,
)
from kernelpool.journal import Journal, JupyterSession, Record
from kernelpool.life import LiveSession, SessionInfo
from kernelpool.models import Activation, AgentStatus, SessionEnd
from kernelpool.pool.launcher import WHY_SECONDS, Connected
from kernelpool.pool.pool import DISCARD_SECONDS, WarmPool
from kernelpool.pool.settings import PoolSettings
from kernelpool.tasks import Tasks
from kernelpool.telemetry import SILENT, Telemetry

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Tenant, identifier."""

ALLOCATION_ATTEMPTS = 3
"""Ready sandboxes that may turn out dead when activated, one after the other, before a caller is told."""
TOMBSTONES = 1024
ASKED_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Survivor:
    """A session that an earlier gateway left behind, alive."""

    record: Record
    connected: Connected
    status: AgentStatus


@dataclass(frozen=True, slots=True)
class Held:
    """A session in a caller's hand."""

    live: LiveSession
    is_new: bool
    allocation_seconds: float


@dataclass(slots=True)
class _Coming:
    """A session being allocated, and how many callers wait for it."""

    task: asyncio.Task[LiveSession]
    callers: int = 0


class Sessions:
    """An async context manager. Leaving it keeps the sessions alive, for the next gateway."""

    def __init__(
        self,
        settings: PoolSettings,
        warm: WarmPool[Connected],
        journal: Journal,
        survivors: Iterable[Survivor] = (),
        wall: Callable[[], float] = time.time,
        telemetry: Telemetry = SILENT,
    ) -> None:
        self._telemetry = telemetry
        self._settings = settings
        self._warm = warm
        self._journal = journal
        self._survivors = tuple(survivors)
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        # The mutable state: sessions that are there, those on their way, and what is to be said of those that are gone.
        self._live: dict[Key, LiveSession] = {}
        self._coming: dict[Key, _Coming] = {}
        self._tombstones: OrderedDict[Key, str] = OrderedDict()
        self._closed = False
        self._guards = Tasks(f"sessions {settings.name}")
        self._endings = Tasks(f"sessions {settings.name}")

    def __repr__(self) -> str:
        return f"<Sessions {self._settings.name!r} [{len(self._live)} live, {len(self._coming)} coming]>"

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[LiveSession]:
        """The oldest first."""
        return iter(sorted(self._live.values(), key=lambda live: live.record.created_at))

    async def __aenter__(self) -> Self:
        now = self._loop.time()
        for survivor in self._survivors:
            # What a hostile agent says of its idle time can only lengthen its own life, up to `max_alive`.
            idle = survivor.status.idle_seconds
            self._settle(survivor.record, survivor.connected, now - idle if idle > 0 else now)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        await self._guards.aclose()
        await self._endings.aclose(grace=DISCARD_SECONDS)

    # --- for callers

    @asynccontextmanager
    async def use(self, tenant: str, identifier: str) -> AsyncIterator[Held]:
        """The identifier's session, allocated when there is none. Callers who race for a new one get the same."""
        began = self._loop.time()
        key = (tenant, identifier)
        is_new = False
        while (live := self._live.get(key)) is None:
            is_new = key not in self._coming
            live = await self._join(key)
            if live.ended is None:
                break
        with live.hold():
            yield Held(live, is_new, self._loop.time() - began)

    @asynccontextmanager
    async def find(self, tenant: str, identifier: str) -> AsyncIterator[Held]:
        """As `use`, but raises `SessionNotFound` instead of allocating."""
        live = self._get(tenant, identifier)
        with live.hold():
            yield Held(live, False, 0.0)

    def of_guid(self, tenant: str, guid: str) -> LiveSession | None:
        """A tenant's own session."""
        mine = (live for live in self._live.values() if live.record.tenant == tenant)
        return next((live for live in mine if live.record.session == guid), None)

    async def keep(self, live: LiveSession, jupyter: tuple[JupyterSession, ...]) -> None:
        """Remembers, over a restart too, what a Jupyter client calls sessions. Raises `SandboxLost` when it is over."""
        if live.ended is not None:
            raise SandboxLost(f"The session ended: {live.ended}.")
        live.record = live.record.model_copy(update={"jupyter": jupyter})
        await self._journal.write(live.record)

    def has(self, tenant: str, identifier: str) -> bool:
        """Whether `use` would find it there, or on its way."""
        return (tenant, identifier) in self._live or (tenant, identifier) in self._coming

    async def stop(self, tenant: str, identifier: str) -> None:
        """Returns when its sandbox is gone. Raises `SessionNotFound`."""
        self._refuse_when_closed()
        await asyncio.shield(
            self._end(self._get(tenant, identifier), SessionEnd.STOPPED, "it was stopped", notice=False)
        )

    def change(self, settings: PoolSettings) -> None:
        """For sessions that begin from now on. Those that are there keep what they were promised."""
        self._settings = settings

    def count(self, tenant: str) -> int:
        """A tenant's sessions, those on their way included."""
        return sum(key[0] == tenant for key in self._live.keys() | self._coming.keys())

    async def stored(self, tenant: str) -> int:
        """Bytes in the files of a tenant's sessions, as their agents say: each lies for itself only, and no more than
        its workspace holds."""
        mine = [live for live in self._live.values() if live.record.tenant == tenant]
        gate = asyncio.Semaphore(ASKED_AT_ONCE)
        return sum(await asyncio.gather(*(self._stored_in(live, gate) for live in mine)))

    async def _stored_in(self, live: LiveSession, gate: asyncio.Semaphore) -> int:
        async with gate:
            status = await pulse(live.agent, tries=1)
        return min(status.workspace_bytes, live.settings.limits.workspace) if status else 0

    async def stop_all(self, why: str = "the gateway was told to end all sessions") -> None:
        """Those on their way as well, once they are there. The pool has to hand out nothing more by then."""
        while self._live or self._coming:
            endings = [self._end(live, SessionEnd.STOPPED, why, notice=False) for live in self]
            await asyncio.wait([*endings, *(coming.task for coming in self._coming.values())])

    async def lost(self, live: LiveSession, why: str, *, is_certain: bool = False) -> str:
        """Ends a session whose sandbox does not answer. Says why, in the backend's words when it knows them.

        Unless that `is_certain`, asks it once more: a connection can break for reasons that have nothing to do with
        the sandbox, and a session's variables are not given up for one. Raises `SandboxUnreachable` when it answers.
        """
        if live.ended is not None:
            return live.ended
        self._refuse_when_closed()
        end = SessionEnd.LOST
        try:
            async with asyncio.timeout(WHY_SECONDS):
                why = f"its sandbox died: {await live.connected.sandbox.wait_dead()}"
                end = SessionEnd.DIED
                is_certain = True
        except TimeoutError:
            self._refuse_when_closed()
        if live.ended is None and not is_certain and await pulse(live.agent, tries=1) is not None:
            raise SandboxUnreachable("The connection to the session's sandbox broke; the session goes on.")
        self._refuse_when_closed()
        if live.ended is None:
            self._end(live, end, why, notice=True)
        return live.ended or why

    def remember(self, tenant: str, identifier: str, why: str) -> None:
        """Of a session that is gone: its caller is told when he comes back."""
        self._tombstones[(tenant, identifier)] = why
        self._tombstones.move_to_end((tenant, identifier))
        while len(self._tombstones) > TOMBSTONES:
            self._tombstones.popitem(last=False)

    def guid(self, tenant: str, identifier: str) -> str:
        """For logs; "" when there is no such session."""
        live = self._live.get((tenant, identifier))
        return live.record.session if live is not None else ""

    def age(self, live: LiveSession) -> float:
        return max(0.0, self._wall() - live.record.created_at)

    def describe(self, live: LiveSession) -> SessionInfo:
        now = self._loop.time()
        return live.describe(now, epoch=self._wall() - now)

    # --- allocation

    async def _join(self, key: Key) -> LiveSession:
        """Waits with all others who want this one. It is nobody's own: the first may leave, the last one ends it."""
        coming = self._coming.get(key)
        if coming is None:
            coming = self._coming[key] = _Coming(self._endings.spawn(self._allocate_watched(key), "allocate"))
            coming.task.add_done_callback(lambda _: self._arrived(key, coming))
        coming.callers += 1
        try:
            return await asyncio.shield(coming.task)
        finally:
            coming.callers -= 1
            if not coming.callers and not coming.task.done():
                self._arrived(key, coming)
                coming.task.cancel()

    def _arrived(self, key: Key, coming: _Coming) -> None:
        if self._coming.get(key) is coming:
            del self._coming[key]

    async def _allocate_watched(self, key: Key) -> LiveSession:
        with self._telemetry.allocating(self._settings.name, warm=bool(self._warm.ready)) as span:
            live = await self._allocate(key)
            span.set_attribute("kernelpool.session", live.record.session)
            return live

    async def _allocate(self, key: Key) -> LiveSession:
        for _ in range(ALLOCATION_ATTEMPTS):
            connected = await self._warm.acquire()
            try:
                return await self._activate(key, connected)
            except (SandboxLost, AgentFault, Conflict) as error:
                facts = {"pool": self._settings.name, "sandbox": connected.sandbox.id, "error": str(error)}
                log.warning("ready sandbox could not be activated", extra=facts)
        raise StartFailed(f"{ALLOCATION_ATTEMPTS} ready sandboxes in a row could not be activated")

    async def _activate(self, key: Key, connected: Connected) -> LiveSession:
        why = self._tombstones.get(key)
        notice = why and f"The session before this one ended: {why}. Its variables and files are gone."
        record = self._record(key, connected)
        activation = Activation(record.session, self._settings.cooldown, self._settings.max_alive, notice)
        try:
            await self._journal.write(record)
            await connected.agent.activate(activation)
        except BaseException:
            self._endings.spawn(self._clear(record, connected, "it did not begin"), "clear")
            raise
        self._tombstones.pop(key, None)
        return self._settle(record, connected, self._loop.time())

    def _record(self, key: Key, connected: Connected) -> Record:
        tenant, identifier = key
        return Record(
            sandbox=connected.sandbox.id,
            pool=self._settings.name,
            tenant=tenant,
            identifier=identifier,
            session=str(uuid4()),
            created_at=self._wall(),
        )

    def _settle(self, record: Record, connected: Connected, used_at: float) -> LiveSession:
        age = max(0.0, self._wall() - record.created_at)
        live = LiveSession(record, connected, self._settings, used_at, self._loop.time() - age)
        self._live[live.key] = live
        self._guards.spawn(self._guard(live), "guard", apart=True)
        return live

    # --- the end

    async def _guard(self, live: LiveSession) -> None:
        """Ends it when its sandbox dies, or its time is over."""
        while live.ended is None:
            try:
                end, why = await self._wait_over(live)
            except Exception as error:  # a session that cannot be watched would stay for ever
                log.error("sandbox cannot be watched", extra={"sandbox": live.record.sandbox}, exc_info=error)
                end, why = SessionEnd.LOST, "its sandbox could not be watched"
            if why is not None and live.ended is None:
                self._end(live, end, why, notice=True)

    async def _wait_over(self, live: LiveSession) -> tuple[SessionEnd, str | None]:
        try:
            async with asyncio.timeout_at(live.next_guard(self._loop.time())):
                return SessionEnd.DIED, f"its sandbox died: {await live.connected.sandbox.wait_dead()}"
        except TimeoutError:
            why = await self._why_over(live)
        return SessionEnd.TOO_OLD if self._loop.time() >= live.ends_at else SessionEnd.UNUSED, why

    async def _why_over(self, live: LiveSession) -> str | None:
        """Asks the agent before it ends an idle session: code that was submitted may run while nobody holds it."""
        now = self._loop.time()
        if live.ends_at > now:
            if live.next_look(now) > now:
                return None
            try:
                status = await pulse(live.agent, tries=1)
            except BackendUnavailable:
                live.look_again(self._loop.time())
                return None
            if status is not None:
                live.learn(status, self._loop.time())
            else:
                log.warning("idle agent did not answer", extra={"sandbox": live.record.sandbox})
        return live.why_over(self._loop.time())

    def _end(self, live: LiveSession, end: SessionEnd, why: str, *, notice: bool) -> asyncio.Task[None]:
        live.ended = why
        del self._live[live.key]
        if notice:
            self.remember(*live.key, why)
        self._telemetry.observer.session_ended(self._settings.name, end)
        log.info("session ended", extra={"session": live.record.session, "sandbox": live.record.sandbox, "why": why})
        return self._endings.spawn(self._clear(live.record, live.connected, why), "clear")

    async def _clear(self, record: Record, connected: Connected, why: str) -> None:
        """The sandbox first: one without a record counts as never used, so it must not outlive its record."""
        if await self._warm.discard(connected):
            await self._journal.remove(record.sandbox)
        else:
            await self._journal.write(record.model_copy(update={"ended": why}))

    def _refuse_when_closed(self) -> None:
        """A call that outlasts the gateway loses its connection, not its sandbox: that one is for the next gateway."""
        if self._closed:
            raise GatewayDraining("the gateway is shutting down; the session goes on")

    def _get(self, tenant: str, identifier: str) -> LiveSession:
        live = self._live.get((tenant, identifier))
        if live is None:
            raise SessionNotFound(f"There is no session '{identifier}' in pool '{self._settings.name}'.")
        return live
