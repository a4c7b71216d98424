"""What the bubblewrap backend alone promises: users, records, and its helpers' refusals."""

from __future__ import annotations

import asyncio
import marshal
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelpool.backends import launch
from kernelpool.backends.base import RuntimeMetadata, Say
from kernelpool.backends.bubblewrap import BubblewrapBackend, BubblewrapSettings
from kernelpool.backends.cgroups import CgroupRoot
from kernelpool.backends.processes import Process, identify
from kernelpool.backends.records import ProcessId
from kernelpool.backends.sandboxed import BubblewrapSandbox
from kernelpool.backends.start import Start
from kernelpool.backends.tree.build import Tree
from kernelpool.errors import StartFailed
from kernelpool.runtimes import Runtime
from tests.contract.sandboxes import BubblewrapKit, ask, spec

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes get users of their own only from root")


@pytest.fixture(scope="module")
def kit() -> Iterator[BubblewrapKit]:
    kit = BubblewrapKit()
    yield kit
    kit.close()


@pytest.fixture
async def backend(kit: BubblewrapKit) -> AsyncIterator[BubblewrapBackend]:
    async with kit.backend() as backend:
        yield backend
        for sandbox in list(backend._sandboxes.values()):
            await sandbox.destroy()


async def _create(backend: BubblewrapBackend) -> BubblewrapSandbox:
    sandbox = await backend.create(spec())
    assert isinstance(sandbox, BubblewrapSandbox)
    return sandbox


def _uid(pid: ProcessId | None) -> int:
    assert pid is not None
    return Path(f"/proc/{pid.pid}").stat().st_uid


@as_root
async def test_no_two_sandboxes_have_the_same_user_and_none_is_root(backend: BubblewrapBackend) -> None:
    sandboxes = [await _create(backend) for _ in range(3)]

    uids = {_uid(process) for one in sandboxes for process in (one.record.init, one.record.monitor)}

    assert uids == {one.record.uid for one in sandboxes}
    assert len(uids) == 3
    assert 0 not in uids


async def test_a_start_that_is_cancelled_before_bwrap_has_spoken_leaves_nothing_where_there_are_no_groups(
    kit: BubblewrapKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = asyncio.Event()
    monitors: list[ProcessId | None] = []

    async def never(self: Start, *_: Any) -> Any:
        monitors.append(self.record.monitor)
        launched.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Start, "_identify", never)
    monkeypatch.setattr(CgroupRoot, "open", lambda tag: CgroupRoot((), tag))
    async with kit.backend() as backend:
        before = kit.traces()
        for seconds in (0, 0.001, 0.005, 0.02, 0.1):
            launched.clear()
            starting = asyncio.create_task(backend.create(spec()))
            await launched.wait()
            await asyncio.wait([starting], timeout=seconds)

            starting.cancel()
            await asyncio.wait([starting])

            assert kit.traces() == before
    assert None not in monitors  # while bwrap is being executed, it is known by nothing else


@as_root
async def test_a_user_that_somebody_else_runs_as_is_passed_over(kit: BubblewrapKit) -> None:
    first = kit.uids[-1] + 1
    stranger = subprocess.Popen(["sleep", "1000"], user=first)
    try:
        async with BubblewrapBackend(
            kit.state, BubblewrapSettings(first_uid=first, last_uid=first + 1), build_tree=kit.tree
        ) as backend:
            sandbox = await _create(backend)
            uid = sandbox.record.uid
            await sandbox.destroy()

        assert uid == first + 1
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("name", ["monitor", "init"])
async def test_a_kill_from_outside_is_noticed(backend: BubblewrapBackend, name: str) -> None:
    sandbox = await _create(backend)
    waiting = asyncio.create_task(sandbox.wait_dead())
    await asyncio.sleep(0)

    os.kill(getattr(sandbox.record, name).pid, signal.SIGKILL)

    async with asyncio.timeout(60):
        assert await waiting == "its agent ended"
    assert await asyncio.to_thread(Process.open, sandbox.record.init) is None


async def test_kills_for_want_of_memory_are_counted_while_the_sandbox_lives(
    kit: BubblewrapKit, backend: BubblewrapBackend
) -> None:
    if not kit.limits_memory:
        pytest.skip("this user has no memory control group on this machine")
    sandbox = await _create(backend)
    assert await sandbox.oom_kills() == 0

    await ask(sandbox, "x = []\nwhile True: x.append(bytearray(1 << 20))")

    assert await sandbox.oom_kills() >= 1
    assert await ask(sandbox, "print('alive')") == "alive"


