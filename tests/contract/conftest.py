"""Fixtures of the suite that every backend has to pass."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from kernelpool.backends.base import Backend
from tests.contract.sandboxes import KITS, Kit, missing_engine

PARAMS = [pytest.param(name, marks=pytest.mark.engine) if name != "bubblewrap" else name for name in KITS]


@pytest.fixture(scope="session", params=PARAMS)
def kit(request: pytest.FixtureRequest) -> Iterator[Kit]:
    if shutil.which("unshare") is None:
        pytest.skip("this is no Linux")
    if why := missing_engine(request.param):
        pytest.skip(why)
    kit = KITS[request.param]()
    yield kit
    kit.close()


@pytest.fixture
def memory_is_limited(kit: Kit) -> None:
    if not kit.limits_memory:
        pytest.skip("nothing limits memory here: no control group for this user, or a runtime that ignores them")


@pytest.fixture
async def backend(kit: Kit) -> AsyncIterator[Backend]:
    """With no sandbox at the beginning, and none at the end: whatever a test left alive is removed."""
    async with kit.backend() as backend:
        for sandbox in await backend.adopt():
            await sandbox.destroy()
        yield backend
    async with kit.backend() as broom:
        for sandbox in await broom.adopt():
            await sandbox.destroy()
