"""The bubblewrap backend: sandboxes without a daemon, as root or as an ordinary user.

The policy is `bwrap_argv` and `seccomp`; this module starts it, keeps account of it, and finds it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from kernelpool.backends import doctor, egress
from kernelpool.backends.base import Finding, RuntimeMetadata, Sandbox, SandboxSpec, Say
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
    root_entries,
)
from kernelpool.backends.bwrap_binary import Bwrap, find_bwrap
from kernelpool.backends.cgroups import Cgroup, CgroupRoot
from kernelpool.backends.launcher import LastWords, Launch, UidInUse, rlimits, sealed
from kernelpool.backends.processes import Process, identify, parent
from kernelpool.backends.records import SOCKET, ProcessId, Record, boot_id
from kernelpool.backends.sandboxed import BubblewrapSandbox, erase
from kernelpool.backends.seccomp import native_architecture, policy, seccomp_program
from kernelpool.backends.state import StateFolder
from kernelpool.backends.tree import Tree, build_tree
from kernelpool.backends.tree.steps import in_thread
from kernelpool.backends.uids import Uids
from kernelpool.errors import StartFailed
from kernelpool.models import AgentConfig, Limits
from kernelpool.runtimes import Runtime

log = logging.getLogger(__name__)

_BACKLOG: Final = 128
_UID_ATTEMPTS: Final = 20
# Files of /proc that tell about the host, its kernel and what else runs on it.
_MASKED: Final = ("/proc/kallsyms", "/proc/config.gz", "/proc/keys", "/proc/key-users", "/proc/timer_list")

TreeBuilder = Callable[[Runtime, Path, Say], Awaitable[Tree]]


@dataclass(frozen=True, slots=True)
class BubblewrapSettings:
    bwrap: Path | None = None
    """The bwrap to run, instead of the newer one of the system's and the bundled one."""
    first_uid: int = 70_000
    """As root: the first of the host's user ids that sandboxes get, one each. No account may have them."""
    last_uid: int = 79_999
    """The last one. Gateways on one machine with different state directories need ranges of their own."""
    shm: int = 64 << 20
    """Size of /dev/shm, in bytes; it counts towards the sandbox's memory."""
    start_timeout: float = 30.0
    """Seconds for bwrap to set a sandbox up, without the agent's own start."""


@dataclass(frozen=True, slots=True)
class _Host:
    """What this machine offers, found out once."""

    state: StateFolder
    bwrap: Bwrap
    cgroups: CgroupRoot
    seccomp: bytes
    masked: tuple[str, ...]
    network: egress.NetworkProgram | None
    boot: str

    @property
    def memory_is_limited(self) -> bool:
        return "memory" in self.cgroups.controllers


