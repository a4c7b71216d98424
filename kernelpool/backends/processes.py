"""Processes that are not our children: known by start time, watched and killed through pidfds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from kernelpool.backends.records import ProcessId
from kernelpool.backends.tree.steps import in_thread

_START_TIME = 22 - 3  # field 22 of /proc/<pid>/stat, counted behind the name, which may hold anything


def identify(pid: int) -> ProcessId | None:
    """None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return ProcessId(pid, int(stat.rpartition(")")[2].split()[_START_TIME]))


def parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, UnicodeDecodeError):
        return None


class Process:
    """A pidfd with its process's identity. Close it on the way out."""

    def __init__(self, id: ProcessId, fd: int) -> None:
        self.id = id
        self._fd = fd

    def __repr__(self) -> str:
        return f"<Process {self.id.pid}>"

    @classmethod
    def open(cls, id: ProcessId | None) -> Self | None:
        """None when it has ended, even if something else has its number now. Blocks for the reading of a file."""
        if id is None:
            return None
        try:
            fd = os.pidfd_open(id.pid)
        except OSError:
            return None
        # In this order: what the number meant cannot change any more once there is a pidfd.
        process = cls(id, fd)
        if identify(id.pid) != id or process.has_ended:
            process.close()
            return None
        return process

    @classmethod
    def open_both(cls, one: ProcessId | None, other: ProcessId | None) -> tuple[Self, Self] | None:
        """None when either has ended."""
        first, second = cls.open(one), cls.open(other)
        if first and second:
            return first, second
        for process in (first, second):
            if process:
                process.close()
        return None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def has_ended(self) -> bool:
        """Also while its parent has not taken note yet."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    async def wait(self) -> None:
        """Until it has ended. By an event: a pidfd is readable from then on."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def end() -> None:
            if not ended.done():
                ended.set_result(None)

        # A number of its own, because a loop knows one reader per descriptor, and closing this one may come first.
        fd = os.dup(self._fd)
        loop = asyncio.get_running_loop()
        loop.add_reader(fd, end)
        try:
            await ended
            self._reap()
        finally:
            loop.remove_reader(fd)
            os.close(fd)

    def _reap(self) -> None:
        """When the gateway is a container's first process, orphans become its children."""
        with contextlib.suppress(ChildProcessError, ValueError, OSError):
            os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG)


def find(marker: str) -> list[ProcessId]:
    """Processes that have `marker` as one of their arguments: those of a sandbox whose record was cut off.

    A dead one that its parent has not reaped has no arguments any more.
    """
    wanted = marker.encode()
    found: list[ProcessId | None] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0"):
                    found.append(identify(int(name)))
    return [id for id in found if id is not None]


def _open_all(ids: Iterable[ProcessId | None]) -> list[Process]:
    return [process for process in map(Process.open, ids) if process]


async def kill_all(ids: Iterable[ProcessId | None], timeout: float) -> bool:
    """Kills them and waits for their end; whether they all ended in time."""
    processes = await in_thread(_open_all, list(ids))
    try:
        for process in processes:
            process.kill()
        async with asyncio.timeout(timeout):
            for process in processes:
                await process.wait()
        return True
    except TimeoutError:
        return False
    finally:
        for process in processes:
            process.close()
