"""Packages of npm for tests, kept between runs. Skips, and says so, where there is no npm or no way to its registry."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SECONDS = 300.0


def npm_folder(cache: Path, package: str, version: str) -> Path:
    """A folder in which `import` finds this version of the package."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm and node are not installed: install them to try clients of that side")
    folder = cache / f"{package.replace('/', '+')}-{version}"
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--save-exact", f"{package}@{version}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=SECONDS, check=False)
    if done.returncode:
        pytest.skip(f"npm could not install {package}: {done.stderr.decode()[-500:]}")
    (folder / "done").touch()
    return folder
