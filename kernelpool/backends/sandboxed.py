"""A sandbox that bubblewrap made: watched by events, and removed without a trace."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from kernelpool.backends.base import UnixAddress
from kernelpool.backends.cgroups import Cgroup
from kernelpool.backends.launcher import LastWords, marker
from kernelpool.backends.processes import Process, find, identify, kill_all
from kernelpool.backends.records import RECORD, SOCKET, ProcessId, Record, door_of
from kernelpool.backends.tree.steps import in_thread
from kernelpool.egress.policy import EgressPolicy

log = logging.getLogger(__name__)

_ERASE_SECONDS: Final = 10.0
_PAUSE: Final = 0.02

Removed = Callable[["BubblewrapSandbox", bool], Awaitable[None]]


class BubblewrapSandbox:
    """Made by the backend, which it tells when it is removed (and whether nothing is left of it)."""

    def __init__(
        self,
        record: Record,
        folder: Path,
        monitor: Process,
        init: Process,
        removed: Removed,
        last_words: LastWords | None = None,
    ) -> None:
        self._record = record
        self._folder = folder
        self._monitor = monitor
        self._init = init
        self._removed = removed
        self._last_words = last_words
        self._cgroup = Cgroup(tuple(map(Path, record.cgroups)))
        self._dead: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._watching = asyncio.create_task(self._watch(), name=f"watch sandbox {record.id}")
        self._destroying: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<BubblewrapSandbox {self.id} of {self.pool!r} [{'dead' if self._dead.done() else 'alive'}]>"

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
        return UnixAddress(str(self._folder / SOCKET))

    @property
    def secret(self) -> str:
        return self._record.secret

    @property
    def record(self) -> Record:
        return self._record

    async def wait_dead(self) -> str:
        return await asyncio.shield(self._dead)

    async def oom_kills(self) -> int:
        """How many of its processes the kernel killed for want of memory. The sandbox may live on."""
        return await in_thread(self._cgroup.oom_kills)

    def last_words(self) -> str:
        """What bwrap and the agent wrote to stderr; "" for an adopted sandbox. Untrusted."""
        return self._last_words.read() if self._last_words else ""

    async def destroy(self) -> None:
        # A task of its own: a caller that leaves does not stop it, and a second caller waits for the same.
        if self._destroying is None:
            self._destroying = asyncio.create_task(self._destroy(), name=f"destroy sandbox {self.id}")
        await asyncio.shield(self._destroying)

    async def aclose(self) -> None:
        """Stops watching it and lets it live. Waits for a removal that is under way."""
        if self._destroying:
            await asyncio.wait([self._destroying])
        self._watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watching
        self._dead.cancel()
        self._monitor.close()
        self._init.close()
        if self._last_words:
            self._last_words.close()
            self._last_words = None

    async def _watch(self) -> None:
        """bwrap outside ends with the agent, process 1 inside with everything; either is the sandbox's end."""
        ends = [asyncio.ensure_future(self._monitor.wait()), asyncio.ensure_future(self._init.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            self._init.kill()
            await ends[1]
            await kill_all([self._record.network], _ERASE_SECONDS)
        finally:
            for end in ends:
                end.cancel()
        why = await self._why()
        level = logging.DEBUG if self._destroying else logging.WARNING
        log.log(level, "sandbox ended", extra={"sandbox": self.id, "why": why})
        self._dead.set_result(why)

    async def _why(self) -> str:
        if self._destroying:
            return "destroyed"
        if await self.oom_kills():
            return "out of memory"
        words = self.last_words().splitlines()
        if words and words[-1].startswith("bwrap: "):
            return words[-1]
        return "its agent ended"

    async def _destroy(self) -> None:
        gone = await erase(self._record, self._folder)
        if gone:
            await asyncio.wait([self._watching])
        await self._removed(self, gone)
        self._monitor.close()
        self._init.close()
        if self._last_words:
            self._last_words.close()
            self._last_words = None


async def erase(record: Record, folder: Path) -> bool:
    """Removes a sandbox, whole or half-made, living or dead; whether nothing is left. Takes seconds at most, and what
    could not be removed keeps its record, so that the next start tries again."""
    deadline = time.monotonic() + _ERASE_SECONDS
    cgroup = Cgroup(tuple(map(Path, record.cgroups)))
    await in_thread(cgroup.kill)
    gone = await kill_all([record.init, record.monitor, record.network], _ERASE_SECONDS)
    if record.init is None or record.monitor is None:
        # Again and again, because what was killed may have forked just before.
        while gone and (found := await in_thread(find, marker(record.id))):
            gone = await kill_all(found, max(0.0, deadline - time.monotonic()))
    while gone and not await in_thread(cgroup.remove):
        gone = time.monotonic() < deadline
        await in_thread(cgroup.kill)
        await kill_all(await in_thread(_members, cgroup), max(0.0, deadline - time.monotonic()))
        # The last process of a group ends a moment before the group is free, and nothing tells of that moment.
        await asyncio.sleep(_PAUSE)
    if gone:
        await in_thread(_remove_folder, folder)
    else:
        log.error("sandbox cannot be removed", extra={"sandbox": record.id, "pids": await in_thread(cgroup.pids)})
    return gone


def _members(cgroup: Cgroup) -> list[ProcessId | None]:
    return [identify(pid) for pid in cgroup.pids()]


def _remove_folder(folder: Path) -> None:
    """The record last: while anything is there, so is what says whose it is."""
    shutil.rmtree(door_of(folder), ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        for file in sorted(folder.iterdir(), key=lambda file: file.name == RECORD):
            file.unlink()
        folder.rmdir()
