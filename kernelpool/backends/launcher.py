"""The gateway's side of `launch.py`: hands it descriptors and an order, and has a sandbox starting when it returns."""

from __future__ import annotations

import fcntl
import marshal
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from kernelpool.backends import launch
from kernelpool.backends.bwrap_argv import ARGS_FD
from kernelpool.backends.bwrap_binary import Bwrap
from kernelpool.errors import StartFailed
from kernelpool.models import Limits

_LAST_WORDS: Final = 16 << 10
_TIMEOUT: Final = 20.0


class UidInUse(Exception):
    """Somebody else's processes run as this user."""


@dataclass(frozen=True, slots=True)
class Order:
    """What launch.py reads from its stdin."""

    path: str
    argv: Sequence[str]
    cwd: str
    uid: int | None
    cgroups: Sequence[str]
    rlimits: Mapping[str, tuple[int, int]]
    fds: Mapping[int, int]
    """Number in bwrap → number here."""
    stderr: int
    """One of the former."""


def rlimits(limits: Limits, *, memory_is_limited: bool) -> dict[str, tuple[int, int]]:
    """Soft and hard. The number of processes is missing: only from inside can it be set for the sandbox alone."""
    mebibyte = 1 << 20
    wanted = {
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_MSGQUEUE": (0, 0),
        "RLIMIT_RTPRIO": (0, 0),
        "RLIMIT_NICE": (0, 0),
        "RLIMIT_MEMLOCK": (64 << 10, 64 << 10),
        "RLIMIT_STACK": (8 * mebibyte, 64 * mebibyte),
        "RLIMIT_NOFILE": (limits.open_files, limits.open_files),
    }
    if not memory_is_limited:
        # For each process alone, so a weak substitute for a control group.
        wanted["RLIMIT_DATA"] = (limits.memory, limits.memory)
    return {name: value for name, value in wanted.items() if hasattr(resource, name)}


def marker(id: str) -> str:
    """The argument by which every process of a sandbox's start is known, before and after bwrap is executed."""
    return f"kernelpool-{id}"


def sealed(name: str, data: bytes) -> int:
    """A descriptor of an anonymous file that holds `data`, to be read from its start, by nobody to be changed."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(os.dup(fd), "wb") as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


class LastWords:
    """What a sandbox gets as stderr: anonymous memory of a fixed size, which needs no reader and outlives us.

    bwrap says there what it could not do. The program in the sandbox may write there too, so it is not to be trusted.
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create("stderr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, _LAST_WORDS)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)

    def read(self) -> str:
        text = os.pread(self.fd, _LAST_WORDS, 0).rstrip(b"\0").decode(errors="replace")
        return "".join(char if char.isprintable() or char == "\n" else "?" for char in text).strip()

    def close(self) -> None:
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of bwrap."""

    id: str
    bwrap: Bwrap
    arguments: Sequence[str]
    """bwrap's own, without the command."""
    command: Sequence[str]
    uid: int | None
    cgroups: Sequence[str]
    rlimits: Mapping[str, tuple[int, int]]
    fds: Mapping[int, int]

    def run(self, last_words: LastWords) -> int:
        """The pid of bwrap. Raises `StartFailed`, `UidInUse`. Blocks for some milliseconds, and not for ever."""
        with ExitStack() as stack:
            args = sealed("args", b"".join(argument.encode() + b"\0" for argument in self.arguments))
            stack.callback(os.close, args)
            order = Order(
                path=self.bwrap.path,
                argv=(marker(self.id), *self.bwrap.arguments, "--args", str(ARGS_FD), "--", *self.command),
                cwd=self.bwrap.cwd,
                uid=self.uid,
                cgroups=self.cgroups,
                rlimits=self.rlimits,
                fds={**self.fds, ARGS_FD: args},
                stderr=last_words.fd,
            )
            return _run(self.id, order)


def _run(id: str, order: Order) -> int:
    try:
        answer = subprocess.run(
            [sys.executable, "-I", "-S", str(Path(launch.__file__)), marker(id)],
            input=marshal.dumps(asdict(order)),
            capture_output=True,
            timeout=_TIMEOUT,
            close_fds=True,
            pass_fds=(*order.fds.values(), order.stderr),
            start_new_session=True,
            cwd="/",
            env={},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartFailed("bubblewrap could not be launched") from error
    words = answer.stderr.decode(errors="replace").strip()
    if answer.returncode == launch.UID_IN_USE:
        raise UidInUse(words)
    if answer.returncode != 0:
        failure = StartFailed("bubblewrap could not be launched")
        failure.add_note(words)
        raise failure
    return int(answer.stdout)
