"""What the processes of the sandbox use, read from /proc: processor time and memory, for metrics."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

MAX_PROCESSES = 512
"""Read at most. A sandbox has fewer unless somebody lets it have more."""
INTERVAL = 5.0
"""Seconds for which what was read is good enough: it takes a few milliseconds of the loop's time."""


class Usage:
    """Processor time and memory of all processes that this one can see, which in a sandbox are those of the sandbox."""

    def __init__(self, proc: str = "/proc", interval: float = INTERVAL) -> None:
        self._proc = Path(proc)
        self._interval = interval
        self._tick = os.sysconf("SC_CLK_TCK")
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._read_at = -interval
        self._cpu_seconds = 0.0
        self._memory_bytes = 0

    def read(self) -> tuple[float, int]:
        """Seconds of processor time so far, which never decrease, and bytes of resident memory now."""
        now = time.monotonic()
        if now - self._read_at >= self._interval:
            self._read_at = now
            ticks, pages = self._sums()
            # Who ends without being waited for takes its time along.
            self._cpu_seconds = max(self._cpu_seconds, ticks / self._tick)
            self._memory_bytes = pages * self._page
        return self._cpu_seconds, self._memory_bytes

    def _sums(self) -> tuple[int, int]:
        ticks = pages = 0
        for name in self._processes():
            # Gone meanwhile; or its name, which it chooses itself, is no text.
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = (self._proc / name / "stat").read_bytes()
                fields = stat[stat.rindex(b")") + 2 :].split()  # from the third of proc(5) on
                # Its own time and that of the children it has waited for.
                ticks += sum(map(int, fields[11:15]))
                pages += int(fields[21])
        return ticks, pages

    def _processes(self) -> Iterator[str]:
        with contextlib.suppress(OSError), os.scandir(self._proc) as entries:
            numbers = (entry.name for entry in entries if entry.name.isdecimal())
            yield from (name for _, name in zip(range(MAX_PROCESSES), numbers, strict=False))
