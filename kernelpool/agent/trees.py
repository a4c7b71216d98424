"""Deleting a directory with all in it, however deep: no recursion, three descriptors, no path of any length."""

from __future__ import annotations

import os
import secrets
from collections import deque

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(folder: str) -> None:
    """Symlinks in it are removed, never followed. Raises `OSError`, and has then removed a part.

    `shutil.rmtree` calls itself for each level and keeps a descriptor for each, and there are as many levels as the
    code liked. Here a directory that is not empty is moved to the top first, where its turn comes.
    """
    top = os.open(folder, _FOLDER)
    try:
        pending = deque(_empty(top))
        while pending:
            name = pending.popleft()
            os.chmod(name, 0o700, dir_fd=top)  # it is to go, whether or not it may be read or written
            inner = os.open(name, _FOLDER, dir_fd=top)
            try:
                pending.extend(_lift(child, inner, top) for child in _empty(inner))
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(folder)


def _empty(folder: int) -> list[str]:
    """Removes what is in it, but for directories that are not empty: their names are returned."""
    full = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.name, dir_fd=folder)
                continue
            try:
                os.rmdir(entry.name, dir_fd=folder)
            except OSError:
                full.append(entry.name)
    return full


def _lift(name: str, folder: int, top: int) -> str:
    """Moves a directory to the top, under a name that nothing there has."""
    lifted = secrets.token_hex(16)
    os.chmod(name, 0o700, dir_fd=folder)  # to be moved, a directory must be writable itself
    os.rename(name, lifted, src_dir_fd=folder, dst_dir_fd=top)
    return lifted
