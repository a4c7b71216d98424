"""What the Dockerfile runs while an image is built: the layers of a runtime, of its program, and of the gateway.

`python3 -m kernelpool.backends.tree.image packages|program|gateway NAME FOLDER` fills FOLDER/root, to be copied to / of
an image on the same base. Only the standard library is there, and that base's own Python, wherever it lies.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import sysconfig
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from kernelpool.backends.tree import debian, hostfiles, interpreter, packages, program, programs, userland
from kernelpool.errors import KernelpoolError
from kernelpool.models import WORKSPACE
from kernelpool.runtimes import load_runtimes

SAID: Final = "kernelpool: "
"""Begins each line that is for whoever waits for the build."""

GATEWAY_UID: Final = 10001
"""Not that of sandboxes, who share a directory with the gateway that only its owner may change."""

_SOURCE: Final = Path("/src")
_BREATH_SECONDS: Final = 2.0


async def packages_layer(name: str, root: Path) -> None:
    """Everything of a runtime that changes seldom: its packages, the compiled standard library, its user."""
    runtime = load_runtimes(_SOURCE / "kernels")[name]
    lines = (*packages.AGENT_REQUIREMENTS, *runtime.requirements)
    await _install(root, lines, runtime.folder / "constraints.txt")
    await programs.add_programs(runtime, root, _say)
    await debian.unpack(runtime, root, _say)
    for path in (WORKSPACE, "/run/kp"):
        hostfiles.inside(root, path).mkdir(parents=True)
    _add_user(root, "sandbox", userland.SANDBOX_UID, WORKSPACE)
    _keep_path(root)


async def program_layer(name: str, root: Path) -> None:
    """The agent's program and the runtime's folder."""
    target = hostfiles.inside(root, program.SEEN_AS)
    program.write_program(load_runtimes(_SOURCE / "kernels")[name], target)
    await packages.compile_all(target, program.SEEN_AS, [target])


async def gateway_layer(name: str, root: Path) -> None:
    """kernelpool itself, with what sends traces."""
    await _install(root, [f"{name}[mcp,otel] @ {_SOURCE.as_uri()}"], _SOURCE / "constraints.txt")
    state = hostfiles.inside(root, "/var/lib/kernelpool")
    state.mkdir(parents=True)
    _add_user(root, name, GATEWAY_UID, "/var/lib/kernelpool")


LAYERS: Final[dict[str, Callable[[str, Path], Awaitable[None]]]] = {
    "packages": packages_layer,
    "program": program_layer,
    "gateway": gateway_layer,
}


async def _install(root: Path, lines: Sequence[str], constraints: Path) -> None:
    python = interpreter.base_executable()
    await packages.install(root, lines, _say, interpreter=python, constraints=constraints)
    _say("compiling")
    copied = _copy_stdlib(root)
    await packages.compile_all(root, "/", [copied, hostfiles.inside(root, packages.VENV)])
    _keep_compiled(copied)


def _copy_stdlib(root: Path) -> Path:
    stdlib = Path(sysconfig.get_path("stdlib")).resolve()
    copied = hostfiles.inside(root, stdlib)
    shutil.copytree(stdlib, copied, ignore=interpreter.ignored)
    return copied


def _keep_compiled(folder: Path) -> None:
    """The base has the sources; some bases have no compiled ones, and a read-only root would stay without."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.parent.name != "__pycache__":
            path.unlink()


def _add_user(root: Path, name: str, uid: int, home: str) -> None:
    lines = {"passwd": f"{name}:x:{uid}:{uid}:{name}:{home}:/bin/sh\n", "group": f"{name}:x:{uid}:\n"}
    (root / "etc").mkdir(exist_ok=True)
    for file, line in lines.items():
        (root / "etc" / file).write_text(Path("/etc", file).read_text() + line)


def _keep_path(root: Path) -> None:
    """The base's /etc/profile gives login shells, which commands run in, another PATH. This follows it."""
    folder = root / "etc/profile.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernelpool.sh").write_text('PATH="$HOME/.local/bin:/opt/venv/bin:$PATH"\n')


def _settle(root: Path) -> None:
    """The same modes and times whenever it is built."""
    hostfiles.settle_modes(root)
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    for folder, folders, files in os.walk(root, topdown=False):
        for name in (*folders, *files):
            os.utime(os.path.join(folder, name), (epoch, epoch), follow_symlinks=False)
    os.utime(root, (epoch, epoch))


def _say(text: str) -> None:
    print(f"{SAID}{text}", flush=True)


async def _make(layer: str, name: str, root: Path) -> None:
    breath = asyncio.create_task(_breathe())
    try:
        await LAYERS[layer](name, root)
    finally:
        breath.cancel()


async def _breathe() -> None:
    """Whoever waits for a line, to see that the build goes on or to give it up, has one soon."""
    while True:
        await asyncio.sleep(_BREATH_SECONDS)
        print(flush=True)


def main() -> int:
    layer, name, folder = sys.argv[1:]
    root = Path(folder, "root")
    root.mkdir(parents=True)
    try:
        asyncio.run(_make(layer, name, root))
    except KernelpoolError as error:
        print(error.message, file=sys.stderr)
        return 1
    _settle(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
