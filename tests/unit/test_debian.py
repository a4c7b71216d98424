"""Packages of Debian as images have them: where they belong, and nothing of them executed."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from kernelpool.backends.tree import debian
from kernelpool.errors import PrepareFailed
from kernelpool.runtimes import load_runtimes

CONTROL = "Package: tool\nVersion: 1\nArchitecture: all\nMaintainer: me <me@example.org>\nDescription: a tool\n"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb here")
    source = tmp_path / "source"
    for folder in ("DEBIAN", "bin", "usr/bin", "usr/share/doc/tool", "usr/share/tool", "etc"):
        (source / folder).mkdir(parents=True)
    (source / "DEBIAN/control").write_text(CONTROL)
    (source / "DEBIAN/postinst").write_text("#!/bin/sh\ntouch executed\n")
    (source / "bin/tool").write_text("#!/bin/sh\n")
    (source / "usr/share/doc/tool/copyright").write_text("long")
    (source / "usr/share/tool/data").write_text("data")
    (source / "etc/tool.conf").write_text("conf")
    (source / "usr/bin/same").hardlink_to(source / "bin/tool")
    (source / "usr/bin/link").symlink_to("../../bin/tool")
    for file in ("DEBIAN/postinst", "bin/tool"):
        (source / file).chmod(0o755)
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", source, tmp_path / "tool.deb"], check=True)
    return tmp_path / "tool.deb"


def test_a_package_is_unpacked_to_where_the_base_has_its_programs(archive: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()

    debian._unpack(archive, root)

    files = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path.is_symlink()}
    assert files == {"usr/bin/tool", "usr/bin/same", "usr/bin/link", "usr/share/tool/data", "etc/tool.conf"}
    assert os.access(root / "usr/bin/tool", os.X_OK)
    assert (root / "usr/bin/same").samefile(root / "usr/bin/tool")
    assert os.readlink(root / "usr/bin/link") == "../../bin/tool"


def test_what_is_no_package_is_an_error_that_names_it(archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(b"no package")

    with pytest.raises(PrepareFailed, match=r"tool\.deb cannot be unpacked"):
        debian._unpack(archive, tmp_path)


def test_a_base_without_apt_is_refused_with_what_is_needed_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(PrepareFailed, match=r"shell runtime needs .*git.* of Debian: a base with apt-get"):
        asyncio.run(debian.unpack(load_runtimes()["shell"], tmp_path, print))


def test_a_runtime_that_asks_for_none_needs_no_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    asyncio.run(debian.unpack(replace(load_runtimes()["shell"], debian=()), tmp_path, print))

    assert list(tmp_path.iterdir()) == []
