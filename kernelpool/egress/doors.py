"""Doors: the gateway's side of the proxy. Makes the socket that a sandbox asks by, and keeps a proxy process behind it.

The listeners are made and held here and only lent to the process: while it is started again, whoever knocks waits. The
process parses what strangers send, so what it says is checked like theirs: which sandbox a decision is about it may
only choose among those that it was given.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Protocol, Self

from kernelpool.egress.decisions import MAX_MESSAGE, Decision
from kernelpool.egress.policy import EgressPolicy
from kernelpool.tasks import Tasks
from kernelpool.telemetry import SILENT, Telemetry

log = logging.getLogger(__name__)

SOCKET: Final = "egress.sock"
FOLDER_INSIDE: Final = "/run/kp"
SOCKET_INSIDE: Final = f"{FOLDER_INSIDE}/{SOCKET}"
"""Where the program in a sandbox finds it, whatever made the sandbox."""

_COMMAND: Final = (sys.executable, "-s", "-P", "-m", "kernelpool.egress")
_LAST_WORDS: Final = 8 << 10
_BACKLOG: Final = 64
_BACK_OFF: Final = (0.1, 10.0)
_SETTLED: Final = 30.0
"""Seconds after which a process that ends is started again at once."""
_SEND_SECONDS: Final = 20.0
_END_SECONDS: Final = 5.0
_PACE: Final = 0.001
"""Seconds between two messages that are heard."""


class DoorKeeper(Protocol):
    """What a backend needs to give a sandbox its way out."""

    async def open(self, sandbox: str, pool: str, policy: EgressPolicy, folder: Path, owner: int | None) -> None:
        """Makes `egress.sock` in the folder, for that user alone, or with None for all who can get there. In the place
        of one that was there. Raises `OSError`."""

    async def close(self, sandbox: str) -> None:
        """Also when it has none. The file stays, for whoever removes the folder."""


@dataclass(frozen=True, slots=True)
class _Door:
    pool: str
    policy: EgressPolicy
    listener: socket.socket


class Doors:
    """A `DoorKeeper`, as an async context manager. The process is started when the first sandbox needs it."""

    def __init__(self, telemetry: Telemetry = SILENT, command: Sequence[str] = _COMMAND) -> None:
        self.session_of: Callable[[str], str] = lambda _sandbox: ""
        """Whose session a sandbox is, for the log; set by whoever knows."""
        self._telemetry = telemetry
        self._command = command
        # The mutable state: doors by sandbox, and those of them that the process has to be told of.
        self._doors: dict[str, _Door] = {}
        self._changed: dict[str, None] = {}
        self._news = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._tasks = Tasks("egress")

    def __repr__(self) -> str:
        return f"<Doors [{len(self._doors)} open]>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.aclose()
        for door in self._doors.values():
            door.listener.close()
        self._doors.clear()

    async def open(self, sandbox: str, pool: str, policy: EgressPolicy, folder: Path, owner: int | None) -> None:
        listener = await asyncio.to_thread(listen_in, folder, owner)
        await self.close(sandbox)
        self._doors[sandbox] = _Door(pool, policy, listener)
        self._tell_of(sandbox)
        if self._running is None:
            self._running = self._tasks.spawn(self._keep_running(), "proxy", apart=True)

    async def close(self, sandbox: str) -> None:
        if (door := self._doors.pop(sandbox, None)) is not None:
            door.listener.close()
            self._tell_of(sandbox)

    def _tell_of(self, sandbox: str) -> None:
        self._changed[sandbox] = None
        self._news.set()

    # --- the process

    async def _keep_running(self) -> None:
        loop = asyncio.get_running_loop()
        pause = 0.0
        while True:
            began = loop.time()
            try:
                await self._run()
                why = "it ended"
            except Exception as error:  # whatever it is: without it no sandbox has its way out
                why = repr(error)
            pause = 0.0 if loop.time() - began > _SETTLED else min(max(2 * pause, _BACK_OFF[0]), _BACK_OFF[1])
            log.error("egress proxy ended, and is started again", extra={"why": why, "pause": pause})
            await asyncio.sleep(pause)

    async def _run(self) -> None:
        """One process, to its end."""
        async with _process(self._command) as gateway:
            self._changed = dict.fromkeys(self._doors)
            self._news.set()
            feeding = asyncio.create_task(self._feed(gateway))
            hearing = asyncio.create_task(self._hear(gateway))
            try:
                await asyncio.wait((feeding, hearing), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (feeding, hearing):
                    task.cancel()
                await asyncio.wait((feeding, hearing))
            for task in (feeding, hearing):
                if not task.cancelled() and (error := task.exception()) is not None:
                    raise error

    async def _feed(self, gateway: socket.socket) -> None:
        """Raises `OSError`, `TimeoutError`."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._changed:
                sandbox = next(iter(self._changed))
                del self._changed[sandbox]
                # A copy: the door may be closed while this waits, and its number be another file's.
                door = self._doors.get(sandbox)
                if door is None:
                    await _send(gateway, {"close": sandbox})
                    continue
                with door.listener.dup() as lent:
                    await _send(gateway, {"open": sandbox, "domains": list(door.policy.names)}, lent.fileno())

    async def _hear(self, gateway: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(gateway, MAX_MESSAGE):
            try:
                self._note(Decision.from_json(data))
            except ValueError as error:
                log.warning("egress proxy said something odd", extra={"why": str(error)[:200]})
            # A process that was taken over may say as much as it likes; this one has others to hear.
            await asyncio.sleep(_PACE)

    def _note(self, decision: Decision) -> None:
        door = self._doors.get(decision.sandbox)
        if door is None:
            return  # its sandbox is gone
        if not decision.over:
            self._telemetry.observer.egress_decided(door.pool, decision.outcome.value, decision.count)
        facts: dict[str, object] = {"pool": door.pool, "session": self.session_of(decision.sandbox)}
        event = "egress untold" if decision.untold else "egress ended" if decision.over else "egress decided"
        log.info(event, extra=facts | decision.facts())


def listen_in(folder: Path, owner: int | None) -> socket.socket:
    """By the folder's descriptor: however long its path is, the socket's has room, and no link in it is followed."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET, dir_fd=descriptor)
        os.fchmod(listener.fileno(), 0o666 if owner is None else 0o600)
        listener.bind(f"/proc/self/fd/{descriptor}/{SOCKET}")
        os.chmod(SOCKET, 0o666 if owner is None else 0o600, dir_fd=descriptor)  # the umask had a say
        if owner is not None:
            os.chown(SOCKET, owner, owner, dir_fd=descriptor, follow_symlinks=False)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(descriptor)
    return listener


@asynccontextmanager
async def _process(command: Sequence[str]) -> AsyncIterator[socket.socket]:
    """The gateway's end of the socket to it. When that is closed it ends, and what it had to say is logged."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with _last_words() as words:
        starting = asyncio.ensure_future(asyncio.to_thread(_start, command, theirs, words.fileno()))
        try:
            with ours:
                await asyncio.shield(starting)
                theirs.close()
                yield ours
        finally:
            process = await starting  # also when this was cancelled meanwhile
            theirs.close()
            await asyncio.shield(asyncio.to_thread(_end, process))
            if said := os.pread(words.fileno(), _LAST_WORDS, 0).rstrip(b"\0"):
                log.error("egress proxy complained", extra={"words": said.decode(errors="replace")})


def _last_words() -> BinaryIO:
    """Anonymous memory of a fixed size for its stderr, which needs no reader."""
    descriptor = os.memfd_create("stderr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, _LAST_WORDS)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return open(descriptor, "r+b", buffering=0)


def _start(command: Sequence[str], theirs: socket.socket, words: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=theirs.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=words,
        close_fds=True,
        start_new_session=True,
        cwd="/",
        # Our modules are where this process has them from; nothing else of its environment is anybody's business.
        env={"PYTHONPATH": os.pathsep.join(filter(os.path.isabs, sys.path))},
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends by itself, now that its stdin has ended; if not, it is ended."""
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def _send(gateway: socket.socket, message: dict[str, object], *files: int) -> None:
    """Raises `TimeoutError` when it is not taken."""
    data = json.dumps(message).encode()
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_SEND_SECONDS):
        while True:
            with contextlib.suppress(BlockingIOError):
                socket.send_fds(gateway, [data], files)
                return
            writable: asyncio.Future[None] = loop.create_future()
            loop.add_writer(gateway, lambda: None if writable.done() else writable.set_result(None))  # noqa: B023
            try:
                await writable
            finally:
                loop.remove_writer(gateway)
