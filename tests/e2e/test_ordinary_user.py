"""The same story for an ordinary user: root's privileges are a gain, not a need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.gateways import STATE
from tests.extra import extra

USER = 64_124


def _interpreter() -> str | None:
    """One of our own version that any user may execute."""
    for path in (Path(os.path.realpath(sys.executable)), Path(f"/usr/bin/python3.{sys.version_info.minor}")):
        if path.exists() and all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents)):
            return str(path)
    return None


@extra
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_stories_hold_for_an_ordinary_user() -> None:
    python = _interpreter()
    if os.geteuid() != 0:
        pytest.skip("all tests are running as an ordinary user")
    if python is None:
        pytest.skip("no python of this version that an ordinary user may execute")
    # Kept between runs, as that of the others is, because of the tree that is built in it.
    home = STATE.parent / f"{STATE.name}-{USER}"
    home.mkdir(mode=0o711, exist_ok=True)
    os.chown(home, USER, USER)
    root = Path(__file__).parents[2]
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "KPTEST_STATE": str(home / "state"),
        "KPTEST_TREES": str(home / "trees"),
        "PYTHONPATH": os.pathsep.join([str(root), *(path for path in sys.path if "site-packages" in path)]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={home}/tmp", "tests/e2e/test_stories.py"],
        cwd=root,
        env=environment,
        user=USER,
        group=USER,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=580,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
