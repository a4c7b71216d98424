"""What a sandbox's processes use, as /proc tells it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from kernelpool.agent import usage
from kernelpool.agent.usage import Usage


def process(proc: Path, pid: int, name: bytes, times: tuple[int, int, int, int], pages: int) -> None:
    (proc / str(pid)).mkdir()
    user, system, childrens_user, childrens_system = times
    numbers = b"0 0 0 0 0 0 0 0 0 0 %d %d %d %d 20 0 1 0 5 1000000 %d 99 1 1"
    stat = b"%d (%b) S " % (pid, name) + numbers % (user, system, childrens_user, childrens_system, pages)
    (proc / str(pid) / "stat").write_bytes(stat)


def test_it_is_the_sum_over_all_processes_and_the_children_that_they_waited_for(tmp_path: Path) -> None:
    process(tmp_path, 1, b"agent", (100, 100, 50, 50), 10)
    process(tmp_path, 7, b"ev) il ) S 1 \xff", (200, 0, 0, 0), 5)
    (tmp_path / "self").mkdir()
    (tmp_path / "8").mkdir()

    cpu_seconds, memory_bytes = Usage(str(tmp_path)).read()

    assert cpu_seconds == 500 / os.sysconf("SC_CLK_TCK")
    assert memory_bytes == 15 * os.sysconf("SC_PAGE_SIZE")


def test_processor_time_never_decreases(tmp_path: Path) -> None:
    process(tmp_path, 1, b"a", (100, 0, 0, 0), 10)
    process(tmp_path, 2, b"b", (100, 0, 0, 0), 10)
    reader = Usage(str(tmp_path), interval=0)
    before, _ = reader.read()
    (tmp_path / "2" / "stat").unlink()

    after, memory = reader.read()

    assert after == before
    assert memory == 10 * os.sysconf("SC_PAGE_SIZE")


def test_what_was_just_read_is_not_read_again(tmp_path: Path) -> None:
    reader = Usage(str(tmp_path), interval=1000)
    assert reader.read() == (0, 0)

    process(tmp_path, 1, b"a", (100, 0, 0, 0), 10)

    assert reader.read() == (0, 0)


def test_no_more_than_so_many_are_read(tmp_path: Path) -> None:
    for pid in range(usage.MAX_PROCESSES + 100):
        process(tmp_path, pid, b"a", (0, 0, 0, 0), 1)

    assert Usage(str(tmp_path)).read()[1] == usage.MAX_PROCESSES * os.sysconf("SC_PAGE_SIZE")


def test_a_real_proc_is_read(tmp_path: Path) -> None:
    """Only this process and a child: others come and go."""
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for pid in (os.getpid(), child.pid):
            (tmp_path / str(pid)).symlink_to(f"/proc/{pid}")
        reader = Usage(str(tmp_path), interval=0)
        used = resource.getrusage(resource.RUSAGE_SELF)
        before, memory = reader.read()
        deadline = time.monotonic() + 30
        while (after := reader.read()[0]) < before + 0.2 and time.monotonic() < deadline:
            pass
    finally:
        child.kill()
        child.wait()

    assert before >= used.ru_utime + used.ru_stime - 0.1
    assert after >= before + 0.2
    assert memory > 10 << 20


def test_without_a_proc_nothing_is_known(tmp_path: Path) -> None:
    assert Usage(str(tmp_path / "none")).read() == (0, 0)
