"""Observer: the moments that are worth counting, as whoever lives through them tells them."""

from __future__ import annotations

from typing import Literal, Protocol

from kernelpool.models import Execution, SessionEnd

Direction = Literal["in", "out"]


class Observer(Protocol):
    """Every method is called on the event loop and returns at once. Of what callers say nothing is passed on but
    numbers and words from fixed sets: each distinct word is a time series."""

    def allocated(self, pool: str, seconds: float, *, warm: bool) -> None:
        """A new session began, `seconds` after it was asked for; `warm` when a sandbox stood ready."""

    def executed(self, pool: str, execution: Execution, ran: float, queued: float) -> None:
        """It ended, after so many seconds in the queue and running."""

    def transferred(self, pool: str, direction: Direction, size: int) -> None:
        """Bytes of a file, whether or not it arrived whole."""

    def session_ended(self, pool: str, end: SessionEnd) -> None: ...

    def sandbox_started(self, pool: str, seconds: float) -> None: ...

    def pool_closed(self, pool: str) -> None:
        """Nothing more is told of it."""

    def egress_decided(self, pool: str, outcome: str, count: int) -> None:
        """The proxy let connections of sandboxes out, or did not; `outcome` is a word from its fixed set."""

    def refused(self, code: str) -> None:
        """A request was answered with an error of that code."""

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request is over. `route` is its template; 499 says that the client left before the answer."""

    def moved(self, route: str, received: int, sent: int) -> None:
        """Bytes of the bodies of a request that is over."""

    def lagged(self, seconds: float) -> None:
        """The event loop came so much later than it should have."""

    def audited(self, count: int, *, lost: bool = False) -> None:
        """Lines for the audit log, or such as it had to drop."""


class Silent:
    """An observer that nobody listens to."""

    def allocated(self, pool: str, seconds: float, *, warm: bool) -> None: ...

    def executed(self, pool: str, execution: Execution, ran: float, queued: float) -> None: ...

    def transferred(self, pool: str, direction: Direction, size: int) -> None: ...

    def session_ended(self, pool: str, end: SessionEnd) -> None: ...

    def sandbox_started(self, pool: str, seconds: float) -> None: ...

    def pool_closed(self, pool: str) -> None: ...

    def egress_decided(self, pool: str, outcome: str, count: int) -> None: ...

    def refused(self, code: str) -> None: ...

    def answered(self, method: str, route: str, status: int, seconds: float) -> None: ...

    def moved(self, route: str, received: int, sent: int) -> None: ...

    def lagged(self, seconds: float) -> None: ...

    def audited(self, count: int, *, lost: bool = False) -> None: ...
