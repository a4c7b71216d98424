"""For all tests: no blocking call of ours on the event loop, and no task left behind by those who ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings

from tests.virtual_time import virtual_time

# How long an example takes says how busy the machine is, and nothing else.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[None]:
    """Fails a test in which code of kernelpool blocks the event loop; what the test itself does is its own business."""
    with blockbuster_ctx("kernelpool"):
        yield


@pytest.fixture
async def virtual_clock() -> AsyncIterator[None]:
    """Waiting takes no time in this test, and every task has ended at its end."""
    before = asyncio.all_tasks()
    with virtual_time():
        yield
    assert asyncio.all_tasks() - before <= {asyncio.current_task()}
