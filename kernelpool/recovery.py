"""Recovery: what a gateway does at its start with what an earlier one left behind, however that one ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from kernelpool.agents import pulse
from kernelpool.backends.base import Backend, Sandbox
from kernelpool.journal import Contents, Journal, Record
from kernelpool.models import AgentStatus
from kernelpool.pool.launcher import Connected, Launcher
from kernelpool.sessions import Survivor

log = logging.getLogger(__name__)

AT_ONCE = 16
DESTROY_SECONDS = 60.0


class Fate(Enum):
    READY = auto()
    SESSION = auto()
    DESTROY = auto()


@dataclass(slots=True)
class Found:
    """What one pool goes on with."""

    ready: list[Connected] = field(default_factory=list)
    survivors: list[Survivor] = field(default_factory=list)
    lost: list[tuple[Record, str]] = field(default_factory=list)
    """Sessions that are gone, and why: their callers must learn of it."""


def fate(record: Record | None, status: AgentStatus | None, *, pool: str, is_current: bool) -> Fate:
    """Of a sandbox of `pool`. `is_current`: it was made from the settings that the pool has now.

    Whose session it is says the record alone. Without one it has never run anybody's code, so that its agent can be
    believed.
    """
    if status is None:
        return Fate.DESTROY
    if record is not None:
        goes_on = record.pool == pool and record.ended is None and status.activated
        return Fate.SESSION if goes_on else Fate.DESTROY
    return Fate.READY if is_current and status.ready and not status.activated else Fate.DESTROY


class Recovery:
    """One run through all that the backends still have. Made for the start of a gateway, and of no use after it."""

    def __init__(self, launchers: Mapping[str, Launcher], journal: Journal) -> None:
        self._launchers = launchers
        self._journal = journal
        self._found = {pool: Found() for pool in launchers}
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def run(self, backends: Iterable[Backend]) -> Mapping[str, Found]:
        """By pool. When it returns, what nobody goes on with is destroyed, and the journal tells of the rest."""
        contents = await self._journal.load()
        sandboxes = [sandbox for backend in backends for sandbox in await backend.adopt()]
        newest = _newest(contents.records.values())
        async with asyncio.TaskGroup() as group:
            for sandbox in sandboxes:
                group.create_task(self._sort(sandbox, contents, newest))
        alive = {sandbox.id for sandbox in sandboxes}
        for id in sorted((contents.records.keys() | contents.corrupt) - alive):
            if id in newest:
                self._mourn(newest[id], "its sandbox was gone when the gateway started again")
            await self._journal.remove(id)
        return self._found

    async def _sort(self, sandbox: Sandbox, contents: Contents, newest: Mapping[str, Record]) -> None:
        async with self._gate:
            launcher = self._launchers.get(sandbox.pool)
            # A record that a newer one of the same identifier has replaced belongs to a sandbox that was being ended.
            is_replaced = sandbox.id in contents.records and sandbox.id not in newest
            if launcher is None or is_replaced or sandbox.id in contents.corrupt:
                await self._destroy(sandbox)
                return
            record = newest.get(sandbox.id)
            connected = launcher.connect(sandbox, is_used=record is not None)
            status = await pulse(connected.agent)
            is_current = sandbox.fingerprint == launcher.fingerprint
            match fate(record, status, pool=sandbox.pool, is_current=is_current), record, status:
                case Fate.READY, _, _:
                    self._found[sandbox.pool].ready.append(connected)
                case Fate.SESSION, Record(), AgentStatus():
                    self._found[sandbox.pool].survivors.append(Survivor(record, connected, status))
                case _:
                    if record is not None and status is None:
                        self._mourn(record, "its sandbox did not answer when the gateway started again")
                    await self._destroy(sandbox, launcher, connected)

    def _mourn(self, record: Record, why: str) -> None:
        log.warning("session lost", extra={"session": record.session, "sandbox": record.sandbox, "why": why})
        if record.pool in self._found and record.ended is None:
            self._found[record.pool].lost.append((record, why))

    async def _destroy(
        self, sandbox: Sandbox, launcher: Launcher | None = None, connected: Connected | None = None
    ) -> None:
        """The sandbox before its record, as always."""
        log.info("sandbox of an earlier gateway ended", extra={"sandbox": sandbox.id, "pool": sandbox.pool})
        try:
            async with asyncio.timeout(DESTROY_SECONDS):
                await (launcher.discard(connected) if launcher and connected else sandbox.destroy())
        except Exception as error:  # one that cannot be ended must not keep the gateway from starting
            log.error("sandbox was not destroyed", extra={"sandbox": sandbox.id}, exc_info=error)
            return
        await self._journal.remove(sandbox.id)


def _newest(records: Iterable[Record]) -> dict[str, Record]:
    """By sandbox; of those with the same identifier only the one created last."""
    by_key: dict[tuple[str, str, str], Record] = {}
    for record in sorted(records, key=lambda record: record.created_at):
        by_key[record.key] = record
    return {record.sandbox: record for record in by_key.values()}
