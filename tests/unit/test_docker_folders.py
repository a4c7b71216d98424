"""The directories of the Docker backend, in a run directory that is not its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelpool.backends.docker.folders import Folders, Record

ID = "abcdefabcdef"


@pytest.fixture
def base() -> Iterator[Path]:
    """Short, for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="kp-") as folder:
        yield Path(folder)


def test_what_else_lies_in_the_run_directory_is_left_alone(base: Path) -> None:
    (base / "home" / "documents").mkdir(parents=True)
    (base / "home" / "documents" / "thesis").write_text("years")
    mode = (base / "home").stat().st_mode

    folders = Folders(base / "state", base / "home")
    for id in folders.ids():
        folders.remove(id)
    folders.close()

    assert (base / "home" / "documents" / "thesis").read_text() == "years"
    assert (base / "home").stat().st_mode == mode


def test_two_gateways_may_share_a_run_directory(base: Path) -> None:
    first, second = Folders(base / "a", base / "run"), Folders(base / "b", base / "run")

    first.make(Record(ID, "pool", "fingerprint", 0.0, "secret"), None)

    assert (first.ids(), second.ids()) == ({ID}, set())
    first.close()
    second.close()