async def test_a_setup_that_fails_says_why_and_leaves_nothing(kit: BubblewrapKit) -> None:
    before, missing = kit.traces(), kit.base / "missing"

    async def broken(runtime: Runtime, state: Path, say: Say) -> Tree:
        metadata = RuntimeMetadata("python", "3", (), 0.0, "standin", "0")
        return Tree(kit.base / "root", missing, metadata)

    missing.mkdir()
    async with BubblewrapBackend(kit.state, kit.settings, build_tree=broken) as backend:
        await backend.prepare(spec().runtime, lambda _: None)
        missing.rmdir()
        with pytest.raises(StartFailed) as caught:
            await backend.create(spec())

    assert "missing" not in str(caught.value)
    assert "bwrap: " in caught.value.__notes__[0]
    assert kit.traces() == before


async def test_the_doctor_names_a_sandbox_that_does_not_start(kit: BubblewrapKit) -> None:
    false = Path("/bin/false") if Path("/bin/false").exists() else Path("/usr/bin/false")

    with pytest.raises(StartFailed, match="no bwrap that runs"):
        async with BubblewrapBackend(kit.state, replace(kit.settings, bwrap=false), build_tree=kit.tree):
            pass


STEPS = ["_lay_out", "_launch", "_identify", "_open_gate"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_gateway_killed_in_the_middle_of_a_start_leaves_work_for_the_next_but_no_trace(
    kit: BubblewrapKit, step: str, when: str
) -> None:
    before = kit.traces()
    code = f"""
import asyncio, inspect, os, signal
from kernelpool.backends import start
from tests.contract import sandboxes

original = getattr(start.Start, {step!r})

def die(*args):
    if {when!r} == "after":
        original(*args)
    os.kill(os.getpid(), signal.SIGKILL)

async def die_later(*args):
    if {when!r} == "after":
        await original(*args)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(start.Start, {step!r}, die_later if inspect.iscoroutinefunction(original) else die)

async def main():
    kit = sandboxes.BubblewrapKit.at({str(kit.base)!r})
    async with kit.backend() as backend:
        await backend.create(sandboxes.spec())

asyncio.run(main())
"""

    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    async with kit.backend() as backend:
        for sandbox in await backend.adopt():
            await sandbox.destroy()

    assert done.returncode == -signal.SIGKILL, done.stderr
    assert kit.traces() == before


@pytest.mark.parametrize("text", ["", "{}", '{"id": 1', "null", '{"id": "other"}'])
async def test_a_record_that_makes_no_sense_is_removed(kit: BubblewrapKit, text: str) -> None:
    before = kit.traces()
    async with kit.backend() as backend:
        folder = kit.state / "sandboxes" / "0123456789ab"
        folder.mkdir()
        (folder / "sandbox.json").write_text(text)

        assert list(await backend.adopt()) == []

    assert kit.traces() == before


async def test_a_number_that_another_process_has_now_is_left_alone(kit: BubblewrapKit) -> None:
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        now = await asyncio.to_thread(identify, bystander.pid)
        assert now is not None
        async with kit.backend() as backend:
            sandbox = await _create(backend)
            record, folder = sandbox.record, kit.state / "sandboxes" / sandbox.id
            await sandbox.destroy()
            folder.mkdir()
            earlier = ProcessId(now.pid, now.started - 1)
            await asyncio.to_thread(replace(record, init=earlier, monitor=earlier).save, folder)

            assert list(await backend.adopt()) == []

        assert bystander.poll() is None
        assert not folder.exists()
    finally:
        bystander.kill()
        bystander.wait()


@as_root
def test_the_launcher_refuses_to_run_bwrap_as_root() -> None:
    read, write = os.pipe()
    order: dict[str, Any] = {
        "path": "/bin/true",
        "argv": ["true"],
        "cwd": "/",
        "uid": None,
        "cgroups": [],
        "rlimits": {},
        "fds": {},
        "stderr": write,
    }

    done = subprocess.run(
        [sys.executable, "-I", "-S", launch.__file__],
        input=marshal.dumps(order),
        capture_output=True,
        pass_fds=[write],
        timeout=60,
    )
    os.close(read)
    os.close(write)

    assert done.returncode == 1
    assert b"bwrap must not run as root" in done.stderr


def test_a_state_directory_with_too_long_a_path_is_refused() -> None:
    with tempfile.TemporaryDirectory() as base, pytest.raises(StartFailed, match="too long"):
        asyncio.run(_enter(Path(base) / ("x" * 100)))


@as_root
def test_a_state_directory_that_sandboxes_cannot_enter_is_refused() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as base, pytest.raises(StartFailed, match=r"chmod o\+x"):
        asyncio.run(_enter(Path(base) / "state"))


async def _enter(state: Path) -> None:
    async with BubblewrapBackend(state):
        pass


def test_a_directory_that_is_somebody_elses_is_refused_and_left_alone() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as base:
        os.chmod(base, 0o1777)
        (Path(base) / "something").touch()

        with pytest.raises(StartFailed, match="not ours alone"):
            asyncio.run(_enter(Path(base)))

        assert Path(base).stat().st_mode & 0o7777 == 0o1777


def test_the_state_directory_shows_others_nothing(kit: BubblewrapKit) -> None:
    async def enter() -> None:
        async with kit.backend():
            pass

    asyncio.run(enter())

    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (kit.state, *kit.state.iterdir())}
    assert modes["state"] == "0o711"
    assert modes["sandboxes"] == "0o700"
    assert modes["lock"] == "0o600"


