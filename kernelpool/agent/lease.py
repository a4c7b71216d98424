"""The dead-man's switch: an agent that nobody needs any more ends itself, whatever became of its gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from kernelpool.models import Activation

GRACE = 60.0
"""Seconds beyond the session's own limits: the gateway is to end it, the agent only if there is none."""


class Lease:
    """When this sandbox ends by itself, as arithmetic on what it has heard."""

    def __init__(self, ready_for: float, is_busy: Callable[[], bool]) -> None:
        """`ready_for`: seconds without a word from a gateway that a sandbox waits to be activated.
        While it `is_busy` silence does not count: a running execution is not cut short by a gateway that is down."""
        self._ready_for = ready_for
        self._is_busy = is_busy
        self._heard_at = time.monotonic()
        self._activated_at = 0.0
        self._activation: Activation | None = None

    @property
    def activation(self) -> Activation | None:
        return self._activation

    def heard(self) -> None:
        """A gateway has spoken."""
        self._heard_at = time.monotonic()

    def activate(self, activation: Activation) -> bool:
        """False when it was activated before: once in a life."""
        if self._activation is not None:
            return False
        self._activation = activation
        self._activated_at = time.monotonic()
        return True

    @property
    def remaining(self) -> float:
        """Seconds until the end; not positive: now."""
        now = time.monotonic()
        if self._activation is None:
            return self._heard_at + self._ready_for - now
        until = self._activated_at + self._activation.max_alive
        if not self._is_busy():
            until = min(until, self._heard_at + self._activation.cooldown)
        return until + GRACE - now

    async def wait_expired(self) -> None:
        """Returns when the lease has run out."""
        # The end moves whenever a gateway speaks; looking again once a minute is cheaper than moving a timer.
        while (remaining := self.remaining) > 0:  # noqa: ASYNC110
            await asyncio.sleep(min(remaining, GRACE))
