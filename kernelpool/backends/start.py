"""One start of a bubblewrap sandbox, step by step.

The order is the promise: the record before anything that it tells of; the limits before the process that they limit;
bwrap sets everything up and stops at a gate; what runs is recorded; then the gate opens and the agent starts.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from kernelpool.backends import egress
from kernelpool.backends.base import SandboxSpec
from kernelpool.backends.bwrap_argv import (
    AGENT_COMMAND,
    CONFIG_FD,
    GATE_FD,
    LISTEN_FD,
    SECCOMP_FD,
    STATUS_FD,
    RootEntry,
    View,
    bwrap_argv,
)
from kernelpool.backends.cgroups import Cgroup
from kernelpool.backends.host import BubblewrapSettings, Host
from kernelpool.backends.launcher import LastWords, Launch, rlimits, sealed
from kernelpool.backends.processes import Process, identify, parent
from kernelpool.backends.records import SOCKET, ProcessId, Record, door_of
from kernelpool.backends.sandboxed import BubblewrapSandbox, Removed
from kernelpool.backends.tree.build import Tree
from kernelpool.backends.tree.steps import in_thread
from kernelpool.errors import StartFailed

log = logging.getLogger(__name__)

_BACKLOG: Final = 4096
"""Connections that may wait for the agent to accept them. Past it they are refused, which looks like a dead agent."""
_MAX_STATUS: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Shown:
    """A runtime's tree, and what of it sandboxes are shown."""

    tree: Tree
    entries: Sequence[RootEntry]


