"""The journal: which sandbox is whose session, on disk, so that a gateway killed at any moment can go on.

One file a session. It is there before the sandbox hears of its session and goes after the sandbox is gone, so a
sandbox without a record has never run anybody's code. Who owns a session is known from here only, never from the
sandbox, which is hostile.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from kernelpool.errors import BackendUnavailable

log = logging.getLogger(__name__)
R = TypeVar("R")

MAX_RECORD_BYTES = 64 * 1024
MAX_JUPYTER_SESSIONS = 8
"""Of one session."""
_ID = re.compile(r"[0-9a-f]{12}")


class JupyterSession(BaseModel):
    """What a Jupyter client calls a session: a document of its, and that it runs in this session's kernel."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str = Field(pattern=r"^[0-9a-f-]{36}$")
    path: str = Field(max_length=1024)
    """A name that the client made up, of a file of its own: no path of ours or of the sandbox's."""
    name: str = Field(max_length=255)
    type: str = Field(max_length=64)


class Record(BaseModel):
    """A session as it is on disk."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sandbox: str = Field(pattern=r"^[0-9a-f]{12}$")
    pool: str = Field(min_length=1)
    tenant: str = Field(min_length=1)
    identifier: str = Field(min_length=1)
    session: str = Field(min_length=1)
    """The session's own id, as the agent knows it."""
    created_at: float = Field(gt=0, allow_inf_nan=False)
    jupyter: tuple[JupyterSession, ...] = Field((), max_length=MAX_JUPYTER_SESSIONS)
    ended: str | None = None
    """Why, when it has ended but its sandbox could not be destroyed: nobody goes on with it."""

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.pool, self.tenant, self.identifier)


@dataclass(frozen=True, slots=True)
class Contents:
    """What was found on disk, by sandbox."""

    records: dict[str, Record] = field(default_factory=dict)
    corrupt: frozenset[str] = frozenset()
    """Sandboxes that had a session, of which nothing more is known."""


class Journal:
    """`<state>/sessions/<sandbox id>.json`, each replaced as a whole. An async context manager."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "sessions"
        # One thread, so that the disk sees what happened in order: a write whose caller was cancelled is over before
        # the same record is removed.
        self._disk = ThreadPoolExecutor(1, "journal")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._disk.shutdown)

    async def load(self) -> Contents:
        """Raises `BackendUnavailable` when the state directory cannot be read."""
        try:
            return await self._in_thread(self._load)
        except OSError as error:
            raise BackendUnavailable(f"the gateway's state cannot be read: {error.strerror}") from error

    async def write(self, record: Record) -> None:
        """Raises `BackendUnavailable` when the state directory cannot be written."""
        try:
            await self._in_thread(partial(self._write, record))
        except OSError as error:
            raise BackendUnavailable(f"the gateway's state cannot be written: {error.strerror}") from error

    async def remove(self, sandbox: str) -> None:
        """A record that stays for lack of a writable disk is removed by the next start of the gateway."""
        try:
            await self._in_thread(partial(self._path(sandbox).unlink, missing_ok=True))
        except OSError as error:
            log.warning("session record not removed", extra={"sandbox": sandbox, "error": error.strerror})

    async def _in_thread(self, work: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    def _path(self, sandbox: str) -> Path:
        if not _ID.fullmatch(sandbox):
            raise ValueError(f"{sandbox!r} is no sandbox id")
        return self._folder / f"{sandbox}.json"

    def _write(self, record: Record) -> None:
        path = self._path(record.sandbox)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            file.write(record.model_dump_json().encode())
        # No fsync: a machine that stops takes the sandboxes along, a gateway that is killed leaves the page cache.
        temporary.replace(path)

    def _load(self) -> Contents:
        records: dict[str, Record] = {}
        corrupt: set[str] = set()
        if not self._folder.is_dir():
            return Contents()
        for path in sorted(self._folder.iterdir()):
            if path.suffix != ".json" or not _ID.fullmatch(path.stem):
                if path.suffix == ".tmp":
                    path.unlink(missing_ok=True)  # of a write that was cut short: its session never began
                continue
            try:
                records[path.stem] = _read(path)
            except (OSError, ValueError) as error:
                log.error("session record is corrupt", extra={"sandbox": path.stem, "error": type(error).__name__})
                corrupt.add(path.stem)
        return Contents(records, frozenset(corrupt))


def _read(path: Path) -> Record:
    """Raises `OSError` or `ValueError`, of which pydantic's `ValidationError` is one."""
    facts = path.lstat()
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_RECORD_BYTES:
        raise ValueError("not a file of a record's size")
    record = Record.model_validate_json(path.read_bytes())
    if record.sandbox != path.stem:
        raise ValueError("record of another sandbox")
    return record
