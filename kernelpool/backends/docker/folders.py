"""The directories of the Docker backend: what the gateway remembers, and what each sandbox is shown.

lock                   held by the gateway that is running
tag                    what tells this gateway's containers and directories from those of another one
sandboxes/<id>.json    the record of a sandbox, its agent's secret in it
<run_dir>/<tag>/<id>/  shown to the sandbox: its socket, and until it listens its configuration

A sandbox's directory is open for all until its agent has made the socket, and closed from then on, before anything of
a user runs: whoever could make files there could fill the host's disk. On the host nobody gets so far, since
`<run_dir>/<tag>` is the gateway's alone. What else lies in the run directory is nobody's business here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from kernelpool.backends.bwrap_argv import SANDBOX_UID
from kernelpool.backends.docker.container import CONFIG, SOCKET
from kernelpool.backends.locks import take_lock
from kernelpool.errors import StartFailed
from kernelpool.models import AgentConfig

_SOCKET_PATH_BYTES: Final = 107
_ID_LENGTH: Final = 12
_ID: Final = re.compile(r"[0-9a-f]{12}")
_OPEN: Final = 0o777
_CLOSED: Final = 0o755


@dataclass(frozen=True, slots=True)
class Record:
    """What the next gateway must know of a sandbox and cannot ask the engine: labels are for everybody's eyes."""

    id: str
    pool: str
    fingerprint: str
    created_at: float
    secret: str
    socket: str = SOCKET
    """Name of the socket that it is reached by."""
    egress: bool | list[str] = False
    """The policy that it is made with, as `EgressPolicy.of` reads it."""

    @property
    def has_holder(self) -> bool:
        """Its network namespace belongs to a container beside it."""
        return self.is_custom or self.egress is True

    @property
    def is_custom(self) -> bool:
        """There is no agent of ours in it."""
        return self.socket != SOCKET

    @classmethod
    def load(cls, file: Path) -> Self | None:
        """None when it is missing, cut off or of another version."""
        try:
            record = cls(**json.loads(file.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        return record if record.id == file.stem else None


class Folders:
    """Opens the directories and holds the lock until `close`. Blocks."""

    def __init__(self, state: Path, run_dir: Path | None) -> None:
        """Raises `StartFailed` when they cannot serve: too long a path, not ours, or in use."""
        self.state = Path(os.path.abspath(state))
        self._root = Path(os.path.abspath(run_dir or self.state / "run"))
        self._records = self.state / "sandboxes"
        if os.geteuid() == SANDBOX_UID:
            raise StartFailed(f"the gateway must not run as user {SANDBOX_UID}, which sandboxes run as")
        self._check_length()
        self._lock = -1
        try:
            for folder in (self.state, self._records, self._root):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_owner()
            self._lock = take_lock(self.state)
            self.tag = self._read_tag()
            self.run = self._root / self.tag
            self.run.mkdir(mode=0o700, exist_ok=True)
            self.run.chmod(0o700)
        except OSError as error:
            self.close()
            raise StartFailed(f"the directory {error.filename or state} cannot be used: {error.strerror}") from error

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def ids(self) -> set[str]:
        """Of all sandboxes that have left anything here."""
        records = {file.name.partition(".")[0] for file in self._records.iterdir()}
        return {name for name in records | {folder.name for folder in self.run.iterdir()} if _ID.fullmatch(name)}

    def folder(self, id: str) -> Path:
        return self.run / id

    def socket(self, record: Record) -> Path:
        return self.run / record.id / record.socket

    def record(self, id: str) -> Record | None:
        return Record.load(self._file(id))

    def make(self, record: Record, agent: AgentConfig | None) -> Path:
        """The record first, then what it tells of; nothing, without an agent. Returns the directory to show."""
        self._save(record)
        folder = self.folder(record.id)
        folder.mkdir(mode=0o700)
        if agent is not None:
            config = folder / CONFIG
            config.write_text(json.dumps(asdict(agent)))
            config.chmod(0o644)
        folder.chmod(_OPEN)
        return folder

    def seal(self, id: str) -> None:
        """The agent listens: nothing more may be made in there."""
        folder = self.folder(id)
        (folder / CONFIG).unlink(missing_ok=True)
        folder.chmod(_CLOSED)

    def is_sealed(self, id: str) -> bool:
        try:
            return self.folder(id).stat().st_mode & 0o777 == _CLOSED
        except FileNotFoundError:
            return False

    def remove(self, id: str) -> None:
        """The record last: while anything is there, so is what says so."""
        shutil.rmtree(self.folder(id), ignore_errors=True)
        self._file(id).with_suffix(".new").unlink(missing_ok=True)
        if not self.folder(id).exists():
            self._file(id).unlink(missing_ok=True)

    def _file(self, id: str) -> Path:
        return self._records / f"{id}.json"

    def _save(self, record: Record) -> None:
        """Whole or not at all."""
        new = self._file(record.id).with_suffix(".new")
        with open(new, "w", opener=_private) as file:
            json.dump(asdict(record), file)
        new.replace(self._file(record.id))

    def _check_length(self) -> None:
        longest = len(os.fsencode(self._root)) + 2 * (1 + _ID_LENGTH) + 1 + len(SOCKET)
        if longest > _SOCKET_PATH_BYTES:
            room = _SOCKET_PATH_BYTES - longest + len(os.fsencode(self._root))
            raise StartFailed(
                f"{self._root} is too long a path for sockets in it: at most {room} bytes; docker.run_dir names another"
            )

    def _check_owner(self) -> None:
        status = self._root.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise StartFailed(f"others may write to the directory {self._root}: choose one that is new")

    def _read_tag(self) -> str:
        """Made once. Not of the path, which is the same for any two gateways in containers."""
        file = self.state / "tag"
        with contextlib.suppress(FileNotFoundError):
            if _ID.fullmatch(tag := file.read_text().strip()):
                return tag
        tag = secrets.token_hex(6)
        new = file.with_suffix(".new")
        new.write_text(tag)
        new.replace(file)
        return tag


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def variables(environment: Sequence[str]) -> list[str]:
    """The names in an image's environment."""
    return [entry.partition("=")[0] for entry in environment]