class Start:
    """One start of a sandbox, step by step. `record` always tells what there is to remove."""

    def __init__(
        self, host: Host, settings: BubblewrapSettings, spec: SandboxSpec, uid: int | None, shown: Shown
    ) -> None:
        self._host = host
        self._settings = settings
        self._spec = spec
        self._shown = shown
        self.folder = host.state.sandbox(spec.id)
        self.record = Record(
            id=spec.id,
            pool=spec.pool,
            fingerprint=spec.fingerprint,
            created_at=time.time(),
            secret=spec.agent.secret,
            boot_id=host.boot,
            uid=uid,
            egress=spec.egress.setting,
            cgroups=tuple(map(str, host.cgroups.named(spec.id).paths)),
            root=str(shown.tree.root),
            program=str(shown.tree.program),
        )

    async def run(self, removed: Removed) -> BubblewrapSandbox:
        last_words = LastWords()
        with ExitStack() as on_failure:
            on_failure.callback(last_words.close)
            async with AsyncExitStack() as stack:
                status, status_theirs = _pair(stack)
                gate, gate_theirs = _pair(stack)
                await in_thread(self._lay_out)
                launched = await in_thread(
                    self._launch, {STATUS_FD: status_theirs.fileno(), GATE_FD: gate_theirs.fileno()}, last_words
                )
                # Ours alone must not keep the other ends open: their end is the news that we wait for.
                status_theirs.close()
                gate_theirs.close()
                async with asyncio.timeout(self._settings.start_timeout):
                    monitor, init = await self._identify(status, launched, last_words)
                    if self._spec.egress.mode == "outside":
                        await self._connect(init)
                    await self._open_gate(gate, init, last_words)
            processes = await in_thread(Process.open_both, monitor, init)
            if processes is None:
                raise _failure(last_words)
            on_failure.pop_all()
        return BubblewrapSandbox(self.record, self.folder, *processes, removed, last_words)

    def _lay_out(self) -> None:
        """The record first, then all that it tells of."""
        self.folder.mkdir(mode=0o700)
        self.record.save(self.folder)
        self._host.cgroups.create(self._spec.id, self._spec.limits)
        if self._spec.egress.mode == "domains":
            door_of(self.folder).mkdir(mode=0o700)
            if self.record.uid is not None:
                os.chown(door_of(self.folder), self.record.uid, self.record.uid)

    def _launch(self, fds: dict[int, int], last_words: LastWords) -> int:
        view = View(
            root=self._shown.tree.root,
            entries=self._shown.entries,
            program=self._shown.tree.program,
            workspace=self._spec.limits.workspace,
            tmp=self._spec.limits.tmp,
            shm=self._settings.shm,
            files=self._host.state.files(egress=self._spec.egress.mode == "outside"),
            masked=self._host.masked,
            empty=self._host.state.empty,
            door=door_of(self.folder) if self._spec.egress.mode == "domains" else None,
        )
        with ExitStack() as stack:
            listener = stack.enter_context(_listen(self.folder / SOCKET))
            config = sealed("config", json.dumps(asdict(self._spec.agent)).encode())
            stack.callback(os.close, config)
            seccomp = sealed("seccomp", self._host.seccomp)
            stack.callback(os.close, seccomp)
            launched = Launch(
                id=self._spec.id,
                bwrap=self._host.bwrap,
                arguments=bwrap_argv(view),
                command=AGENT_COMMAND,
                uid=self.record.uid,
                cgroups=Cgroup(tuple(map(Path, self.record.cgroups))).join_files,
                rlimits=rlimits(self._spec.limits, memory_is_limited=self._host.memory_is_limited),
                fds={**fds, LISTEN_FD: listener.fileno(), CONFIG_FD: config, SECCOMP_FD: seccomp},
            ).run(last_words)
        # Here, because a start that is cancelled hears of no result; and a process that executes bwrap just now has for
        # a moment no arguments by which it could be found.
        self.record = replace(self.record, monitor=identify(launched))
        return launched

    async def _identify(
        self, status: socket.socket, launched: int, last_words: LastWords
    ) -> tuple[ProcessId, ProcessId]:
        """bwrap says which its process 1 is, in its first line of status."""
        line = b""
        while not line.endswith(b"\n"):
            chunk = await asyncio.get_running_loop().sock_recv(status, 4096)
            if not chunk or len(line) > _MAX_STATUS:
                raise _failure(last_words)
            line += chunk
        pid = int(json.loads(line.splitlines()[0])["child-pid"])
        monitor, init = await in_thread(lambda: (identify(launched), identify(pid)))
        if monitor is None or init is None or await in_thread(parent, pid) != launched:
            raise _failure(last_words)
        self.record = replace(self.record, monitor=monitor, init=init)
        await in_thread(self.record.save, self.folder)
        return monitor, init

    async def _connect(self, init: ProcessId) -> None:
        program = self._host.network
        if program is None:
            raise StartFailed(egress.INSTALL)
        groups = Cgroup(tuple(map(Path, self.record.cgroups))).join_files
        network = await in_thread(egress.connect, program, init, self.record.uid, self._spec.id, groups)
        self.record = replace(self.record, network=network)
        await in_thread(self.record.save, self.folder)

    async def _open_gate(self, gate: socket.socket, init: ProcessId, last_words: LastWords) -> None:
        """Lets bwrap, which has set everything up by then, execute the agent; it closes the gate as it passes."""
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(gate, b"!")
            await loop.sock_recv(gate, 1)
        except OSError:
            raise _failure(last_words) from None
        if last_words.read().startswith("bwrap: "):
            raise _failure(last_words)


def _failure(last_words: LastWords) -> StartFailed:
    """The detail is a note, because it names paths and the message goes to callers."""
    failure = StartFailed("bubblewrap could not set up a sandbox")
    words = last_words.read()
    failure.add_note(words or "bwrap ended without a word")
    log.warning("sandbox did not start", extra={"bwrap": words})
    return failure


def _pair(stack: AsyncExitStack) -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    stack.callback(ours.close)
    stack.callback(theirs.close)
    ours.setblocking(False)
    return ours, theirs


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(listener.fileno(), 0o600)  # before bind: the file has these bits from its first moment
        listener.bind(str(path))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
