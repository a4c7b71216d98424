"""Whether a call that failed is sent again, and when, as arithmetic. The transports do what this says."""

from __future__ import annotations

from dataclasses import dataclass

from kernelpool.client.errors import ClientError, ConnectionBroken, TryLater, Unreachable

FIRST_PAUSE = 0.25


@dataclass(frozen=True, slots=True)
class Retries:
    """How patient a client is. `Retries(0)` sends everything once."""

    attempts: int = 5
    """After the first, in a row, without any progress."""
    longest_pause: float = 30.0
    """Seconds. Who is told to come back later than that hears it at once."""

    def pause(self, error: ClientError, failures: int, *, repeatable: bool, luck: float) -> float | None:
        """Seconds until the call may be sent again; None when it may not. `failures` counts this one; `luck` (0 to 1)
        takes off up to half, so that clients that were cut off together do not come back together.

        A gateway that says when to come back has not done the work. After a connection that broke nobody knows, so
        only what is harmless twice is repeated. A first try that reaches nobody is told at once; once a gateway has
        been there, it may be on its way back.
        """
        if failures > self.attempts:
            return None
        if isinstance(error, TryLater):
            wanted = error.retry_after
            return wanted if wanted is not None and wanted <= self.longest_pause else None
        came_back_to_nobody = isinstance(error, Unreachable) and failures > 1
        if repeatable and (isinstance(error, ConnectionBroken) or came_back_to_nobody):
            return min(self.longest_pause, FIRST_PAUSE * 2.0 ** min(failures - 1, 16)) * (1.0 - luck / 2.0)
        return None


def poll_pause(elapsed: float, timeout: float | None) -> float:
    """Seconds until the next look at something that has taken so long already: the longer, the rarer."""
    pause = min(1.0, 0.05 + elapsed / 10)
    return pause if timeout is None else min(pause, max(0.0, timeout - elapsed))
