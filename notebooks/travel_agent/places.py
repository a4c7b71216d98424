"""Where code runs: in a session of a gateway, or in a process of this machine. Nothing falls back to the second."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Protocol

from kernelpool.client import FileNotFound, Session

WORKSPACE = PurePosixPath("/mnt/data")
SECONDS = 60.0
TEXT = 4000
"""Characters of output that a model gets to see: the end, where an error says what it was."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What code printed, and whether it ran to its end."""

    ok: bool
    text: str


class Place(Protocol):
    def put(self, name: str, content: bytes) -> PurePath:
        """A file into the working directory of the code, and the path by which code finds it."""

    def run(self, code: str) -> Outcome:
        """Code that fails is an outcome. Raises what its place does when that itself does not work."""

    def take(self, name: str) -> bytes | None:
        """A file that code has written, which is not there any more then. None when there is none."""


class Sandbox:
    """A session: the code has a machine of its own, without network and without anything of yours."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def put(self, name: str, content: bytes) -> PurePath:
        self._session.files.upload(content, name)
        return WORKSPACE / name

    def run(self, code: str) -> Outcome:
        result = self._session.run(code, timeout=SECONDS)
        failure = result.message or result.stderr if not result.ok else ""
        return Outcome(result.ok, (result.stdout + failure)[-TEXT:].strip())

    def take(self, name: str) -> bytes | None:
        try:
            content = self._session.files.read(name)
        except FileNotFound:
            return None
        self._session.files.delete(name)
        return content


class LocalProcess:
    """A Python of this machine, with everything that you may do on it. For comparison, and for code of your own."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None, *, timeout: float = SECONDS) -> None:
        """`folder` is where the code starts, and no limit to where it goes. Without an `environment` it has yours."""
        self._folder = folder
        self._timeout = timeout
        # The notebook's backend shows figures in the notebook; this process has none.
        self._environment = {**(os.environ if environment is None else environment), "MPLBACKEND": "Agg"}

    def put(self, name: str, content: bytes) -> PurePath:
        path = self._folder.absolute() / name
        path.write_bytes(content)
        return path

    def run(self, code: str) -> Outcome:
        try:
            done = subprocess.run(
                [sys.executable, "-"],
                input=code,
                cwd=self._folder,
                env=self._environment,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=self._timeout,
            )
        except subprocess.TimeoutExpired:
            return Outcome(False, f"it took longer than {self._timeout:g} s")
        failure = done.stderr if done.returncode else ""
        return Outcome(done.returncode == 0, (done.stdout + failure)[-TEXT:].strip())

    def take(self, name: str) -> bytes | None:
        path = self._folder / name
        if not path.is_file():
            return None
        content = path.read_bytes()
        path.unlink()
        return content
