"""The gateway that a command has of its own."""

from __future__ import annotations

from kernelpool.cli.embedded import settings_for_one_run
from kernelpool.config import Settings


def test_a_session_lasts_as_long_as_the_command_however_long_nobody_uses_it() -> None:
    settings = Settings.load(None, {}, {})

    pool = settings_for_one_run(settings, "python", None).pools["python"]

    assert pool.cooldown == pool.max_alive > settings.pools["python"].cooldown
    assert pool.ready == 0
