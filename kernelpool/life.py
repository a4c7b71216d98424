"""The life of one session: who holds it, when it was last used, and when it is over. Decides; does nothing.

Times are the event loop's, in seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kernelpool.egress.policy import EgressPolicy
from kernelpool.journal import Record
from kernelpool.models import AgentStatus
from kernelpool.pool.launcher import Connected
from kernelpool.pool.settings import PoolSettings


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as its owner may see it. Times are seconds since the epoch."""

    pool: str
    identifier: str
    guid: str
    """Of this session, as logs name it and Jupyter clients know its kernel: never given to another one."""
    etag: str
    created_at: float
    last_accessed_at: float
    expires_at: float
    """If nobody uses it until then."""
    sandbox: str
    egress: EgressPolicy
    """What it may reach: of its own sandbox, whatever the pool says by now."""


class LiveSession:
    """An identifier's hold on one sandbox, from its allocation to its end."""

    def __init__(
        self, record: Record, connected: Connected, settings: PoolSettings, used_at: float, created_at: float
    ) -> None:
        self.record = record
        self.connected = connected
        self.agent = connected.agent
        self.ends_at = created_at + settings.max_alive
        self.ended: str | None = None
        """Why, once it has."""
        self.status: AgentStatus | None = None
        """What its agent said last, when asked for the metrics."""
        self.settings = settings
        """Of its pool when it began."""
        # The mutable state besides `ended`: callers who have it in hand, Jupyter clients that are connected to it, and
        # when it was last seen in use.
        self._holds = 0
        self._connections = 0
        self._used_at = used_at

    def __repr__(self) -> str:
        state = f"ended: {self.ended}" if self.ended else f"{self._holds} holds"
        return f"<LiveSession {self.record.session} in {self.connected!r} [{state}]>"

    @property
    def key(self) -> tuple[str, str]:
        return (self.record.tenant, self.record.identifier)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """While held its cooldown does not run; it starts anew when the last one lets go."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            self._used_at = asyncio.get_running_loop().time()

    @contextmanager
    def connection(self) -> Iterator[None]:
        """While a Jupyter client is connected its cooldown is a longer one; the shorter starts anew when the last has
        left."""
        self._connections += 1
        try:
            yield
        finally:
            self._connections -= 1
            self._used_at = asyncio.get_running_loop().time()

    def learn(self, status: AgentStatus, now: float) -> None:
        """What the agent says can lengthen its life, up to `max_alive`, but not shorten it."""
        cooldown = self._cooldown
        idle = 0.0 if status.running > 0 or status.queued > 0 else status.idle_seconds
        if not idle < cooldown:
            return
        # At most a second early or late, whatever the agent says: it must not make asking it a busy loop.
        self._used_at = max(self._used_at, now - min(max(idle, 0.0), self._longest_idle))

    def look_again(self, now: float) -> None:
        """In a second: it could not be asked."""
        self._used_at = max(self._used_at, now - self._longest_idle)

    def next_look(self, now: float) -> float:
        """Until when it lives if nobody uses it after `now`."""
        return min(self._used_until(now) + self._cooldown, self.ends_at)

    def next_guard(self, now: float) -> float:
        """The same, but no later than it would be if all Jupyter clients left now."""
        return min(self.next_look(now), now + self.settings.session_cooldown)

    def why_over(self, now: float) -> str | None:
        """None while it is not."""
        if now >= self.ends_at:
            return f"it reached its longest life of {self.settings.max_alive:g} s"
        if now >= self.next_look(now):
            return f"it was not used for {self._cooldown:g} s"
        return None

    def describe(self, now: float, epoch: float) -> SessionInfo:
        """`epoch` turns the loop's times into seconds since the epoch."""
        return SessionInfo(
            pool=self.record.pool,
            identifier=self.record.identifier,
            guid=self.record.session,
            etag=f"0--{self.record.session}",
            created_at=self.record.created_at,
            last_accessed_at=epoch + self._used_until(now),
            expires_at=epoch + self.next_look(now),
            sandbox=self.record.sandbox,
            egress=self.connected.sandbox.egress,
        )

    @property
    def _longest_idle(self) -> float:
        return self._cooldown - min(1.0, self._cooldown / 2)

    @property
    def _cooldown(self) -> float:
        return self.settings.connected_cooldown if self._connections else self.settings.session_cooldown

    def _used_until(self, now: float) -> float:
        return now if self._holds else self._used_at
