"""A copy of the running Python as /usr/local of a tree: whoever built it, any uid may run the copy."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from fnmatch import fnmatch
from pathlib import Path

from kernelpool.backends.tree.hostfiles import inside
from kernelpool.backends.tree.libraries import libraries_of

PREFIX = "/usr/local"
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"

# Tests, development files, what needs a display, and what a distribution or the host's administrator added.
_WITHOUT = (
    *("test", "tests", "idlelib", "turtledemo", "tkinter", "turtle.py", "_tkinter*.so", "_test*.so", "xxlimited*.so"),
    *("config-*", "*.a", "*.o", "__pycache__", "site-packages", "dist-packages"),
    *("sitecustomize.py", "usercustomize.py", "EXTERNALLY-MANAGED"),
)


def base_executable() -> Path:
    """The interpreter behind the gateway's virtual environment, without links."""
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def copy_interpreter(root: Path) -> None:
    base = Path(sys.base_prefix)
    stdlib = Path(sysconfig.get_path("stdlib"))
    target = inside(root, PREFIX)
    shutil.copytree(stdlib, target / stdlib.relative_to(base), ignore=ignored, dirs_exist_ok=True)
    _copy_own_libraries(base, stdlib, target)
    _copy_executable(target / "bin")
    _forget_prefix(target, str(base))


def ignored(folder: str, names: list[str]) -> set[str]:
    left_out = {name for name in names for pattern in _WITHOUT if fnmatch(name, pattern)}
    return left_out | {name for name in names if not os.path.exists(os.path.join(folder, name))}


def _copy_own_libraries(base: Path, stdlib: Path, target: Path) -> None:
    """Those of the interpreter's own prefix, such as libpython or all of conda's. One in /usr belongs to the host's
    libraries, and comes with those."""
    if base == Path("/usr"):
        return
    programs = [str(base_executable()), *(str(path) for path in stdlib.glob("lib-dynload/*.so"))]
    needed = {path.parent.resolve() / path.name for path in libraries_of(programs)}
    # By name too: some installations are found through LD_LIBRARY_PATH alone, which is not set here.
    for library in needed | set(base.resolve().glob("lib*/libpython3*.so.*")):
        if library.is_relative_to(base.resolve()):
            place = target / library.relative_to(base.resolve())
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(library, place)


def _copy_executable(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(base_executable(), target / VERSION)
    (target / VERSION).chmod(0o755)
    for name in ("python3", "python"):
        (target / name).symlink_to(VERSION)


def _forget_prefix(target: Path, base: str) -> None:
    """In the interpreter's configuration. In the binaries the old prefix stays, as a place where nothing is: a string
    there cannot be changed, the linker may have made others of its tail."""
    if base in ("/usr", PREFIX):
        return
    source = str(sysconfig.get_config_var("abs_srcdir") or base)
    for path in [*target.rglob("_sysconfigdata*.py"), *target.rglob("build-details.json")]:
        path.write_text(path.read_text().replace(base, PREFIX).replace(source, "/usr/src/python"))
