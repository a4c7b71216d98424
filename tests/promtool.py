"""Prometheus's own programs (Debian: prometheus), for tests that ask them; skipped loudly where they are not."""

from __future__ import annotations

import shutil
import subprocess

import pytest

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")


def promtool(*arguments: str, stdin: bytes = b"") -> str:
    """What it complains of; "" when all is well."""
    done = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, timeout=60)
    return (done.stdout + done.stderr).decode() if done.returncode else ""
