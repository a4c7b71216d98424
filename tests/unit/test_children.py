"""The end of a child, with the kernel's own descriptor and without one."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys

import pytest

from kernelpool.children import end_of


@pytest.fixture(params=["pidfd", "thread"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "thread":
        without_pidfd(monkeypatch)
    return str(request.param)


def without_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on gVisor."""

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", refuse)


def test_it_is_told_when_it_has_ended_and_not_before(way: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input(); exit(3)"], stdin=subprocess.PIPE)
    end = end_of(child.pid)
    assert child.stdin is not None

    assert select.select([end], [], [], 0)[0] == []
    child.stdin.close()
    assert select.select([end], [], [], 30)[0] == [end]
    assert select.select([end], [], [], 0)[0] == [end]  # and stays so

    assert child.wait(0) == 1
    os.close(end)


def test_a_signal_still_reaches_the_main_thread(way: str) -> None:
    child = subprocess.Popen(["sleep", "100"])
    end = end_of(child.pid)
    received = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert select.select([], [], [], 0) == ([], [], [])
        assert received == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)
        child.kill()
        child.wait()
        os.close(end)


def test_who_no_longer_listens_is_not_told(way: str) -> None:
    child = subprocess.Popen(["sleep", "100"])
    os.close(end_of(child.pid))

    child.kill()

    assert child.wait(30) == -signal.SIGKILL
