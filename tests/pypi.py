"""Archives of PyPI for tests, unpacked and kept between runs. Skips, and says so, where there is no way to an index."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SECONDS = 300.0
BACKEND = """\
import email, pathlib, shutil

def prepare_metadata_for_build_wheel(directory, settings=None):
    told = email.message_from_string(pathlib.Path("PKG-INFO").read_text())
    made = pathlib.Path(directory, f"{told['Name'].replace('-', '_')}-{told['Version']}.dist-info")
    made.mkdir()
    shutil.copy("PKG-INFO", made / "METADATA")
    return made.name
"""
"""In place of hatchling: pip wants metadata of whatever it downloads, and would build a whole sdist for them."""


def pypi_folder(cache: Path, package: str, version: str, *, sdist: bool = True) -> Path:
    """The root of what that archive of the package holds: its sdist, which must be hatchling's, or its wheel."""
    folder = cache / f"{package}-{version}-{'sdist' if sdist else 'wheel'}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        made = _unpacked(_downloaded(Path(name), package, version, sdist=sdist), Path(name) / "unpacked")
        # Only what is complete gets the name; another run may have been faster.
        if not folder.is_dir():
            made.rename(folder)
    return folder


def _downloaded(folder: Path, package: str, version: str, *, sdist: bool) -> Path:
    backend = folder / "backend" / "hatchling"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build.py").write_text(BACKEND)
    kind = "--no-binary" if sdist else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    command += ["--retries=1", "--disable-pip-version-check", "--quiet", kind, package, f"{package}=={version}"]
    done = subprocess.run(
        [*command, "--dest", folder / "archive"],
        env={**os.environ, "PYTHONPATH": str(backend.parent)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"pip could not download {package} {version}: {done.stderr[-500:]}")
    [archive] = (folder / "archive").iterdir()
    return archive


def _unpacked(archive: Path, folder: Path) -> Path:
    if archive.suffix == ".whl":
        shutil.unpack_archive(archive, folder, "zip")
        return folder
    shutil.unpack_archive(archive, folder, filter="data")
    [root] = folder.iterdir()
    return root
