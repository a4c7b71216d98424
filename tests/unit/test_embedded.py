"""The gateway that a command has of its own."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from kernelpool.cli.embedded import settings_for_one_run
from kernelpool.config import Settings
from kernelpool.scratch import in_scratch


def test_a_session_lasts_as_long_as_the_command_however_long_nobody_uses_it() -> None:
    settings = Settings.load(None, {}, {})

    pool = settings_for_one_run(settings, "python", None).pools["python"]

    assert pool.cooldown == pool.max_alive > settings.pools["python"].cooldown
    assert pool.ready == 0


@pytest.mark.parametrize("mask", [0o002, 0o077])
def test_sandboxes_get_to_its_trees_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    settings = Settings.load(None, {}, {"state_dir": tmp_path / "state"})

    async def look(scratch: Settings) -> Path:
        return scratch.state_dir

    before = os.umask(mask)
    try:
        folder = asyncio.run(in_scratch(settings, look))
    finally:
        os.umask(before)

    made = [folder / "bubblewrap", folder, folder.parent, tmp_path / "state" / "bubblewrap", tmp_path / "state"]
    assert [oct(each.stat().st_mode & 0o777) for each in made] == ["0o711"] * 5
    (tmp_path / "state").rename(tmp_path / "moved")
    trees = tmp_path / "moved" / "bubblewrap" / "runtimes"
    assert (tmp_path / "moved" / "scratch" / "1" / "bubblewrap" / "runtimes").resolve() == trees
