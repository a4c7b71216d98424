"""kernels/*/runtime.toml → Runtime: what may run in a sandbox, as data."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kernelpool.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Runtime:
    """A folder in kernels/. Paths in `argv` and `env` are those inside the sandbox: `/opt/venv` holds the
    packages, `/opt/kernelpool/kernels/<name>` is a read-only copy of the folder."""

    name: str
    language: str
    display_name: str
    folder: Path
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    """Python requirement lines for /opt/venv; the agent's own (tornado, pyzmq) are always there."""
    warmup_code: str = ""
    interrupt_mode: Literal["signal", "message"] = "signal"
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
        table = tomllib.loads(file.read_text())
        requirements = folder / str(table.get("requirements", "requirements.txt"))
        warmup = folder / str(table.get("warmup", "warmup.py"))
        return Runtime(
            name=folder.name,
            language=table["language"],
            display_name=table["display_name"],
            folder=folder,
            argv=tuple(table["argv"]),
            env={str(key): str(value) for key, value in table.get("env", {}).items()},
            requirements=_requirement_lines(requirements),
            warmup_code=warmup.read_text() if warmup.is_file() else "",
            interrupt_mode=table.get("interrupt_mode", "signal"),
        )
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequest(f"{file.parent.name}/{file.name}: {error}") from error


def _requirement_lines(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        return ()
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return tuple(line for line in lines if line)
