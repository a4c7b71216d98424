"""What the gateway remembers of a sandbox on disk, so that the next gateway finds it again.

Written before anything of the sandbox exists and completed when it runs: whenever the gateway is killed, the record
says what to adopt or what to remove.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

RECORD: Final = "sandbox.json"
SOCKET: Final = "agent.sock"
DOORS: Final = "doors"


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process for good: its number is used again after it, together with its start time never."""

    pid: int
    started: int
    """Clock ticks from boot to its start."""


@dataclass(frozen=True, slots=True)
class Record:
    id: str
    pool: str
    fingerprint: str
    created_at: float
    secret: str
    boot_id: str
    uid: int | None
    """The user that the sandbox belongs to outside; None is the gateway's own."""
    egress: bool | list[str] = False
    """The policy that it is made with, as `EgressPolicy.of` reads it."""
    cgroups: tuple[str, ...] = ()
    root: str = ""
    program: str = ""
    monitor: ProcessId | None = None
    """bwrap itself, outside; it ends when the agent does."""
    init: ProcessId | None = None
    """Process 1 of the sandbox; with it dies everything in there."""
    network: ProcessId | None = None
    """The user-mode network of a sandbox with egress."""

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """None when it is missing, cut off or of another version: its sandbox cannot be adopted then."""
        try:
            fields = json.loads((folder / RECORD).read_bytes())
            for name in ("monitor", "init", "network"):
                if fields[name] is not None:
                    fields[name] = ProcessId(**fields[name])
            fields["cgroups"] = tuple(fields["cgroups"])
            return cls(**fields)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def save(self, folder: Path) -> None:
        """Whole or not at all."""
        temporary = folder / f"{RECORD}.new"
        with open(temporary, "w", opener=_private) as file:
            json.dump(asdict(self), file)
        temporary.replace(folder / RECORD)


def door_of(folder: Path) -> Path:
    """Where a sandbox's way to the proxy lies, of its folder: it must get there, and into nothing else of ours."""
    return folder.parents[1] / DOORS / folder.name


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def boot_id() -> str:
    """Of this run of the machine; the processes of an earlier one are gone."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
