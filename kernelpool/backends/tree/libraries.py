"""The shared libraries that the programs of a tree need, copied to the paths where its dynamic loader looks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from kernelpool.backends.tree.hostfiles import copy_host_file, walk_files
from kernelpool.errors import PrepareFailed

SYSTEM_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
"""Where the host's own tools are; the user's PATH would add pyenv shims and the like."""

# Opened by name at run time, or what a manylinux wheel takes for granted: a session with network may install some.
BASE_LIBRARIES = (
    *("libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0", "libutil.so.1", "libresolv.so.2"),
    *("libnss_files.so.2", "libnss_dns.so.2", "libgcc_s.so.1", "libstdc++.so.6", "libgomp.so.1", "libz.so.1"),
)

_BATCH = 100
_SECONDS = 300.0
_LIBRARY = re.compile(r"^\s+(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)


def copy_libraries(root: Path) -> None:
    """The closure over everything in the tree. Libraries that wheels bring along are in it already."""
    programs = [str(path) for path in walk_files(root) if _is_elf(path)]
    needed = {path for path in libraries_of(programs) if not path.is_relative_to(root)}
    if sys.base_prefix not in ("/usr", "/usr/local"):  # what is in the interpreter's own prefix came with it
        needed = {path for path in needed if not path.is_relative_to(sys.base_prefix)}
    for path in sorted(needed | set(_base_libraries(needed))):
        copy_host_file(root, path)


def libraries_of(programs: Sequence[str]) -> set[Path]:
    """What the host's dynamic loader finds for them, the loader itself included."""
    ldd = system_tool("ldd")
    found: set[Path] = set()
    for start in range(0, len(programs), _BATCH):
        command = [ldd, *programs[start : start + _BATCH]]
        # Fails for a single static file or a library that is not found; what it could tell is on stdout all the same.
        answer = subprocess.run(
            command, env={"LC_ALL": "C"}, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        found.update(Path(path) for path in _LIBRARY.findall(answer.stdout))
    return found


def _base_libraries(needed: Iterable[Path]) -> list[Path]:
    folders = {path.parent for path in needed if path.name == "libc.so.6"}
    return [folder / name for folder in folders for name in BASE_LIBRARIES if (folder / name).exists()]


def _is_elf(path: Path) -> bool:
    if path.is_symlink():
        return False
    if not (path.suffix == ".so" or ".so." in path.name or os.access(path, os.X_OK)):
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def write_loader_cache(root: Path) -> None:
    """So that the loader of the tree finds /usr/local/lib and the host's choice of library directories."""
    folders = {"/usr/local/lib"}
    for path in walk_files(root):
        if ".so" in path.name and not path.is_relative_to(root / "opt"):
            folders.add("/" + str(path.parent.relative_to(root)))
    folders = {folder for folder in folders if "/python" not in folder}
    (root / "etc/ld.so.conf").write_text("".join(f"{folder}\n" for folder in sorted(folders)))
    subprocess.run(
        [system_tool("ldconfig"), "-X", "-r", str(root)], env={}, capture_output=True, timeout=_SECONDS, check=False
    )
    shutil.rmtree(root / "var/cache", ignore_errors=True)
    if not (root / "etc/ld.so.cache").is_file():
        raise PrepareFailed("ldconfig made no cache for the runtime's libraries")


def system_tool(name: str) -> str:
    path = shutil.which(name, path=SYSTEM_PATH)
    if path is None:
        raise PrepareFailed(f"{name} is missing in {SYSTEM_PATH}; it comes with the GNU C library (libc-bin)")
    return path
