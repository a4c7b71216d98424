"""WarmPool: keeps things ready that are slow to start, and hands each of them out once.

The life of an item: `start` makes it → it is given to the longest waiting caller, else it stands ready, watched →
`acquire` hands it out → `discard` ends it. One that dies, or gets old, while it stands ready is discarded and replaced.
Nothing comes back: there is no second user. Whoever asks never starts anything; the refill task does.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter, deque
from collections.abc import Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from kernelpool.errors import (
    AllocationTimeout,
    BackendUnavailable,
    GatewayDraining,
    KernelpoolError,
    SessionLimitReached,
    StartFailed,
)
from kernelpool.pool.plan import Sizes, Snapshot, is_full, plan, retry_delay
from kernelpool.pool.waiter import Waiter
from kernelpool.tasks import Tasks
from kernelpool.telemetry import SILENT, Telemetry

log = logging.getLogger(__name__)
T = TypeVar("T", bound=Hashable)

GIVE_UP_AFTER = 3
"""Failed starts in a row after which those who wait are told, instead of being left to their timeout."""
DISCARD_SECONDS = 60.0
HEAD_START = 0.1
"""Seconds that a caller who was served at once has the machine's cores before a replacement starts."""


class Maker(Protocol[T]):
    """What the pool must be able to do with what it holds, without knowing what that is."""

    async def start(self) -> T:
        """Until it is ready for use. Bounded. Raises `KernelpoolError`; a failure or a cancel leaves nothing behind."""

    async def wait_dead(self, item: T) -> str:
        """Returns why, once it is of no use any more. Immediate when it is dead already."""

    async def discard(self, item: T) -> None:
        """Ends it, in whatever state it is."""

    def is_current(self, item: T) -> bool:
        """Whether it is as one that is started now would be. One that is not is replaced while it stands ready."""

    def is_acceptable(self, item: T) -> bool:
        """Whether somebody may still get it. All that are current are, and outdated ones if they do no harm."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """The pool now, and what happened since it began."""

    now: Snapshot
    outdated: int = 0
    """Of the ready ones: made from settings that the pool has no more."""
    started: int = 0
    start_failures: int = 0
    handed_out: int = 0
    died_ready: int = 0
    retired: int = 0
    discarded: int = 0
    """After somebody had them."""
    discard_failures: int = 0


@dataclass(slots=True)
class _Ready:
    """What is known of an item that nobody has yet."""

    expires_at: float
    watcher: asyncio.Task[None]


class WarmPool(Generic[T]):
    """An async context manager. Leaving it ends its tasks and keeps the items alive, for the next gateway to adopt."""

    def __init__(
        self,
        name: str,
        sizes: Sizes,
        maker: Maker[T],
        telemetry: Telemetry = SILENT,
        *,
        ready: Iterable[T] = (),
        in_use: Iterable[T] = (),
    ) -> None:
        """`ready` and `in_use` are items that an earlier gateway left behind."""
        self.name = name
        self._sizes = sizes
        self._maker = maker
        self._telemetry = telemetry
        self._adopted = tuple(ready)
        self._loop = asyncio.get_running_loop()
        # The mutable state: items that nobody has yet, that somebody has, on their way in and out; and who waits.
        # An item is in one place at any time, and moves without an await in between.
        self._ready: dict[T, _Ready] = {}
        self._in_use: set[T] = set(in_use)
        self._starting = 0
        self._leaving = 0
        self._waiting: deque[Waiter[T]] = deque()
        # Starts that failed in a row, and when the next one may be tried.
        self._failures = 0
        self._retry_at = 0.0
        self._counts = Counter[str]()
        self._changed = asyncio.Event()
        self._refusal: KernelpoolError | None = None
        self._upkeep = Tasks(f"pool {name}")
        self._discards = Tasks(f"pool {name}")

    def __repr__(self) -> str:
        now = self._snapshot()
        numbers = f"{now.ready} ready, {now.starting} starting, {now.in_use} in use, {now.waiting} waiting"
        leaving = f", {now.leaving} leaving" if now.leaving else ""
        failing = f", {self._failures} starts failed" if self._failures else ""
        return f"<WarmPool {self.name!r} [{numbers}{leaving}{failing}]{' closed' if self._refusal else ''}>"

    async def __aenter__(self) -> Self:
        for item in self._adopted:
            self._shelve(item)
        self._upkeep.spawn(self._refill(), "refill")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self, *, discard: bool = False) -> None:
        """Ends what is starting; what is ready or in use too, when asked to `discard`."""
        self.refuse()
        await self._upkeep.aclose()
        if discard:
            for item in list(self._ready):
                self._unshelve(item)
                self._dispose(item)
            for item in list(self._in_use):
                self.discard(item)
        await self._discards.aclose(grace=DISCARD_SECONDS)

    def refuse(self, why: KernelpoolError | None = None) -> None:
        """From now on nothing is handed out: neither to those who wait nor to those who come."""
        self._refusal = self._refusal or why or GatewayDraining("the gateway is shutting down")
        while self._waiting:
            self._waiting.popleft().fail(self._refusal)

    def change(self, sizes: Sizes) -> None:
        """What it aims at from now on, also after the maker has changed. What is in use stays as it is; what stands
        ready and is no longer acceptable goes at once."""
        self._sizes = sizes
        for item in [item for item in self._ready if not self._maker.is_acceptable(item)]:
            self._retire(item)
        self._changed.set()

    @property
    def ready(self) -> tuple[T, ...]:
        """Those that stand ready, the oldest first."""
        return tuple(self._ready)

    def statistics(self) -> Statistics:
        outdated = sum(not self._maker.is_current(item) for item in self._ready)
        return Statistics(self._snapshot(), outdated, **self._counts)

    # --- for callers

    async def acquire(self) -> T:
        """The oldest ready one at once, an outdated one only where there is no other; else waits in line for the next
        one that starts.

        The line is as long as there is room for sessions. Raises `SessionLimitReached`, `AllocationTimeout`, or why
        nothing could be started.
        """
        if self._refusal is not None:
            raise self._refusal
        if (item := self._take()) is not None:
            return item
        if is_full(now := self._snapshot(), self._sizes):
            raise SessionLimitReached(
                f"The request sessions count is '1'. There are already '{now.in_use + now.waiting}' active sessions "
                f"and the maximum active sessions count is '{self._sizes.max_sessions}'."
            )
        return await self._wait_in_line()

    def discard(self, item: T) -> asyncio.Task[bool]:
        """Ends one that was handed out; the pool sees to it whether or not the task is awaited. Its place is free when
        the task is done, which tells whether the item is gone for certain."""
        self._in_use.remove(item)
        self._counts["discarded"] += 1
        return self._dispose(item)

    def discard_ready(self, item: T, why: str) -> bool:
        """Ends one that stands ready. False when it does so no more: somebody has it, or it is gone."""
        if item not in self._ready:
            return False
        log.warning("ready sandbox discarded", extra={"pool": self.name, "item": repr(item), "why": why})
        self._unshelve(item)
        self._counts["died_ready"] += 1
        self._dispose(item)
        return True

    # --- handing over

    def _take(self) -> T | None:
        if not self._ready:
            return None
        item = next(filter(self._maker.is_current, self._ready), None) or next(iter(self._ready))
        self._ready.pop(item).watcher.cancel()
        self._hand_out(item)
        # Nobody waits for the one that replaces it, but somebody for what he does with this one: that goes first.
        self._loop.call_later(HEAD_START, self._changed.set)
        return item

    def _hand_out(self, item: T) -> None:
        self._in_use.add(item)
        self._counts["handed_out"] += 1

    async def _wait_in_line(self) -> T:
        waiter: Waiter[T] = Waiter()
        self._waiting.append(waiter)
        self._changed.set()
        timer = self._loop.call_later(self._sizes.allocation_timeout, self._time_out, waiter)
        try:
            return await waiter.wait()
        except asyncio.CancelledError:
            # Cancelled in the tick in which the item came: nobody else knows of it, so it must go on from here.
            if (item := waiter.leave()) is not None:
                self._in_use.remove(item)
                self._offer(item)
            raise
        finally:
            timer.cancel()
            with suppress(ValueError):  # whoever was served or failed is not in the line any more
                self._waiting.remove(waiter)
            self._changed.set()

    def _time_out(self, waiter: Waiter[T]) -> None:
        seconds = self._sizes.allocation_timeout
        waiter.fail(AllocationTimeout(f"no sandbox of pool '{self.name}' got ready within {seconds:g} s"))

    def _offer(self, item: T) -> None:
        """To the first in line who is still there; else it stands ready."""
        if not self._maker.is_acceptable(item):  # the pool has changed while it was on its way
            self._dispose(item)
            return
        while self._waiting:
            if self._waiting.popleft().give(item):
                self._hand_out(item)
                self._changed.set()
                return
        self._shelve(item)

    # --- standing ready

    def _shelve(self, item: T) -> None:
        # Ages differ by up to a fifth, so that those which started together do not all end together.
        age = self._sizes.max_ready_age * random.uniform(0.8, 1.0)  # noqa: S311
        watcher = self._upkeep.spawn(self._watch(item), "watch")
        self._ready[item] = _Ready(self._loop.time() + age, watcher)
        self._changed.set()

    def _unshelve(self, item: T) -> None:
        self._ready.pop(item).watcher.cancel()
        self._changed.set()

    async def _watch(self, item: T) -> None:
        try:
            why = await self._maker.wait_dead(item)
        except Exception as error:  # a sandbox that cannot be watched must not be handed out
            why = f"cannot be watched: {error!r}"
        self.discard_ready(item, why)

    # --- refill

    async def _refill(self) -> None:
        while True:
            self._changed.clear()
            time = self._loop.time()
            aged = sum(self._is_aged(item, time) for item in self._ready)
            step = plan(self._snapshot(), self._sizes, aged, self._starts_at_once(time))
            for _ in range(step.retire):
                self._retire(self._worst())
            for _ in range(step.start):
                self._starting += 1
                self._upkeep.spawn(self._start(), "start")
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._next_look(time)):
                    await self._changed.wait()

    def _is_aged(self, item: T, time: float) -> bool:
        return self._ready[item].expires_at <= time or not self._maker.is_current(item)

    def _snapshot(self) -> Snapshot:
        return Snapshot(self._starting, len(self._ready), len(self._in_use), self._leaving, len(self._waiting))

    def _starts_at_once(self, time: float) -> int:
        """After a failure one start at a time, and that one not before its time."""
        if not self._failures:
            return self._sizes.start_concurrency
        return 1 if time >= self._retry_at else 0

    def _next_look(self, time: float) -> float | None:
        """When the plan may change although nothing happens."""
        moments = [entry.expires_at for entry in self._ready.values()]
        if self._failures:
            moments.append(self._retry_at)
        return min((moment for moment in moments if moment > time), default=None)

    async def _start(self) -> None:
        began = self._loop.time()
        try:
            item = await self._maker.start()
        except Exception as error:  # the pool must outlive whatever a start can raise
            self._starting -= 1
            code = error.code if isinstance(error, KernelpoolError) else type(error).__name__
            self._telemetry.sandbox_started(self.name, self._loop.time() - began, failure=code)
            self._note_failure(error)
        else:
            self._starting -= 1
            self._failures = 0
            self._counts["started"] += 1
            self._telemetry.sandbox_started(self.name, self._loop.time() - began)
            self._offer(item)

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1
        self._counts["start_failures"] += 1
        delay = retry_delay(self._failures, random.random())  # noqa: S311
        self._retry_at = self._loop.time() + delay
        known = isinstance(error, KernelpoolError)
        facts = {"pool": self.name, "failures": self._failures, "retry_in": round(delay, 2), "error": str(error)}
        log.warning("sandbox did not start", extra=facts, exc_info=None if known else error)
        if self._failures >= GIVE_UP_AFTER:
            kind = BackendUnavailable if isinstance(error, BackendUnavailable) else StartFailed
            text = str(error) if known else "a sandbox did not start"
            while self._waiting:
                self._waiting.popleft().fail(kind(text))
        self._changed.set()

    # --- leaving

    def _worst(self) -> T:
        return min(self._ready, key=lambda item: (self._maker.is_current(item), self._ready[item].expires_at))

    def _retire(self, item: T) -> None:
        self._unshelve(item)
        self._counts["retired"] += 1
        self._dispose(item)

    def _dispose(self, item: T) -> asyncio.Task[bool]:
        self._leaving += 1
        return self._discards.spawn(self._end(item), "discard")

    async def _end(self, item: T) -> bool:
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                await self._maker.discard(item)
        except Exception as error:  # what cannot be ended now is found and ended by the next start of the gateway
            self._counts["discard_failures"] += 1
            log.error("sandbox was not discarded", extra={"pool": self.name, "item": repr(item)}, exc_info=error)
            return False
        else:
            return True
        finally:
            self._leaving -= 1
            self._changed.set()
