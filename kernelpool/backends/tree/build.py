"""Builds a runtime's tree, once; finds it again; removes old ones."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from kernelpool.backends.base import RuntimeMetadata, Say
from kernelpool.backends.tree import hostfiles, interpreter, libraries, packages, program, programs, userland
from kernelpool.backends.tree.steps import PART_PREFIX, beside, exclusive, in_thread, remove_leftovers
from kernelpool.errors import PrepareFailed
from kernelpool.runtimes import Runtime

BUILDER_VERSION = 1
"""Raise it when a change of this package must reach trees that are there already."""

_METADATA = TypeAdapter(RuntimeMetadata)

MIB = 1 << 20
_BASE_BYTES = 300 * MIB
_PACKAGE_BYTES = 60 * MIB
"""The data stack's average, unpacked and compiled, with the wheels still beside it."""
_NPM_BYTES = 500 * MIB


@dataclass(frozen=True, slots=True)
class Tree:
    """Directories of the host, complete, never changed again."""

    root: Path
    """To be mounted read-only as /."""
    program: Path
    """To be mounted read-only as /opt/kernelpool."""
    metadata: RuntimeMetadata


async def build_tree(runtime: Runtime, state: Path, say: Say, *, package: Path | None = None) -> Tree:
    """Takes minutes the first time and milliseconds from then on; safe beside other gateways of the same `state`.

    `package` is where the agent's program is copied from: this installation, unless a test says otherwise.
    Raises `PrepareFailed`, leaving nothing half-made behind, as does cancelling it; `FileNotFoundError` when another
    gateway has pruned it at that moment.
    """
    try:
        shelf = await in_thread(_shelf, state)
        folder = shelf / f"{runtime.name}-{root_key(runtime)}"
        files = shelf / f"agent-{await in_thread(program.program_key, runtime, package)}"
        if not await in_thread(_are_there, folder, files):
            await in_thread(_make_shelf, shelf)
            async with exclusive(shelf, say):
                await in_thread(remove_leftovers, shelf)
                if not await in_thread(_are_there, folder):
                    await _build_root(runtime, folder, say)
                if not await in_thread(_are_there, files):
                    await _build_program(runtime, files, package)
    except OSError as error:
        raise PrepareFailed(f"the {runtime.name} runtime could not be made: {error}") from error
    return Tree(folder / "root", files, await in_thread(_read_metadata, runtime, folder))


def root_key(runtime: Runtime) -> str:
    """Not of the host's files: an upgrade of the host, or of a package within its bounds, reaches a tree when the tree
    is made anew, which removing its directory does."""
    facts = [BUILDER_VERSION, sys.version, sysconfig.get_platform(), list(userland.TOOLS)]
    facts += [list(packages.AGENT_REQUIREMENTS), list(runtime.requirements)]
    facts += [runtime.programs, runtime.npm_lock] if runtime.programs or runtime.npm_lock else []
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def _are_there(*folders: Path) -> bool:
    return all(folder.is_dir() for folder in folders)


def owner_of_trees(state: Path) -> Path:
    """The state directory whose trees they are: another one, where it borrows them."""
    return _shelf(state).parent


def _shelf(state: Path) -> Path:
    # Without links: the dynamic loader's answers are compared with it.
    return (state / "runtimes").resolve()


def _make_shelf(shelf: Path) -> None:
    shelf.mkdir(parents=True, exist_ok=True)
    shelf.chmod(0o755)  # whatever the umask: the uids of sandboxes must come through


async def _build_root(runtime: Runtime, folder: Path, say: Say) -> None:
    await in_thread(_check_space, runtime, folder.parent)
    started = time.monotonic()
    async with beside(folder) as part:
        root = part / "root"
        say(f"preparing the {runtime.name} runtime: copying the interpreter and the shell tools")
        await in_thread(userland.copy_userland, root)
        await in_thread(interpreter.copy_interpreter, root)
        await packages.install(root, (*packages.AGENT_REQUIREMENTS, *runtime.requirements), say)
        await programs.add_programs(runtime, root, say)
        say("compiling")
        await packages.compile_all(root, "/", [root / "usr/local/lib", hostfiles.inside(root, packages.VENV)])
        say("copying the shared libraries")
        await in_thread(libraries.copy_libraries, root)
        await in_thread(libraries.write_loader_cache, root)
        await in_thread(_finish, runtime, part)
    say(f"the {runtime.name} runtime is prepared ({time.monotonic() - started:.0f} s)")


def _check_space(runtime: Runtime, shelf: Path) -> None:
    needed = _BASE_BYTES + _PACKAGE_BYTES * len(runtime.requirements) + (_NPM_BYTES if runtime.npm_lock else 0)
    free = shutil.disk_usage(shelf).free
    if free < needed:
        raise PrepareFailed(
            f"the {runtime.name} runtime needs about {needed // MIB} MiB in {shelf}, where {free // MIB} MiB are free"
        )


def _finish(runtime: Runtime, part: Path) -> None:
    shutil.rmtree(part / "tmp")
    (part / "requirements.txt").unlink()
    hostfiles.settle_modes(part)
    _write_metadata(part, packages.describe(runtime, part / "root"))


async def _build_program(runtime: Runtime, files: Path, package: Path | None) -> None:
    async with beside(files) as part:
        await in_thread(program.write_program, runtime, part, package)
        await packages.compile_all(part, program.SEEN_AS, [part])
        await in_thread(hostfiles.settle_modes, part)


def _write_metadata(folder: Path, metadata: RuntimeMetadata) -> None:
    new = folder / "metadata.json.new"
    new.write_bytes(_METADATA.dump_json(metadata, indent=2))
    new.replace(folder / "metadata.json")


def _read_metadata(runtime: Runtime, folder: Path) -> RuntimeMetadata:
    """The file beside the root; made anew from the root when somebody damaged it."""
    try:
        return _METADATA.validate_json((folder / "metadata.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        metadata = packages.describe(runtime, folder / "root")
        _write_metadata(folder, metadata)
        return metadata


def hold(tree: Tree) -> list[int]:
    """Descriptors that keep the tree from being pruned until they are closed, also by another gateway. Raises
    `FileNotFoundError` when one was quicker. Blocks for moments."""
    held: list[int] = []
    try:
        for folder in (tree.root.parent, tree.program):
            held.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            fcntl.flock(held[-1], fcntl.LOCK_SH)
            if not os.path.samestat(os.fstat(held[-1]), folder.stat()):
                raise FileNotFoundError(folder)
    except BaseException:
        for descriptor in held:
            os.close(descriptor)
        raise
    return held


async def prune(state: Path, keep: Collection[Path]) -> None:
    """Removes every root and program but those that somebody holds, and those in `keep`: the `Tree.root` and
    `Tree.program` of the runtimes that are served now, and of every sandbox that is alive."""
    shelf = await in_thread(_shelf, state)
    if await in_thread(shelf.is_dir):
        async with exclusive(shelf, lambda text: None):
            await in_thread(_prune, shelf, frozenset(keep))


def _prune(shelf: Path, keep: frozenset[Path]) -> None:
    for folder in shelf.iterdir():
        if folder.is_dir() and not folder.name.startswith(PART_PREFIX) and keep.isdisjoint((folder, folder / "root")):
            with contextlib.suppress(BlockingIOError):
                shutil.rmtree(_out_of_sight(folder), ignore_errors=True)


def _out_of_sight(folder: Path) -> Path:
    """First: half a tree must never be taken for a whole one. Raises `BlockingIOError` when somebody holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return folder.rename(folder.with_name(f"{PART_PREFIX}{folder.name}"))
    finally:
        os.close(descriptor)
