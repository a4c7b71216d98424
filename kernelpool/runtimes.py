"""kernels/*/runtime.toml → Runtime: what may run in a sandbox, as data."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kernelpool.errors import InvalidRequest

KEYS = frozenset(
    {
        *("language", "display_name", "argv", "env", "requirements", "programs", "debian", "version_of", "kernel"),
        *("warmup", "interrupt_mode", "transport", "debugger"),
    }
)
"""Of a runtime.toml."""
CHOICES = {"interrupt_mode": ("signal", "message"), "transport": ("ipc", "tcp"), "debugger": (False, True)}


@dataclass(frozen=True, slots=True)
class Runtime:
    """A folder in kernels/. Paths in `argv` and `env` are those inside the sandbox: `/opt/venv` holds the
    packages, `/opt/kernelpool/kernels/<name>` is a read-only copy of the folder."""

    name: str
    language: str
    display_name: str
    folder: Path
    argv: tuple[str, ...]
    """Of the kernel. `{connection_file}` stands for that, `{memory}` for the bytes that a session may use."""
    env: dict[str, str] = field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    """Python requirement lines for /opt/venv; the agent's own (tornado, pyzmq) are always there."""
    programs: dict[str, str] = field(default_factory=dict)
    """Names in /opt/venv/bin → files: relative to where packages are installed, or absolute in the sandbox."""
    debian: tuple[str, ...] = ()
    """Packages of Debian that an image has besides what its base has. Trees have this machine's programs."""
    npm_lock: str = ""
    """Digest of a package-lock.json, when the folder has one: its packages are installed in /node_modules."""
    version_of: str = ""
    """The Python package whose version is that of the language; the interpreter's, for Python."""
    kernel: str = ""
    """The Python package that is the kernel; none when the folder is."""
    warmup_code: str = ""
    interrupt_mode: Literal["signal", "message"] = "signal"
    transport: Literal["ipc", "tcp"] = "ipc"
    """What the kernel speaks ZMQ over: tcp for those that know nothing else."""
    debugger: bool = False
    """Whether the kernel answers `debug_request`."""
    image: str = ""
    """Of a container engine, in the place of the one that is built from all this."""


def container_runtime(image: str) -> Runtime:
    """What stands for a custom container where a runtime is asked for. Nothing of it is in any sandbox."""
    return Runtime("container", "any", image, Path(), ())


def kernels_folder() -> Path:
    """Beside the package in a wheel, beside the package's folder in a checkout."""
    inside = Path(__file__).parent / "kernels"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "kernels"


def load_runtimes(folder: Path | None = None) -> dict[str, Runtime]:
    """Every folder with a runtime.toml, by name."""
    folder = folder or kernels_folder()
    return {path.parent.name: load_runtime(path.parent) for path in sorted(folder.glob("*/runtime.toml"))}


def load_runtime(folder: Path) -> Runtime:
    """Raises `InvalidRequest` naming the file and the field."""
    file = folder / "runtime.toml"
    try:
        return _read(folder, tomllib.loads(file.read_text()))
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequest(f"{file.parent.name}/{file.name}: {error}") from error


def _read(folder: Path, table: dict[str, Any]) -> Runtime:
    warmup = folder / str(table.get("warmup", "warmup.py"))
    lock = folder / "package-lock.json"
    if unknown := sorted(set(table) - KEYS):
        raise KeyError(f"{', '.join(unknown)}: not known, only {', '.join(sorted(KEYS))}")
    for name, allowed in CHOICES.items():
        if table.get(name, allowed[0]) not in allowed:
            raise KeyError(f"{name}: say {' or '.join(map(str, allowed)).lower()}, not {table[name]!r}")
    return Runtime(
        name=folder.name,
        language=table["language"],
        display_name=table["display_name"],
        folder=folder,
        argv=tuple(table["argv"]),
        env={str(key): str(value) for key, value in table.get("env", {}).items()},
        requirements=_requirement_lines(folder / str(table.get("requirements", "requirements.txt"))),
        programs={str(key): str(value) for key, value in table.get("programs", {}).items()},
        debian=tuple(map(str, table.get("debian", ()))),
        npm_lock=hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else "",
        version_of=table.get("version_of", ""),
        kernel=table.get("kernel", ""),
        warmup_code=warmup.read_text() if warmup.is_file() else "",
        interrupt_mode=table.get("interrupt_mode", "signal"),
        transport=table.get("transport", "ipc"),
        debugger=table.get("debugger", False),
    )


def _requirement_lines(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        return ()
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return tuple(line for line in lines if line)
