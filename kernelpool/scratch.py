"""Scratch: state directories inside of another one, for gateways that live no longer than a command.

    <state>/scratch/<n>/    as the state directory of a gateway, but its runtime trees are those of <state>

So `kernelpool run` and `mcp` work beside each other and beside `serve`, and no tree is made twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from kernelpool.config import Settings
from kernelpool.errors import StartFailed, StateDirectoryInUse

T = TypeVar("T")

MOST = 64
"""Commands with a gateway of their own that run at the same time."""


async def in_scratch(settings: Settings, work: Callable[[Settings], Awaitable[T]]) -> T:
    """Does the work in the first scratch directory that is free; it raises `StateDirectoryInUse` where one is not."""
    for number in range(1, MOST + 1):
        folder = await asyncio.to_thread(_make, settings.state_dir, number)
        with contextlib.suppress(StateDirectoryInUse):
            return await work(settings.model_copy(update={"state_dir": folder}))
    raise StartFailed(
        f"{MOST} other commands have gateways in {settings.state_dir / 'scratch'}; end some, or use --url"
    )


def scratch_folders(state: Path) -> list[Path]:
    """Those that have ever been used."""
    return [folder for folder in (state / "scratch").glob("*") if folder.is_dir()]


def has_leftovers(folder: Path) -> bool:
    """Of a command that was killed."""
    return next(folder.glob("sessions/*.json"), None) is not None or bool(backends_of(folder))


def backends_of(folder: Path) -> set[str]:
    """Names of those that have sandboxes there."""
    return {entry.parent.parent.name for entry in folder.glob("*/sandboxes/*")}


def _make(state: Path, number: int) -> Path:
    try:
        folder = state / "scratch" / str(number)
        bubblewrap = folder / "bubblewrap"
        for each in (state, state / "bubblewrap", folder.parent, folder, bubblewrap):
            with contextlib.suppress(FileExistsError):
                each.mkdir(mode=0o711, parents=each == state)
                each.chmod(0o711)  # whatever the umask: sandboxes' users pass through to what is meant for them
        with contextlib.suppress(FileExistsError):
            (bubblewrap / "runtimes").symlink_to("../../../bubblewrap/runtimes")  # also after it was moved
    except OSError as error:
        raise StartFailed(f"the state directory {state} cannot be used: {error.strerror}") from error
    return folder