def test_bwrap_of_the_system_is_preferred_when_it_is_newer(tmp_path: Path) -> None:
    from kernelpool.backends.bwrap_binary import find_bwrap

    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho bubblewrap 99.1.0\n")
    fake.chmod(0o755)

    assert str(find_bwrap(tmp_path, fake)) == f"{fake} 99.1.0"
    if shutil.which("bwrap") is None:
        assert find_bwrap(tmp_path).bundled


async def test_borrowed_trees_are_removed_when_nobody_else_uses_them(kit: BubblewrapKit) -> None:
    shelf, other = kit.state / "runtimes", kit.base / "other"
    old, used, lent = (shelf / f"node-{name}" / "root" for name in ("old", "used", "lent"))
    for root in (old, used, lent):
        shutil.copytree(kit.base / "root", root, symlinks=True)
    other.mkdir(mode=0o711)
    (other / "runtimes").symlink_to("../state/runtimes")
    shown = used

    async def build(runtime: Runtime, state: Path, say: Say) -> Tree:
        return replace(await kit.tree(runtime, state, say), root=shown)

    def backend(state: Path) -> BubblewrapBackend:
        return BubblewrapBackend(state, kit.settings, build_tree=build)

    async with backend(kit.state) as owner:
        await _create(owner)
        shown = lent
        async with backend(other) as borrower:
            await borrower.prepare(spec().runtime, lambda _: None)
            await borrower.adopt()
            assert old.exists()  # the owner may have a use for it
    async with backend(other) as borrower:
        await borrower.prepare(spec().runtime, lambda _: None)
        await borrower.adopt()
        assert [root.exists() for root in (old, used, lent)] == [False, True, True]

        shown = used
        async with backend(kit.state) as owner:
            await owner.prepare(spec().runtime, lambda _: None)
            for sandbox in await owner.adopt():
                await sandbox.destroy()
            assert lent.exists()  # it is being shown to others


async def test_trees_that_nothing_uses_any_more_are_removed(kit: BubblewrapKit) -> None:
    shelf = kit.state / "runtimes"
    old, used, new = (shelf / f"python-{name}" / "root" for name in ("old", "used", "new"))
    for root in (old, used, new):
        shutil.copytree(kit.base / "root", root, symlinks=True)
    current = used

    async def build(runtime: Runtime, state: Path, say: Say) -> Tree:
        return replace(await kit.tree(runtime, state, say), root=current)

    async with BubblewrapBackend(kit.state, kit.settings, build_tree=build) as first:
        await _create(first)
    current = new
    async with BubblewrapBackend(kit.state, kit.settings, build_tree=build) as second:
        await second.adopt()
        assert old.exists()  # nothing is prepared: who knows what is wanted

    for alive in (True, False):
        async with BubblewrapBackend(kit.state, kit.settings, build_tree=build) as backend:
            await backend.prepare(spec().runtime, lambda _: None)
            adopted = await backend.adopt()

            assert [root.exists() for root in (old, used, new)] == [False, alive, True]
            for sandbox in adopted:
                await sandbox.destroy()
