"""What a bubblewrap sandbox is, as one pure function from a view to bwrap's arguments.

bubblewrap's protection is entirely determined by these arguments, so they are all here. Two are missing on purpose:
`--die-with-parent`, because a sandbox outlives its gateway; and `--share-net`, because a sandbox with egress gets a
network stack of its own as well, to which `egress.py` plugs in a user-mode network.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kernelpool.egress.doors import FOLDER_INSIDE
from kernelpool.models import WORKSPACE

SANDBOX_UID: Final = 65532
PYTHON: Final = "/opt/venv/bin/python"
PROGRAM: Final = "/opt/kernelpool"

LISTEN_FD: Final = 3
"""In the agent: a Unix stream socket that already listens."""
CONFIG_FD: Final = 4
"""In the agent: the AgentConfig as JSON, to be read to its end and closed."""
ARGS_FD: Final = 5
SECCOMP_FD: Final = 6
STATUS_FD: Final = 7
GATE_FD: Final = 8
"""bwrap keeps 5 to 8 for itself: the program in the sandbox gets 0 to 4."""

AGENT_COMMAND: Final = (PYTHON, "-I", PROGRAM, "--listen", f"fd:{LISTEN_FD}", "--config", f"fd:{CONFIG_FD}")

WRITABLE: Final = ("/dev/shm", "/tmp", WORKSPACE)  # noqa: S108 - each a tmpfs of the sandbox's own, of limited size

ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": "/opt/venv/bin:/usr/local/bin:/usr/bin:/bin",
    "HOME": WORKSPACE,
    "LANG": "C.UTF-8",
}

# A root's entries that are replaced by what the sandbox gets of its own.
_OURS: Final = frozenset({"proc", "dev", "sys", "tmp", "mnt", "run", "opt/kernelpool"})
# Directories of a root that also hold things of ours, so that their entries are bound one by one.
_SHARED: Final = ("etc", "opt")


@dataclass(frozen=True, slots=True)
class RootEntry:
    """One thing to show of a runtime's root: a path below it, and where it points when it is a symbolic link."""

    path: str
    link: str | None = None


@dataclass(frozen=True, slots=True)
class View:
    """What one sandbox sees. Sizes in bytes."""

    root: Path
    entries: Sequence[RootEntry]
    program: Path
    workspace: int
    tmp: int
    shm: int = 64 << 20
    files: Mapping[str, Path] = field(default_factory=dict)
    """Path in the sandbox → file of ours that is shown there, read-only: /etc/passwd and the like."""
    masked: Sequence[str] = ()
    """Files of /proc that tell about the host; shown empty."""
    empty: Path = Path("/dev/null")
    """An empty file, for `masked`."""
    door: Path | None = None
    """The folder with the socket of the egress proxy, shown read-only; the folder, because the next gateway makes
    another socket there."""


def root_entries(root: Path, files: Sequence[str]) -> tuple[RootEntry, ...]:
    """What to show of `root`, which does I/O; `files` are the paths that the view brings itself."""
    hidden = _OURS | {file.lstrip("/") for file in files}
    return tuple(entry for entry in _walk(root, "") if entry.path not in hidden)


def _walk(root: Path, below: str) -> Iterator[RootEntry]:
    for item in sorted(os.scandir(root / below), key=lambda item: item.name):
        path = f"{below}/{item.name}" if below else item.name
        if item.is_symlink():
            yield RootEntry(path, os.readlink(item.path))
        elif path in _SHARED:
            yield from _walk(root, path)
        else:
            yield RootEntry(path)


def bwrap_argv(view: View) -> list[str]:
    """The arguments of bwrap, without the program's own name and without the command."""
    return [
        *_namespaces(),
        *_environment(),
        *_file_system(view),
        *("--chdir", WORKSPACE),
        *("--remount-ro", "/"),
        *("--seccomp", str(SECCOMP_FD)),
        *("--json-status-fd", str(STATUS_FD)),
        *("--block-fd", str(GATE_FD)),
    ]


def _namespaces() -> list[str]:
    return [
        *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
        *("--disable-userns", "--assert-userns-disabled"),
        "--new-session",
        *("--uid", str(SANDBOX_UID), "--gid", str(SANDBOX_UID)),
        *("--hostname", "sandbox"),
        *("--cap-drop", "ALL"),
    ]


def _environment() -> Iterator[str]:
    yield "--clearenv"
    for name, value in ENVIRONMENT.items():
        yield from ("--setenv", name, value)


def _file_system(view: View) -> Iterator[str]:
    for entry in view.entries:
        if entry.link is not None:
            yield from ("--symlink", entry.link, f"/{entry.path}")
        else:
            yield from ("--ro-bind", str(view.root / entry.path), f"/{entry.path}")
    yield from ("--ro-bind", str(view.program), PROGRAM)
    for path, file in view.files.items():
        yield from ("--ro-bind", str(file), path)
    if view.door is not None:
        yield from ("--ro-bind", str(view.door), FOLDER_INSIDE)
    yield from ("--proc", "/proc")
    for path in view.masked:
        yield from ("--ro-bind", str(view.empty), path)
    # bwrap's /dev is a tmpfs without a limit, hence read-only once its contents are there.
    shm, tmp, workspace = WRITABLE
    yield from ("--dev", "/dev", *_tmpfs(shm, view.shm, "1777"), "--remount-ro", "/dev")
    yield from _tmpfs(tmp, view.tmp, "1777")
    yield from _tmpfs(workspace, view.workspace, "0700")


def _tmpfs(path: str, size: int, mode: str) -> tuple[str, ...]:
    return ("--size", str(size), "--perms", mode, "--tmpfs", path)
