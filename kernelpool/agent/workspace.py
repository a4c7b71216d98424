"""The workspace as seen from inside: list, read, write, delete, what changed, and images saved to it.

The code of the session shares this view and may plant symlinks: they lead only where that code could go itself, so they
are followed for reading inside the sandbox, and never for deleting. Calls block for as long as a tmpfs takes; large
ones are made in a thread by the callers.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from kernelpool.agent.trees import remove_tree
from kernelpool.errors import FileNotFound, InvalidPath, InvalidRequest, WorkspaceFull
from kernelpool.models import LATEST, FileInfo, WorkspacePath

TEMPORARY = ".kernelpool-upload-"
MAX_LISTED = 20_000
MAX_SCANNED = 2_000
"""Entries that a snapshot looks at, whatever they are: it is taken before and after each execution."""

Snapshot = dict[str, tuple[int, int, int]]
"""Path → (mtime in ns, size, inode)."""

IMAGE_SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/svg+xml": ".svg"}


class Workspace:
    """Files below `root`."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        self._is_mounted = os.path.ismount(root)

    @property
    def used_bytes(self) -> int:
        """Of its file system; 0 when that is not its own, but a part of another."""
        if not self._is_mounted:
            return 0
        found = os.statvfs(self.root)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def list(self, path: WorkspacePath, *, recursive: bool) -> list[FileInfo]:
        """Sorted by path, at most MAX_LISTED. Uploads under way are not shown."""
        folder = self._at(path)
        with _translated(path):
            if not stat.S_ISDIR(folder.stat().st_mode):
                raise InvalidRequest(f"{path.text} is not a directory")
            found = list(_take(self._walk(folder, path.text, recursive=recursive), MAX_LISTED))
        return sorted(found, key=lambda info: info.path)

    def info(self, path: WorkspacePath) -> FileInfo:
        with _translated(path):
            return _info(path.text, self._at(path).stat())

    def open(self, path: WorkspacePath) -> tuple[BinaryIO, FileInfo]:
        """For reading. Never blocks on a FIFO, never reads a device."""
        with _translated(path):
            descriptor = os.open(self._at(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            file = os.fdopen(descriptor, "rb", buffering=0)
            try:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise InvalidRequest(f"{path.text} is not a regular file")
            except BaseException:
                file.close()
                raise
        return file, _info(path.text, found)

    def create(self, path: WorkspacePath) -> Upload:
        """Starts an upload to `path`, making its parent directories."""
        target = self._at(path)
        with _translated(path):
            if target.is_dir():
                raise InvalidRequest(f"{path.text} is a directory")
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        return Upload(self, path, temporary, target, descriptor)

    def delete(self, path: WorkspacePath) -> None:
        """A file, a symlink (not what it names), or a directory with all in it."""
        if not path.text:
            raise InvalidPath("the workspace itself cannot be deleted")
        target = self._at(path)
        with _translated(path):
            if stat.S_ISDIR(target.lstat().st_mode):
                remove_tree(os.fspath(target))
            else:
                target.unlink()

    def snapshot(self) -> tuple[Snapshot, bool]:
        """What is there now, without hidden files; False when there was too much to look at all of it."""
        entries: Snapshot = {}
        with contextlib.suppress(OSError):
            for number, (entry, path) in enumerate(self._scan(self.root, "", recursive=True, is_shown=_is_not_hidden)):
                if number >= MAX_SCANNED:
                    return entries, False
                if path is None:
                    continue
                with contextlib.suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode):
                        entries[path] = (found.st_mtime_ns, found.st_size, found.st_ino)
        return entries, True

    def save_image(self, name: str, mime: str, data: str) -> str | None:
        """Writes a displayed image; None when it is no image, or when there is no room: display must not fail."""
        suffix = IMAGE_SUFFIXES[mime]
        try:
            content = data.encode() if mime == "image/svg+xml" else base64.b64decode(data)
        except (binascii.Error, ValueError):
            return None
        file = f"{name}{suffix}"
        temporary = self.root / f"{TEMPORARY}{secrets.token_hex(8)}"
        try:
            temporary.write_bytes(content)
            temporary.rename(self.root / file)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            return None
        return file

    def _at(self, path: WorkspacePath) -> Path:
        return self.root / path.text

    def _walk(self, folder: Path, prefix: str, *, recursive: bool) -> Iterator[FileInfo]:
        for entry, path in self._scan(folder, prefix, recursive=recursive, is_shown=_is_no_upload):
            if path is None:
                continue
            with contextlib.suppress(OSError):  # gone meanwhile, or a dangling link
                yield _info(path, entry.stat())

    def _scan(
        self, folder: Path, prefix: str, *, recursive: bool, is_shown: Callable[[str], bool]
    ) -> Iterator[tuple[os.DirEntry[str], str | None]]:
        """Every entry, so that its caller can stop; those that nobody is to see are without a path."""
        pending = [(os.fspath(folder), prefix)]
        while pending:
            directory, inside = pending.pop()
            with (
                contextlib.suppress(PermissionError, FileNotFoundError, NotADirectoryError),
                os.scandir(directory) as it,
            ):
                for entry in it:
                    path = f"{inside}/{entry.name}" if inside else entry.name
                    if not is_shown(entry.name) or not _has_address(path):
                        yield entry, None
                        continue
                    yield entry, path
                    if recursive and entry.is_dir(follow_symlinks=False):
                        pending.append((entry.path, path))


class Upload:
    """A file being written under a temporary name: `commit` gives it its own, anything else leaves nothing."""

    def __init__(
        self, workspace: Workspace, path: WorkspacePath, temporary: Path, target: Path, descriptor: int
    ) -> None:
        self._workspace = workspace
        self._path = path
        self._temporary = temporary
        self._target = target
        self._descriptor: int | None = descriptor

    def write(self, chunk: bytes) -> None:
        """Raises `WorkspaceFull`."""
        assert self._descriptor is not None
        view = memoryview(chunk)
        with _translated(self._path):
            while view:
                view = view[os.write(self._descriptor, view) :]

    def commit(self) -> FileInfo:
        self._close()
        with _translated(self._path):
            self._temporary.rename(self._target)
        return self._workspace.info(self._path)

    def abort(self) -> None:
        """Idempotent, and harmless after `commit`."""
        self._close()
        with contextlib.suppress(OSError):
            self._temporary.unlink()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def changed(before: Snapshot, after: Snapshot) -> tuple[str, ...]:
    """Paths that are new or different in `after`."""
    return tuple(sorted(path for path, mark in after.items() if before.get(path) != mark))


def image_name(execution: str, number: int) -> str:
    """Says which execution and which image; safe as a file name whatever id a client chose."""
    return f"image-{re.sub(r'[^A-Za-z0-9._-]', '-', execution)}-{number}"


def _info(path: str, found: os.stat_result) -> FileInfo:
    modified_at = min(max(0.0, found.st_mtime), LATEST)  # the code may have set it to anything
    return FileInfo(path, stat.S_ISDIR(found.st_mode), found.st_size, modified_at)


def _is_not_hidden(name: str) -> bool:
    return not name.startswith(".")


def _is_no_upload(name: str) -> bool:
    return not name.startswith(TEMPORARY)


def _has_address(path: str) -> bool:
    """Whether anybody could ask for it: names that are no text, hold control characters or are too long together
    are for the code alone."""
    try:
        WorkspacePath.parse(path)
    except InvalidPath:
        return False
    return True


def _take(items: Iterator[FileInfo], most: int) -> Iterator[FileInfo]:
    for _, item in zip(range(most), items, strict=False):
        yield item


@contextlib.contextmanager
def _translated(path: WorkspacePath) -> Iterator[None]:
    """OSError → our errors, which name the path as the caller knows it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise WorkspaceFull(f"no room left in the workspace for {path.text}") from None
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise FileNotFound(f"{path.absolute} does not exist") from None
        raise InvalidRequest(f"{path.absolute}: {os.strerror(error.errno or 0)}") from None
