"""Packages of Debian for images: fetched with all that they need and the base has not, and unpacked.

Nothing of them is executed and no database is written: the image is the base and files besides.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from kernelpool.backends.base import Say
from kernelpool.backends.tree.steps import in_thread, run
from kernelpool.errors import PrepareFailed
from kernelpool.runtimes import Runtime

_DPKG: Final = "/usr/bin/dpkg-deb"
_MERGED: Final = frozenset({"bin", "sbin", "lib", "lib32", "lib64", "libx32"})
"""Links to the folders of those names in /usr."""
_LEFT_OUT: Final = frozenset({"doc", "info", "lintian", "locale", "man"})
"""Of /usr/share."""


async def unpack(runtime: Runtime, root: Path, say: Say) -> None:
    """Raises `PrepareFailed`."""
    if not runtime.debian:
        return
    apt = await in_thread(shutil.which, "apt-get")
    if apt is None:
        raise PrepareFailed(
            f"the {runtime.name} runtime needs {', '.join(runtime.debian)} of Debian: a base with apt-get"
        )
    say(f"fetching {len(runtime.debian)} packages of Debian and what they need")
    work = root.parent / "debian"
    archives = work / "archives"
    await in_thread(os.makedirs, archives / "partial")
    # As root, which is all that there is in a build: APT's own user may not write here.
    options = ["-qq", "-o", "APT::Sandbox::User=root", "-o", f"Dir::Cache::archives={archives}"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    fetch = ["install", "--download-only", "--no-install-recommends", "--yes", *runtime.debian]
    await run([apt, *options, "update"], "apt-get update", cwd=work, env=environment)
    await run([apt, *options, *fetch], "apt-get install", cwd=work, env=environment)
    for archive in await in_thread(lambda: sorted(archives.glob("*.deb"))):
        await in_thread(_unpack, archive, root)
    await in_thread(shutil.rmtree, work)


def _unpack(archive: Path, root: Path) -> None:
    read = subprocess.run([_DPKG, "--fsys-tarfile", str(archive)], capture_output=True)
    if read.returncode:
        raise PrepareFailed(f"{archive.name} cannot be unpacked: {read.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(read.stdout)) as tar:
        tar.extraction_filter = lambda member, _path: member
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if _is_wanted(parts):
                member.name = str(_place(parts))
                if member.islnk():
                    member.linkname = str(_place(PurePosixPath(member.linkname).parts))
                tar.extract(member, root)


def _is_wanted(parts: Sequence[str]) -> bool:
    return bool(parts) and not (parts[:2] == ("usr", "share") and len(parts) > 2 and parts[2] in _LEFT_OUT)


def _place(parts: Sequence[str]) -> PurePosixPath:
    return PurePosixPath("usr", *parts) if parts[0] in _MERGED else PurePosixPath(*parts)
