"""What processes use, read from /proc."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path


def pss(pids: Iterable[int]) -> int:
    """Bytes: memory of these processes, with shared pages divided among those who share them."""
    return sum(_field(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") for pid in pids)


def rss(pid: int) -> int:
    return _field(Path(f"/proc/{pid}/status"), "VmRSS:")


def available() -> int:
    """Bytes that the machine could give to new programs."""
    return _field(Path("/proc/meminfo"), "MemAvailable:")


def cpu_seconds(pid: int) -> float:
    """User and system time used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Peak:
    """The largest RSS seen of a process, sampled while it is entered."""

    def __init__(self, pid: int) -> None:
        self.before = self.bytes = rss(pid)
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        return self.bytes - self.before

    def _sample(self) -> None:
        while not self._stop.wait(0.01):
            self.bytes = max(self.bytes, rss(self._pid))


def processes_named(pids: Iterable[int], word: str) -> Iterator[int]:
    """Those whose command line has the word."""
    for pid in pids:
        with contextlib.suppress(OSError):
            if word in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"):
                yield pid


def _field(file: Path, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in file.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0
