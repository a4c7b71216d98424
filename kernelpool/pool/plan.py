"""How many sandboxes to start and how many ready ones to retire, as arithmetic. The pool does what this says."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a pool aims at, and what it must never exceed."""

    ready: int = 2
    """Kept waiting for the next sessions."""
    max_sessions: int = 10
    """Of everything that exists: starting, ready, in use, on its way out."""
    start_concurrency: int = 2
    """Started at the same time, at most."""
    allocation_timeout: float = 30.0
    """Seconds that a caller waits for one that is not ready yet."""
    max_ready_age: float = 3600.0
    """Seconds after which a ready one is replaced by a fresh one."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A pool at one moment. Each sandbox is counted in exactly one of the first four, each caller in the fifth."""

    starting: int = 0
    ready: int = 0
    in_use: int = 0
    leaving: int = 0
    waiting: int = 0

    @property
    def total(self) -> int:
        return self.starting + self.ready + self.in_use + self.leaving


@dataclass(frozen=True, slots=True)
class Step:
    start: int = 0
    retire: int = 0


def plan(now: Snapshot, sizes: Sizes, aged: int = 0, at_once: int | None = None) -> Step:
    """Enough for everyone who waits and `sizes.ready` more, as far as there is room.

    `aged` of the ready ones should be replaced: one at a time, and the fresh one comes before the old one goes, unless
    there is no room for both. `at_once` bounds the starts under way, in place of `sizes.start_concurrency`.
    """
    target = min(sizes.ready, max(0, sizes.max_sessions - now.in_use - now.waiting))
    replaced = 1 if aged else 0
    at_once = sizes.start_concurrency if at_once is None else at_once

    wanted = now.waiting + target - (now.ready - replaced) - now.starting
    room = sizes.max_sessions - now.total
    start = max(0, min(wanted, room, at_once - now.starting))

    surplus = now.ready - target if not now.waiting else 0
    in_the_way = replaced if wanted > 0 and room <= 0 and not now.starting and not now.leaving else 0
    retire = max(0, min(now.ready, max(surplus, in_the_way)))
    return Step(start, retire)


def is_full(now: Snapshot, sizes: Sizes) -> bool:
    """Whether one more caller could not be served even if all that is starting, ready or leaving were for callers."""
    return now.in_use + now.waiting >= sizes.max_sessions


def retry_delay(failures: int, luck: float) -> float:
    """Seconds to wait after so many failures in a row: doubling, with up to half taken off by `luck` (0 to 1), so that
    pools that failed together do not try again together."""
    longest = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 16))
    return longest * (1.0 - luck / 2.0)