class BubblewrapBackend:
    """`state` is a directory of its own; see `state.py` for what is in it."""

    def __init__(
        self,
        state: Path,
        settings: BubblewrapSettings | None = None,
        *,
        build_tree: TreeBuilder = build_tree,
    ) -> None:
        self._path = state
        self._settings = settings or BubblewrapSettings()
        self._build_tree = build_tree
        self._opened: _Host | None = None
        self._uids = Uids(self._settings.first_uid, self._settings.last_uid) if os.geteuid() == 0 else None
        self._trees: dict[str, tuple[Tree, tuple[RootEntry, ...]]] = {}
        self._tree_lock = asyncio.Lock()
        # Alive or being removed, by id; and ids that are being started.
        self._sandboxes: dict[str, BubblewrapSandbox] = {}
        self._starting: set[str] = set()

    def __repr__(self) -> str:
        return f"<BubblewrapBackend {self._path} [{len(self._sandboxes)} sandboxes, {len(self._starting)} starting]>"

    @property
    def name(self) -> str:
        return "bubblewrap"

    async def __aenter__(self) -> Self:
        """Raises `StartFailed` when this machine or the state directory cannot serve, saying what to do."""
        self._opened = await in_thread(_open, self._path, self._settings)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sandbox in list(self._sandboxes.values()):
            await sandbox.aclose()
        self._sandboxes.clear()
        if self._opened:
            await in_thread(self._opened.state.close)
            self._opened = None

    @property
    def _host(self) -> _Host:
        if self._opened is None:
            raise RuntimeError("the backend is not entered")
        return self._opened

    async def prepare(self, runtime: Runtime, say: Say) -> RuntimeMetadata:
        tree, _ = await self._tree(runtime, say)
        return tree.metadata

    async def _tree(self, runtime: Runtime, say: Say) -> tuple[Tree, tuple[RootEntry, ...]]:
        async with self._tree_lock:
            if runtime.name not in self._trees:
                tree = await self._build_tree(runtime, self._host.state.path, say)
                entries = await in_thread(root_entries, tree.root, list(self._host.state.files()))
                self._trees[runtime.name] = tree, entries
            return self._trees[runtime.name]

    async def check(self, runtime: Runtime, limits: Limits) -> Sequence[Finding]:
        host = self._host
        findings = doctor.host_findings(host.bwrap, host.cgroups.controllers, self._uids is not None)
        tree, entries = await self._tree(runtime, log.info)
        program = await in_thread(doctor.install_probe, host.state.path)
        spec = SandboxSpec(
            id=secrets.token_hex(6),
            pool="doctor",
            fingerprint="doctor",
            runtime=runtime,
            limits=limits,
            agent=AgentConfig(secret=secrets.token_urlsafe(), kernel_argv=()),
        )
        try:
            sandbox = await self._start(spec, replace(tree, program=program), entries)
        except StartFailed as error:
            return [*findings, doctor.start_finding(error)]
        try:
            return [*findings, *await doctor.probe_findings(sandbox)]
        finally:
            await sandbox.destroy()

    async def create(self, spec: SandboxSpec) -> Sandbox:
        if spec.egress and self._host.network is None:
            raise StartFailed(egress.INSTALL)
        tree, entries = await self._tree(spec.runtime, log.info)
        return await self._start(spec, tree, entries)

    async def adopt(self) -> Sequence[Sandbox]:
        folders = await in_thread(lambda: list(self._host.state.sandboxes.iterdir()))
        known = self._sandboxes.keys() | self._starting
        found = [folder for folder in folders if folder.name not in known]
        await asyncio.gather(*map(self._adopt_or_erase, found))
        await self._erase_orphans()
        return [sandbox for sandbox in self._sandboxes.values() if sandbox.id not in known]

    async def _adopt_or_erase(self, folder: Path) -> None:
        host = self._host
        record = await in_thread(Record.load, folder)
        if record is None or record.id != folder.name:
            record = self._unknown(folder.name)
        elif record.boot_id != host.boot:
            # Those numbers belong to other processes now.
            record = replace(record, init=None, monitor=None, network=None)
        init, monitor = await in_thread(_open_both, record.init, record.monitor)
        if init and monitor:
            self._sandboxes[record.id] = BubblewrapSandbox(record, folder, monitor, init, self._removed)
            if self._uids and record.uid is not None:
                self._uids.claim([record.uid])
            return
        _close_both(init, monitor)
        await erase(record, folder)

    async def _erase_orphans(self) -> None:
        """Groups without a directory: of a gateway that was killed at a bad moment."""
        host = self._host
        for id in await in_thread(host.cgroups.ids) - self._sandboxes.keys() - self._starting:
            await erase(self._unknown(id), host.state.sandbox(id))

    def _unknown(self, id: str) -> Record:
        """A record for something that left none: enough to remove it."""
        cgroups = tuple(map(str, self._host.cgroups.named(id).paths))
        return Record(id, "", "", 0.0, "", self._host.boot, None, cgroups=cgroups)

    async def _removed(self, sandbox: BubblewrapSandbox, gone: bool) -> None:
        self._sandboxes.pop(sandbox.id, None)
        if gone and self._uids and sandbox.record.uid is not None:
            self._uids.give_back(sandbox.record.uid)

    async def _start(self, spec: SandboxSpec, tree: Tree, entries: Sequence[RootEntry]) -> BubblewrapSandbox:
        for _ in range(_UID_ATTEMPTS):
            uid = self._uids.take() if self._uids else None
            try:
                return await self._start_as(uid, spec, tree, entries)
            except UidInUse as error:
                # Never given back: it belongs to somebody else, another gateway perhaps.
                log.warning("user id is in use", extra={"uid": uid, "error": str(error)})
        raise StartFailed("no user id is free for a sandbox: give this gateway a range of its own")

    async def _start_as(
        self, uid: int | None, spec: SandboxSpec, tree: Tree, entries: Sequence[RootEntry]
    ) -> BubblewrapSandbox:
        if spec.id in self._sandboxes or spec.id in self._starting:
            raise StartFailed(f"there is a sandbox {spec.id} already")
        start = _Start(self._host, self._settings, spec, uid, tree, entries)
        self._starting.add(spec.id)
        try:
            sandbox = await start.run(self._removed)
        except BaseException as error:
            gone = await _finish(erase(start.record, start.folder))
            if gone and uid is not None and self._uids and not isinstance(error, UidInUse):
                self._uids.give_back(uid)
            if isinstance(error, OSError | TimeoutError):
                raise StartFailed("a sandbox could not be set up") from error
            raise
        finally:
            self._starting.discard(spec.id)
        self._sandboxes[spec.id] = sandbox
        return sandbox


