"""PoolStore: pools that were made or changed while a gateway ran, on disk, so that the next one has them too."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from kernelpool.errors import BackendUnavailable, StartFailed
from kernelpool.pool.container import REVEAL
from kernelpool.pool.settings import PoolSettings

MAX_BYTES = 1 << 20


class PoolStore:
    """`<state>/pools/<name>.json`, each replaced as a whole. Its methods block: call them in a thread."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "pools"

    def load(self) -> dict[str, PoolSettings]:
        """By name. Raises `StartFailed` for a file that cannot be understood: going on without that pool would
        destroy its sessions."""
        pools: dict[str, PoolSettings] = {}
        if not self._folder.is_dir():
            return pools
        for path in sorted(self._folder.glob("*.json")):
            try:
                if path.stat().st_size > MAX_BYTES:
                    raise ValueError("too large")
                pool = PoolSettings.model_validate_json(path.read_bytes())
            except (OSError, ValueError) as error:  # pydantic's ValidationError is a ValueError
                why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
                raise StartFailed(f"the pool in {path} cannot be read: {why}; mend the file, or remove it") from error
            pools[pool.name] = pool
        return pools

    def save(self, pool: PoolSettings) -> None:
        """Raises `BackendUnavailable` when the state directory cannot be written."""
        path = self._path(pool.name)
        temporary = path.with_suffix(".tmp")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "wb") as file:
                file.write(pool.model_dump_json(indent=2, context=REVEAL).encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise BackendUnavailable(f"the gateway's state cannot be written: {error.strerror}") from error

    def remove(self, name: str) -> None:
        """Raises `BackendUnavailable` when the state directory cannot be written."""
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            raise BackendUnavailable(f"the gateway's state cannot be written: {error.strerror}") from error

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"  # a pool's name is a file name by its pattern
