"""The same suite as an ordinary user: root's privileges are a gain, not a need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.extra import extra

USER = 64_123
SUITE = (
    "tests/contract/test_backend.py",
    "tests/contract/test_sandbox_view.py",
    "tests/contract/test_bubblewrap.py",
    "tests/contract/test_egress_domains.py",
)


def _interpreter() -> str | None:
    """One of our own version that any user may execute."""
    for path in (Path(os.path.realpath(sys.executable)), Path(f"/usr/bin/python3.{sys.version_info.minor}")):
        if path.exists() and all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents)):
            return str(path)
    return None


@extra
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_backend_suite_passes_as_an_ordinary_user() -> None:
    python = _interpreter()
    if os.geteuid() != 0:
        pytest.skip("the suite itself is running as an ordinary user")
    if python is None:
        pytest.skip("no python of this version that an ordinary user may execute")
    root = Path(__file__).parents[2]
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/var/tmp",
        "PYTHONPATH": os.pathsep.join([str(root), *(path for path in sys.path if "site-packages" in path)]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SUITE],
        cwd=root,
        env=environment,
        user=USER,
        group=USER,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=880,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
