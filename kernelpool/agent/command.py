"""A command as processes: started in a session of its own, and ended with all that it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernelpool.agent.process import environment, make_first_victim
from kernelpool.children import end_of
from kernelpool.models import AgentConfig, Command

SHELL = ("/bin/bash", "-lc")
IN_TERMINAL = ("/usr/bin/setsid", "--ctty")
"""Makes its standard input the terminal of a new session, in place."""
ROWS, COLUMNS = 24, 80
END_OF_INPUT = b"\x04"
"""Control-D, as typed."""
ROUNDS = 5
"""Of SIGKILL to all that there is, should it start more meanwhile."""
ROUND_SECONDS = 1.0
POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Started:
    process: CommandProcess
    streams: Mapping[str, int]
    """To be read: a descriptor each, by the stream's name."""


class CommandProcess:
    """A command that runs, and what it started. Its end is an event, not something to poll for."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.pid = popen.pid
        self._popen = popen
        self.died: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Done with the return code (negative: a signal's number)."""
        self._end = end_of(popen.pid)
        asyncio.get_running_loop().add_reader(self._end, self._reap)
        self._sessions = {popen.pid}
        """Its own, and those that what it started has made."""

    def signal(self, number: int) -> None:
        """To all that it started, but for what had become independent before: a session of its own, without a parent
        that is one of ours."""
        members = self._members()  # first: who dies leaves children that are no longer known by it
        with contextlib.suppress(OSError):
            os.killpg(self.pid, number)  # at once: none of them can fork away from it
        for pid in members:
            with contextlib.suppress(OSError):
                os.kill(pid, number)

    async def end(self, grace: float) -> None:
        """SIGTERM, and SIGKILL for what is left after so many seconds. Nothing is, when this returns."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        await _gone(self._members(), grace)
        for _ in range(ROUNDS):
            if not (left := self._members()):
                break
            self.signal(signal.SIGKILL)
            await _gone(left, ROUND_SECONDS)
        await asyncio.wait([self.died], timeout=ROUND_SECONDS)

    def _members(self) -> set[int]:
        """Those that live."""
        processes = dict(_processes())
        found = {pid for pid, (_, session) in processes.items() if session in self._sessions}
        if self.pid in processes and not self.died.done():  # one that is on its way to a session of its own
            found.add(self.pid)
        new = found
        while new:
            new = {pid for pid, (parent, _) in processes.items() if parent in new} - found
            found |= new
        self._sessions |= {processes[pid][1] for pid in found} - {os.getsid(0)}
        return found

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._end)
        os.close(self._end)
        if not self.died.done():
            self.died.set_result(self._popen.wait())


def start_command(command: Command, code: str, config: AgentConfig) -> Started:
    """Raises `OSError` when there is no such program, or no room for one more."""
    argv = command.arguments or (*SHELL, code)
    start = _in_terminal if command.pty else _with_pipes
    return start(argv, command.stdin.encode(errors="replace"), config)


def command_environment(config: AgentConfig) -> dict[str, str]:
    """As the kernel's; and what pip installs goes to where the kernel finds it, its programs before all others."""
    local = f"{config.workspace}/.local"
    base = environment(config)
    return {
        "PYTHONPATH": f"{local}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages",
        "PIP_PREFIX": local,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_NO_INPUT": "1",
        "PIP_NO_WARN_SCRIPT_LOCATION": "1",
        **base,
        "PATH": f"{local}/bin:{base['PATH']}",
    }


def exit_code_of(returned: int) -> int:
    """As shells have it."""
    return returned if returned >= 0 else 128 - returned


def _with_pipes(argv: Sequence[str], stdin: bytes, config: AgentConfig) -> Started:
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as on_failure:
        streams, ends = {}, []
        for name in ("stdout", "stderr"):
            streams[name], end = os.pipe2(os.O_CLOEXEC)
            on_failure.callback(os.close, streams[name])
            ours.callback(os.close, end)
            ends.append(end)
        # A file, which can be written before anybody reads it, and ends when it has been read.
        file = ours.enter_context(tempfile.TemporaryFile(dir=config.runtime_dir)) if stdin else None
        if file is not None:
            file.write(stdin)
            file.seek(0)
        popen = subprocess.Popen(
            argv,
            cwd=config.workspace,
            env=command_environment(config),
            stdin=file if file is not None else subprocess.DEVNULL,
            stdout=ends[0],
            stderr=ends[1],
            start_new_session=True,
        )
        process = _watched(popen)
        on_failure.pop_all()
    return Started(process, streams)


def _in_terminal(argv: Sequence[str], typed: bytes, config: AgentConfig) -> Started:
    screen, terminal = os.openpty()
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(os.close, screen)
        try:
            _set_up(terminal)
            popen = subprocess.Popen(
                (*IN_TERMINAL, *argv),
                cwd=config.workspace,
                env={**command_environment(config), "TERM": "xterm-256color"},
                stdin=terminal,
                stdout=terminal,
                stderr=terminal,
            )
        finally:
            os.close(terminal)
        process = _watched(popen)
        on_failure.pop_all()
    os.write(screen, typed + (b"\n" if typed and not typed.endswith(b"\n") else b"") + END_OF_INPUT)
    return Started(process, {"stdout": screen})


def _watched(popen: subprocess.Popen[bytes]) -> CommandProcess:
    """Raises `OSError`, and then nothing runs."""
    make_first_victim(popen.pid)
    try:
        return CommandProcess(popen)
    except OSError:
        popen.kill()
        popen.wait()
        raise


def _set_up(terminal: int) -> None:
    """Of a size that programs expect, and with plain line ends."""
    attributes = termios.tcgetattr(terminal)
    attributes[1] &= ~termios.ONLCR
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)
    termios.tcsetwinsize(terminal, (ROWS, COLUMNS))


def _processes() -> Iterator[tuple[int, tuple[int, int]]]:
    """Each that we can see and that lives: its parent and its session."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (life := _life(entry)):
            yield int(entry.name), life


def _life(entry: Path) -> tuple[int, int] | None:
    """Parent and session of the process there, if one lives."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        stat = (entry / "stat").read_bytes()
        state, parent, _, session = stat[stat.rindex(b")") + 2 :].split()[:4]
        if state not in (b"Z", b"X"):
            return int(parent), int(session)
    return None


async def _gone(pids: Iterable[int], timeout: float) -> None:
    """Until they have all ended, at most so many seconds."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        ends: list[asyncio.Future[None]] = []
        for pid in pids:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            except OSError:  # no room for it, or a kernel that has none, as gVisor's; these are no children of ours
                ends.append(asyncio.ensure_future(_gone_one(pid)))
                stack.callback(ends[-1].cancel)
                continue
            stack.callback(os.close, descriptor)
            ends.append(loop.create_future())
            loop.add_reader(descriptor, _once(ends[-1]))
            stack.callback(loop.remove_reader, descriptor)
        if ends:
            await asyncio.wait(ends, timeout=timeout)


async def _gone_one(pid: int) -> None:
    while _life(Path("/proc", str(pid))) is not None:  # noqa: ASYNC110 - of somebody else's child nobody tells
        await asyncio.sleep(POLL_SECONDS)


def _once(future: asyncio.Future[None]) -> Callable[[], None]:
    return lambda: None if future.done() else future.set_result(None)
