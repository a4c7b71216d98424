"""A sandbox that is a container. What becomes of it is heard from the engine; this only keeps it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from kernelpool.backends.base import UnixAddress
from kernelpool.backends.docker.folders import Record
from kernelpool.egress.policy import EgressPolicy

log = logging.getLogger(__name__)

Erase = Callable[["DockerSandbox"], Awaitable[None]]


class DockerSandbox:
    """Made by the backend, which erases it and tells it of its death."""

    def __init__(self, record: Record, address: UnixAddress, erase: Erase) -> None:
        self._record = record
        self._address = address
        self._erase = erase
        self._dead: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._destroying: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<DockerSandbox {self.id} of {self.pool!r} [{'dead' if self._dead.done() else 'alive'}]>"

    @property
    def id(self) -> str:
        return self._record.id

    @property
    def pool(self) -> str:
        return self._record.pool

    @property
    def fingerprint(self) -> str:
        return self._record.fingerprint

    @property
    def created_at(self) -> float:
        return self._record.created_at

    @property
    def egress(self) -> EgressPolicy:
        return EgressPolicy.of(self._record.egress)

    @property
    def address(self) -> UnixAddress:
        return self._address

    @property
    def secret(self) -> str:
        return self._record.secret

    @property
    def record(self) -> Record:
        return self._record

    @property
    def is_dead(self) -> bool:
        return self._dead.done()

    async def wait_dead(self) -> str:
        return await asyncio.shield(self._dead)

    def died(self, why: str) -> None:
        """Said by the backend, maybe more than once."""
        if self._dead.done():
            return
        if self._destroying:
            why = "destroyed"
        log.log(
            logging.DEBUG if self._destroying else logging.WARNING,
            "sandbox ended",
            extra={"sandbox": self.id, "why": why},
        )
        self._dead.set_result(why)

    async def destroy(self) -> None:
        """Raises `BackendUnavailable` while the engine is away. What is left then goes when it is back."""
        # A task of its own: a caller that leaves does not stop it, and a second caller waits for the same.
        if self._destroying is None or _has_failed(self._destroying):
            self._destroying = asyncio.create_task(self._destroy(), name=f"destroy sandbox {self.id}")
        await asyncio.shield(self._destroying)

    async def aclose(self) -> None:
        """Lets it live. Waits for a removal that is under way."""
        if self._destroying:
            await asyncio.wait([self._destroying])
        self._dead.cancel()

    async def _destroy(self) -> None:
        await self._erase(self)
        self.died("destroyed")


def _has_failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
