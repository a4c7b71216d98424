"""Ledger: tells of decisions, so many a second for each sandbox; of the rest it tells how many there were."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

from kernelpool.egress.decisions import Decision, Outcome

_PACE: Final = 10.0
_BURST: Final = 50.0
_SUM_SECONDS: Final = 1.0


class Ledger:
    """`send` says whether the message could be sent; what could not counts as not told."""

    def __init__(self, send: Callable[[Decision], bool]) -> None:
        self._send = send
        self._loop = asyncio.get_running_loop()
        # The mutable state: what each sandbox may still say, and since when; and what was not said.
        self._allowance: dict[str, tuple[float, float]] = {}
        self._untold: Counter[tuple[str, Outcome]] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, decision: Decision) -> None:
        if self._may_tell(decision.sandbox) and self._send(decision):
            return
        if not decision.over:  # it was counted when it began
            self._untold[decision.sandbox, decision.outcome] += decision.count
        if self._timer is None:
            self._timer = self._loop.call_later(_SUM_SECONDS, self._sum_up)

    def forget(self, sandbox: str) -> None:
        """It is gone."""
        self._allowance.pop(sandbox, None)

    def _may_tell(self, sandbox: str) -> bool:
        now = self._loop.time()
        left, since = self._allowance.get(sandbox, (_BURST, now))
        left = min(_BURST, left + (now - since) * _PACE)
        self._allowance[sandbox] = (max(0.0, left - 1), now)
        return left >= 1

    def _sum_up(self) -> None:
        self._timer = None
        untold, self._untold = self._untold, Counter()
        for (sandbox, outcome), count in untold.items():
            if not self._send(Decision(sandbox, outcome, count=count, untold=True)):
                self._untold[sandbox, outcome] += count
        if self._untold:
            self._timer = self._loop.call_later(_SUM_SECONDS, self._sum_up)
