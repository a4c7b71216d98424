"""The audit log: who did what to which session, when, and how it ended. One JSON object a line, only ever appended.

A file that the operator names and whose rotation is his: evidence has an owner, and how long it is kept is no decision
of a default. The file is opened anew when it was moved away, so logrotate needs no signal. Lines are written off the
event loop, from a bounded queue; what does not fit, or cannot be written, is counted and told in the file itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from kernelpool.errors import StartFailed
from kernelpool.telemetry.observer import Observer
from kernelpool.telemetry.tracing import current_ids

log = logging.getLogger(__name__)

QUEUE = 10_000
QUEUE_BYTES = 64 << 20
"""Lines, and bytes of them, that may wait for the disk."""
MAX_CODE = 256 << 10
"""Characters of code in a line; what is cut off shows in `size`."""
RETRY_SECONDS = 1.0


class Action(StrEnum):
    EXECUTE = "execute"
    UPLOAD = "upload"
    DOWNLOAD = "download"
    DELETE_FILE = "delete_file"
    FORWARD = "forward"
    SESSION_STOP = "session_stop"
    KERNEL_INTERRUPT = "kernel_interrupt"
    KERNEL_RESTART = "kernel_restart"
    CONNECT = "connect"
    """A Jupyter client, by WebSocket; its line comes when it has left, and `seconds` says how long it was there."""
    POOL_PUT = "pool_put"
    POOL_PATCH = "pool_patch"
    POOL_DELETE = "pool_delete"
    POOL_KEY_FETCH = "pool_key_fetch"
    POOL_KEY_RENEW = "pool_key_renew"
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class Entry:
    """One act of a caller. `session` is its guid, never the identifier, which is as good as a key."""

    action: Action
    outcome: str
    """`succeeded`, an execution's outcome, or an error's code."""
    tenant: str = ""
    principal: str = ""
    pool: str = ""
    session: str = ""
    execution: str = ""
    """Its id. One that was submitted has a line then, and another when its end is learned."""
    size: int = 0
    """Bytes of the code, or of the file."""
    seconds: float = 0.0
    code: str | None = None
    """Written only when the operator wants it."""


class Audit(Protocol):
    def record(self, entry: Entry) -> None:
        """Returns at once, and raises nothing: no call fails because it cannot be audited."""


class Unaudited:
    """Keeps nothing."""

    def record(self, entry: Entry) -> None: ...


class AuditLog:
    """An `Audit` in a file; an async context manager. Leaving it writes what is left."""

    def __init__(self, path: Path, observer: Observer, *, with_code: bool = False, queue: int = QUEUE) -> None:
        self._path = path
        self._observer = observer
        self._with_code = with_code
        self._limit = queue
        # The mutable state: lines on their way, and how many were lost that the file does not tell of yet.
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._lost = 0
        self._changed = asyncio.Event()
        self._closing = False
        self._file = -1
        self._writer: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<AuditLog {self._path} [{len(self._queue)} queued, {self._lost} lost]>"

    async def __aenter__(self) -> Self:
        """Raises `StartFailed` when the file cannot be written: whoever wants an audit log does not serve without."""
        try:
            await asyncio.to_thread(self._reopen)
        except OSError as error:
            raise StartFailed(f"the audit log {self._path} cannot be written: {error.strerror}") from error
        self._writer = asyncio.create_task(self._write(), name="audit log: write")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._changed.set()
        assert self._writer is not None
        await self._writer
        os.close(self._file)

    def record(self, entry: Entry) -> None:
        if len(self._queue) >= self._limit or self._bytes >= QUEUE_BYTES:
            self._lose(1, "the disk does not keep up")
            return
        self._observer.audited(1)
        line = self._line(entry)
        self._queue.append(line)
        self._bytes += len(line)
        self._changed.set()

    def _line(self, entry: Entry) -> bytes:
        facts = asdict(entry) | current_ids()
        facts.pop("span_id", None)
        if not self._with_code or entry.code is None:
            del facts["code"]
        else:
            facts["code"] = entry.code[:MAX_CODE]
        return _dump({"at": _now(), **facts, "seconds": round(entry.seconds, 6)})

    async def _write(self) -> None:
        """Never ends of a failure: a disk that is full today has room tomorrow."""
        while self._queue or not self._closing:
            if not self._queue:
                self._changed.clear()
                await self._changed.wait()
                continue
            batch = tuple(self._queue)
            told = self._lost
            try:
                await asyncio.to_thread(self._append, batch, told)
            except OSError as error:
                log.error("audit log was not written", extra={"error": str(error), "waiting": len(batch)})
                if self._closing:
                    self._lose(len(batch), "the file cannot be written")
                    return
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._lost -= told
                for _ in batch:
                    self._bytes -= len(self._queue.popleft())

    def _append(self, batch: Sequence[bytes], lost: int) -> None:
        """In a thread."""
        self._reopen()
        data = b"".join(batch)
        if lost:
            data += _dump({"at": _now(), "action": "lost", "count": lost})
        start = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            with suppress(OSError):  # the whole batch comes again: half of it should not stay
                os.ftruncate(self._file, start)
            raise

    def _reopen(self) -> None:
        """The file of that name, which need not be the one of before."""
        try:
            if self._file >= 0 and os.path.samestat(os.fstat(self._file), os.stat(self._path, follow_symlinks=False)):
                return
        except FileNotFoundError:
            pass  # moved away
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.open(self._path, flags, 0o600)
        if self._file >= 0:
            os.close(self._file)
        self._file = file

    def _lose(self, count: int, why: str) -> None:
        if not self._lost:  # once a time, not once a line
            log.error("audit lines are lost", extra={"why": why})
        self._lost += count
        self._observer.audited(count, lost=True)


def _dump(facts: dict[str, Any]) -> bytes:
    # ASCII only, as in the log: nothing that a caller says breaks out of its line.
    return json.dumps(facts, ensure_ascii=True).encode() + b"\n"


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
