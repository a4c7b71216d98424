"""KeyRing: the API keys as a running gateway knows them. It looks at the disk twice a second, never in a request."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from kernelpool.auth.keys import PREFIX, Contents, KeyRecord, KeyStore, split_key
from kernelpool.auth.principal import Principal
from kernelpool.errors import InvalidToken, StartFailed
from kernelpool.tasks import Tasks

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""Between two looks: so long does a revoked key go on to work."""
SETTLED_NANOSECONDS = 2_000_000_000
"""A folder changed less long ago may change again without a later time stamp: clocks of file systems are coarse."""
STALE_SECONDS = 30.0
"""Keys outlive a disk that cannot be read by so much, then nobody is let in by one."""

Stamp = tuple[int, int] | None
"""Inode and time of change of the folder; None when it is not there."""


class KeyRing:
    """An async context manager. Entering it reads the keys; raises `StartFailed` when that cannot be done."""

    def __init__(self, state: Path, wall: Callable[[], float] = time.time) -> None:
        self._store = KeyStore(state)
        self._wall = wall
        self._tasks = Tasks("keys")
        # What an id that nobody has is compared with: its secret is wrong in the same time as anybody else's.
        self._nobody = secrets.token_bytes(32)
        # The mutable state: the keys, by id, and the files that are none; what the folder looked like, and when.
        self._keys: Mapping[str, tuple[bytes, KeyRecord]] = {}
        self._corrupt: frozenset[str] = frozenset()
        self._seen: Stamp = None
        self._is_settled = False
        self._read_at = 0.0

    def __repr__(self) -> str:
        return f"<KeyRing [{len(self._keys)} keys]>"

    async def __aenter__(self) -> Self:
        try:
            await self._look()
        except OSError as error:
            raise StartFailed(f"the API keys in {self._store.folder} cannot be read: {error.strerror}") from error
        self._tasks.spawn(self._watch(), "watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.aclose()

    @staticmethod
    def claims(token: str) -> bool:
        """Whether it has the look of an API key."""
        return token.startswith(PREFIX)

    def principal(self, token: str) -> Principal:
        """Raises `InvalidToken`, whatever is wrong with it."""
        id, digest = split_key(token)
        expected, record = self._keys.get(id, (self._nobody, None))
        is_right = hmac.compare_digest(digest, expected)
        if record is None or not is_right or record.is_expired(self._wall()):
            raise InvalidToken
        return record.principal

    async def _watch(self) -> None:
        is_failing = False
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._look()
                is_failing = False
            except OSError as error:
                if not is_failing:
                    log.error("keys cannot be read", extra={"error": error.strerror})
                is_failing = True
                if asyncio.get_running_loop().time() - self._read_at > STALE_SECONDS:
                    self._keys = {}

    async def _look(self) -> None:
        stamp, is_settled = await asyncio.to_thread(self._stamp)
        if stamp != self._seen or not self._is_settled or self._corrupt:
            self._take(await asyncio.to_thread(self._store.load))
            self._seen, self._is_settled = stamp, is_settled
        self._read_at = asyncio.get_running_loop().time()

    def _take(self, contents: Contents) -> None:
        self._keys = {id: (bytes.fromhex(record.digest), record) for id, record in contents.records.items()}
        for name in contents.corrupt - self._corrupt:
            log.error("key cannot be read", extra={"file": name})
        self._corrupt = contents.corrupt

    def _stamp(self) -> tuple[Stamp, bool]:
        """Taken before the keys are read: a change in between is seen by the next look."""
        try:
            facts = os.stat(self._store.folder)
        except FileNotFoundError:
            return None, True
        return (facts.st_ino, facts.st_mtime_ns), time.time_ns() - facts.st_mtime_ns > SETTLED_NANOSECONDS
