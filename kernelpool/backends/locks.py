"""One gateway at a time for a state directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from kernelpool.errors import StartFailed


def take_lock(folder: Path) -> int:
    """The descriptor that holds it. Raises `StartFailed` when another process does."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StartFailed(f"another gateway is using the state directory {folder}") from None
    return lock