class _Start:
    """One start of a sandbox, step by step. `record` always tells what there is to remove."""

    def __init__(
        self,
        host: _Host,
        settings: BubblewrapSettings,
        spec: SandboxSpec,
        uid: int | None,
        tree: Tree,
        entries: Sequence[RootEntry],
    ) -> None:
        self._host = host
        self._settings = settings
        self._spec = spec
        self._tree = tree
        self._entries = entries
        self.folder = host.state.sandbox(spec.id)
        self.record = Record(
            id=spec.id,
            pool=spec.pool,
            fingerprint=spec.fingerprint,
            created_at=time.time(),
            secret=spec.agent.secret,
            boot_id=host.boot,
            uid=uid,
            cgroups=tuple(map(str, host.cgroups.named(spec.id).paths)),
            root=str(tree.root),
            program=str(tree.program),
        )

    async def run(self, removed: Callable[[BubblewrapSandbox, bool], Awaitable[None]]) -> BubblewrapSandbox:
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
                    if self._spec.egress:
                        await self._connect(init)
                    await self._open_gate(gate, init, last_words)
            outside, inside = await in_thread(_open_both, monitor, init)
            if outside is None or inside is None:
                _close_both(outside, inside)
                raise _failure(last_words)
            on_failure.pop_all()
        return BubblewrapSandbox(self.record, self.folder, outside, inside, removed, last_words)

    def _lay_out(self) -> None:
        """The record first, then all that it tells of."""
        self.folder.mkdir(mode=0o700)
        self.record.save(self.folder)
        self._host.cgroups.create(self._spec.id, self._spec.limits)

    def _launch(self, fds: dict[int, int], last_words: LastWords) -> int:
        view = View(
            root=self._tree.root,
            entries=self._entries,
            program=self._tree.program,
            workspace=self._spec.limits.workspace,
            tmp=self._spec.limits.tmp,
            shm=self._settings.shm,
            files=self._host.state.files(egress=self._spec.egress),
            masked=self._host.masked,
            empty=self._host.state.empty,
        )
        with ExitStack() as stack:
            listener = stack.enter_context(_listen(self.folder / SOCKET))
            config = sealed("config", json.dumps(asdict(self._spec.agent)).encode())
            stack.callback(os.close, config)
            seccomp = sealed("seccomp", self._host.seccomp)
            stack.callback(os.close, seccomp)
            return Launch(
                id=self._spec.id,
                bwrap=self._host.bwrap,
                arguments=bwrap_argv(view),
                command=AGENT_COMMAND,
                uid=self.record.uid,
                cgroups=Cgroup(tuple(map(Path, self.record.cgroups))).join_files,
                rlimits=rlimits(self._spec.limits, memory_is_limited=self._host.memory_is_limited),
                fds={**fds, LISTEN_FD: listener.fileno(), CONFIG_FD: config, SECCOMP_FD: seccomp},
            ).run(last_words)

    async def _identify(
        self, status: socket.socket, launched: int, last_words: LastWords
    ) -> tuple[ProcessId, ProcessId]:
        """bwrap says which its process 1 is, in its first line of status."""
        line = b""
        while not line.endswith(b"\n"):
            chunk = await asyncio.get_running_loop().sock_recv(status, 4096)
            if not chunk:
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


def _open_both(first: ProcessId | None, second: ProcessId | None) -> tuple[Process | None, Process | None]:
    return Process.open(first), Process.open(second)


def _close_both(*processes: Process | None) -> None:
    for process in processes:
        if process:
            process.close()


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


async def _finish(work: Awaitable[bool]) -> bool:
    """To its end, even when the caller is cancelled meanwhile: it is clearing up, and has a limit of its own."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    return task.result()


def _open(path: Path, settings: BubblewrapSettings) -> _Host:
    state = StateFolder(path)
    try:
        bwrap = find_bwrap(state.path, settings.bwrap)
        cgroups = CgroupRoot.open(state.tag)
        rules = policy(memory_is_limited="memory" in cgroups.controllers)
        return _Host(
            state=state,
            bwrap=bwrap,
            cgroups=cgroups,
            seccomp=seccomp_program(rules, native_architecture()),
            masked=tuple(path for path in _MASKED if Path(path).exists()),
            network=next(iter(egress.find_programs()), None),
            boot=boot_id(),
        )
    except BaseException:
        state.close()
        raise
