"""What becomes of sandboxes when their engine dies and comes back: no life is lost, no death unnoticed."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
from collections.abc import AsyncIterator

import pytest

from kernelpool.backends.docker.settings import DockerSettings
from kernelpool.errors import BackendUnavailable
from tests.contract.engines import OwnEngine
from tests.contract.sandboxes import DockerKit, ask, spec
from tests.extra import extra

pytestmark = [
    extra,
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("dockerd") is None, reason="no dockerd to start as root"),
    # The docker package leaves the socket of a connection that was refused to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]


@pytest.fixture
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[OwnEngine]:
    engine = OwnEngine(live_restore=request.param)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()
        gc.collect()


@pytest.fixture
def kit(engine: OwnEngine) -> DockerKit:
    return DockerKit(engine.host)


@pytest.mark.parametrize("engine", [True], ids=["live-restore"], indirect=True)
async def test_sandboxes_that_outlive_their_engine_go_on_and_are_watched_again(
    engine: OwnEngine, kit: DockerKit
) -> None:
    async with kit.backend(settings=DockerSettings(host=engine.host)) as backend:
        one, other = await backend.create(spec()), await backend.create(spec())

        await engine.kill()
        assert await ask(one, "print('alive')") == "alive"
        with pytest.raises(BackendUnavailable):
            await backend.create(spec())
        await engine.start()

        await asyncio.to_thread(kit.client.kill, f"kernelpool-{(kit.state / 'tag').read_text()}-{other.id}")
        async with asyncio.timeout(60):
            assert await other.wait_dead() == "its agent ended"
        await other.destroy()
    async with kit.backend(settings=DockerSettings(host=engine.host)) as backend:
        [adopted] = await backend.adopt()
        assert await ask(adopted, "print('still here')") == "still here"
        await adopted.destroy()
    assert kit.traces() == set()
    await asyncio.to_thread(kit.close)


@pytest.mark.parametrize("engine", [False], ids=["no live-restore"], indirect=True)
async def test_sandboxes_that_die_with_their_engine_are_dead_when_it_is_back(engine: OwnEngine, kit: DockerKit) -> None:
    async with kit.backend(settings=DockerSettings(host=engine.host)) as backend:
        sandbox = await backend.create(spec())

        await engine.kill()
        await engine.start()

        async with asyncio.timeout(60):
            assert await sandbox.wait_dead() == "its agent ended"
        await sandbox.destroy()
        fresh = await backend.create(spec())
        assert await ask(fresh, "print('fresh')") == "fresh"
        await fresh.destroy()
    assert kit.traces() == set()
    await asyncio.to_thread(kit.close)
