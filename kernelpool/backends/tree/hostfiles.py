"""Copies single files of the host to the same path of a tree, with the symlinks that lead to them."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

# Where a distribution has merged directories, the tree has the same links.
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr/sbin", "usr/lib64")


def inside(root: Path, path: Path | str) -> Path:
    """Where the absolute `path` of the sandbox is in the tree."""
    return root / str(path).lstrip("/")


def copy_merged_links(root: Path, host: Path = Path("/")) -> None:
    for name in MERGED:
        source, target = host / name, root / name
        if source.is_symlink():
            link = os.readlink(source).lstrip("/") if name.count("/") == 0 else os.readlink(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(link)
            (target.parent / link).mkdir(parents=True, exist_ok=True)


def copy_host_file(root: Path, path: Path) -> None:
    """Copy the file behind `path`, and make `path` itself a link to it when it is one (not the links in between: an
    alternative such as awk → /etc/alternatives/awk → mawk becomes awk → mawk)."""
    path = path.parent.resolve() / path.name
    final = path.resolve()
    _copy_file(final, inside(root, final))
    link = inside(root, path)
    if path != final and not os.path.lexists(link):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(final.name if path.parent == final.parent else final)


def copy_host_directory(root: Path, path: Path, *, without: frozenset[str] = frozenset()) -> None:
    """All regular files below `path`, links inside it as links, nothing that leads out of it."""
    path = path.resolve()
    for file in walk_files(path, without):
        target = inside(root, file)
        if os.path.lexists(target):
            continue
        if file.is_symlink():
            if file.exists() and file.resolve().is_relative_to(path):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(os.path.relpath(file.resolve(), file.parent.resolve()))
        elif file.is_file():
            _copy_file(file, target)


def walk_files(path: Path, without: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Files and links below `path`, in order, skipping files and directories named in `without`."""
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if name not in without)
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        yield from (Path(folder, name) for name in sorted(files + links) if name not in without)


def _copy_file(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def settle_modes(root: Path) -> None:
    """Readable for every uid, writable for the owner only, never setuid."""
    for folder, _, files in os.walk(root):
        os.chmod(folder, 0o755)  # noqa: S103 - any uid of a sandbox must read it
        for name in files:
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode):
                os.chmod(path, 0o755 if mode & 0o100 else 0o644)
