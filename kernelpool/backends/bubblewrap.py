"""The bubblewrap backend: sandboxes without a daemon, as root or as an ordinary user.

The policy is `bwrap_argv` and `seccomp`; this module starts it, keeps account of it, and finds it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from kernelpool.backends import doctor, egress
from kernelpool.backends.base import Finding, RuntimeMetadata, Sandbox, SandboxSpec, Say
from kernelpool.backends.bwrap_argv import root_entries
from kernelpool.backends.host import BubblewrapSettings, Host, open_host
from kernelpool.backends.launcher import UidInUse
from kernelpool.backends.locks import take_lock
from kernelpool.backends.processes import Process
from kernelpool.backends.records import Record, door_of
from kernelpool.backends.sandboxed import BubblewrapSandbox, erase
from kernelpool.backends.start import Shown, Start
from kernelpool.backends.tree.build import Tree, build_tree, hold, owner_of_trees, prune
from kernelpool.backends.tree.steps import in_thread
from kernelpool.backends.uids import Uids
from kernelpool.egress.doors import DoorKeeper
from kernelpool.errors import InvalidRequest, PrepareFailed, StartFailed
from kernelpool.runtimes import Runtime
from kernelpool.tasks import finish

__all__ = ["BubblewrapBackend", "BubblewrapSettings"]

log = logging.getLogger(__name__)

_UID_ATTEMPTS: Final = 20
_TREE_ATTEMPTS: Final = 3

TreeBuilder = Callable[[Runtime, Path, Say], Awaitable[Tree]]


def _trees_of(records: Iterable[Record]) -> set[Path]:
    return {Path(path) for record in records for path in (record.root, record.program)}


def _trees_left(state: Path) -> set[Path]:
    """Of the sandboxes that a gateway has left there."""
    return _trees_of(filter(None, map(Record.load, (state / "sandboxes").glob("*"))))


class BubblewrapBackend:
    """`state` is a directory of its own; see `state.py` for what is in it."""

    def __init__(
        self,
        state: Path,
        settings: BubblewrapSettings | None = None,
        *,
        doors: DoorKeeper | None = None,
        build_tree: TreeBuilder = build_tree,
    ) -> None:
        """Without `doors` no sandbox can be held to a list of domains, and none that is gets its way out back."""
        self._path = state
        self._settings = settings or BubblewrapSettings()
        self._build_tree = build_tree
        self._doors = doors
        self._opened: Host | None = None
        self._uids = Uids(self._settings.first_uid, self._settings.last_uid) if os.geteuid() == 0 else None
        self._trees: dict[str, Shown] = {}
        self._held: list[int] = []
        """Descriptors: nobody prunes what we show."""
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
        self._opened = await in_thread(open_host, self._path, self._settings)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sandbox in list(self._sandboxes.values()):
            await sandbox.aclose()
        self._sandboxes.clear()
        self._trees.clear()
        while self._held:
            os.close(self._held.pop())
        if self._opened:
            await in_thread(self._opened.close)
            self._opened = None

    @property
    def _host(self) -> Host:
        if self._opened is None:
            raise RuntimeError("the backend is not entered")
        return self._opened

    async def prepare(self, runtime: Runtime, say: Say) -> RuntimeMetadata:
        return (await self._tree(runtime, say)).tree.metadata

    async def _tree(self, runtime: Runtime, say: Say) -> Shown:
        async with self._tree_lock:
            if runtime.name not in self._trees:
                tree = await self._held_tree(runtime, say)
                entries = await in_thread(root_entries, tree.root, list(self._host.state.files()))
                self._trees[runtime.name] = Shown(tree, entries)
            return self._trees[runtime.name]

    async def _held_tree(self, runtime: Runtime, say: Say) -> Tree:
        for _ in range(_TREE_ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):
                tree = await self._build_tree(runtime, self._host.state.path, say)
                self._held += await in_thread(hold, tree)
                return tree
        raise PrepareFailed(f"the {runtime.name} runtime is removed as soon as it is made: who does that?")

    async def check(self, spec: SandboxSpec) -> Sequence[Finding]:
        host = self._host
        if spec.oci_runtime is not None or spec.gpus is not None or spec.runtime.image:
            raise InvalidRequest("bubblewrap has no oci_runtime, no gpus and no image: use the Docker backend")
        findings = doctor.host_findings(host.bwrap, host.cgroups.controllers, self._uids is not None)
        shown = await self._tree(spec.runtime, log.info)
        program = await in_thread(doctor.install_probe, host.state.path)
        try:
            sandbox = await self._start(
                doctor.throw_away(spec), replace(shown, tree=replace(shown.tree, program=program))
            )
        except StartFailed as error:
            return [*findings, doctor.start_finding(error)]
        try:
            return [*findings, *await doctor.probe_findings(sandbox)]
        finally:
            await sandbox.destroy()

    async def create(self, spec: SandboxSpec) -> Sandbox:
        if spec.egress.mode == "domains" and self._doors is None:
            raise StartFailed("there is no proxy here that could hold sessions to a list of domains")
        if spec.egress.mode == "outside" and self._host.network is None:
            raise StartFailed(egress.INSTALL)
        return await self._start(spec, await self._tree(spec.runtime, log.info))

    async def adopt(self) -> Sequence[Sandbox]:
        folders = await in_thread(lambda: list(self._host.state.sandboxes.iterdir()))
        known = self._sandboxes.keys() | self._starting
        found = [folder for folder in folders if folder.name not in known]
        await asyncio.gather(*map(self._adopt_or_erase, found))
        await self._erase_orphans()
        await self._prune_trees()
        return [sandbox for sandbox in self._sandboxes.values() if sandbox.id not in known]

    async def _adopt_or_erase(self, folder: Path) -> None:
        host = self._host
        record = await in_thread(Record.load, folder)
        if record is None or record.id != folder.name:
            record = self._unknown(folder.name)
        elif record.boot_id != host.boot:
            # Those numbers belong to other processes now.
            record = replace(record, init=None, monitor=None, network=None)
        processes = await in_thread(Process.open_both, record.monitor, record.init)
        if processes is None:
            await erase(record, folder)
            return
        sandbox = self._sandboxes[record.id] = BubblewrapSandbox(record, folder, *processes, self._removed)
        try:
            await self._open_door(sandbox)
        except StartFailed as error:  # it lives on without a way out
            log.error("adopted sandbox has no egress", extra={"sandbox": record.id}, exc_info=error)
        if self._uids and record.uid is not None:
            self._uids.claim([record.uid])

    async def _erase_orphans(self) -> None:
        """Groups without a directory: of a gateway that was killed at a bad moment."""
        host = self._host
        for id in await in_thread(host.cgroups.ids) - self._sandboxes.keys() - self._starting:
            await erase(self._unknown(id), host.state.sandbox(id))

    async def _prune_trees(self) -> None:
        """Runtime trees of earlier versions, half a gigabyte each, once no sandbox uses them any more. A backend that
        has prepared nothing, such as one that only cleans up, cannot tell which are wanted."""
        if not self._trees:
            return
        wanted = {path for shown in self._trees.values() for path in (shown.tree.root, shown.tree.program)}
        state, used = self._host.state.path, _trees_of(box.record for box in self._sandboxes.values())
        owner = await in_thread(owner_of_trees, state)
        if owner == await in_thread(state.resolve):
            await prune(state, wanted | used)
            return
        with contextlib.suppress(StartFailed, PermissionError):  # a gateway runs there; it is not ours
            lock = await in_thread(take_lock, owner)
            try:
                await prune(state, wanted | used | await in_thread(_trees_left, owner))
            finally:
                os.close(lock)

    def _unknown(self, id: str) -> Record:
        """A record for something that left none: enough to remove it."""
        cgroups = tuple(map(str, self._host.cgroups.named(id).paths))
        return Record(id, "", "", 0.0, "", self._host.boot, None, cgroups=cgroups)

    async def _removed(self, sandbox: BubblewrapSandbox, gone: bool) -> None:
        self._sandboxes.pop(sandbox.id, None)
        if self._doors:
            await self._doors.close(sandbox.id)
        if gone and self._uids and sandbox.record.uid is not None:
            self._uids.give_back(sandbox.record.uid)

    async def _start(self, spec: SandboxSpec, shown: Shown) -> BubblewrapSandbox:
        for _ in range(_UID_ATTEMPTS):
            uid = self._uids.take() if self._uids else None
            try:
                return await self._start_as(uid, spec, shown)
            except UidInUse as error:
                # Never given back: it belongs to somebody else, another gateway perhaps.
                log.warning("user id is in use", extra={"uid": uid, "error": str(error)})
        raise StartFailed("no user id is free for a sandbox: give this gateway a range of its own")

    async def _start_as(self, uid: int | None, spec: SandboxSpec, shown: Shown) -> BubblewrapSandbox:
        if spec.id in self._sandboxes or spec.id in self._starting:
            raise StartFailed(f"there is a sandbox {spec.id} already")
        start = Start(self._host, self._settings, spec, uid, shown)
        self._starting.add(spec.id)
        try:
            sandbox = await start.run(self._removed)
        except BaseException as error:
            gone = await finish(erase(start.record, start.folder))
            if gone and uid is not None and self._uids and not isinstance(error, UidInUse):
                self._uids.give_back(uid)
            if isinstance(error, OSError | TimeoutError):
                raise StartFailed("a sandbox could not be set up") from error
            raise
        finally:
            self._starting.discard(spec.id)
        self._sandboxes[spec.id] = sandbox
        try:
            await self._open_door(sandbox)
        except BaseException:
            await finish(sandbox.destroy())
            raise
        return sandbox

    async def _open_door(self, sandbox: BubblewrapSandbox) -> None:
        """With the policy that it was made with, whatever its pool says by now. Raises `StartFailed`."""
        if self._doors is None or sandbox.egress.mode != "domains":
            return
        folder, record = door_of(self._host.state.sandbox(sandbox.id)), sandbox.record
        try:
            await self._doors.open(sandbox.id, sandbox.pool, sandbox.egress, folder, record.uid)
        except OSError as error:
            raise StartFailed("the way from a sandbox to the egress proxy could not be made") from error
