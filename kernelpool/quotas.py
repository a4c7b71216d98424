"""Quotas: what a tenant may use of a gateway, over all pools. Decides; asks nobody.

Without a word on a tenant there is no limit beyond those of the pools.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from pydantic import BaseModel, ConfigDict, Field

from kernelpool.errors import QuotaExceeded
from kernelpool.pool.settings import Size

ANYBODY = "*"
"""Whoever is not named."""
MINUTE = 60.0
RETRY_SECONDS = 10.0
"""Said to those whose place depends on when a session ends or a file goes, which nobody knows."""
MANY = 10_000


class QuotaSettings(BaseModel):
    """What a tenant may use. What is not said is not limited."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    sessions: int | None = Field(None, ge=0)
    """Sessions that it may have at the same time."""
    executions_per_minute: int | None = Field(None, ge=1)
    """Executions that it may start in a minute; all of them at once, if it likes."""
    stored_bytes: Size | None = None
    """Size of the files in all its sessions together, past which uploads and new sessions are refused."""


class Quotas:
    """The quotas of all tenants, and who started how much in the last minute."""

    def __init__(
        self, tenants: Mapping[str, QuotaSettings] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tenants = dict(tenants or {})
        self._clock = clock
        # By tenant: when all that it has started would have been started at the steady rate (the generic cell rate
        # algorithm). Whose time has passed is as if it had never asked.
        self._paid_until: dict[str, float] = {}

    def of(self, tenant: str) -> QuotaSettings:
        return self._tenants.get(tenant) or self._tenants.get(ANYBODY) or QuotaSettings()

    def check_sessions(self, tenant: str, count: int) -> None:
        """`count`: those that it has. Raises `QuotaExceeded` when there is no room for one more."""
        limit = self.of(tenant).sessions
        if limit is not None and count >= limit:
            raise QuotaExceeded(f"There are {count} sessions; {limit} are allowed.", RETRY_SECONDS)

    def check_stored(self, tenant: str, stored: int) -> None:
        """Raises `QuotaExceeded` when there is no room for another byte."""
        limit = self.of(tenant).stored_bytes
        if limit is not None and stored >= limit:
            raise QuotaExceeded(f"The files of all sessions have {stored} bytes; {limit} are allowed.", RETRY_SECONDS)

    def check_execution(self, tenant: str) -> float | None:
        """When one more would be paid for; None without a limit. Raises `QuotaExceeded`, saying in how many seconds
        there is room again."""
        limit = self.of(tenant).executions_per_minute
        if limit is None:
            return None
        now = self._clock()
        paid = max(self._paid_until.get(tenant, now), now) + MINUTE / limit
        if paid - now > MINUTE + 1e-6:
            raise QuotaExceeded(
                f"More than {limit} executions were started within a minute; so many are allowed.",
                paid - now - MINUTE,
            )
        return paid

    def count_execution(self, tenant: str) -> None:
        """Raises as `check_execution`."""
        paid = self.check_execution(tenant)
        if paid is None:
            return
        now = self._clock()
        self._paid_until[tenant] = paid
        if len(self._paid_until) > MANY:
            self._paid_until = {name: until for name, until in self._paid_until.items() if until > now}
