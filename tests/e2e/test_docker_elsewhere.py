"""The same product on a Docker Engine that shares no directory with the gateway: this machine's, at a TCP address.

The tests are those of the other modules; only the gateways are others.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernelpool.backends.docker.labels import SANDBOX
from kernelpool.backends.docker.settings import DEFAULT_HOST
from tests.contract.forwarder import Forwarder
from tests.e2e.conftest import Make
from tests.e2e.gateways import STATE, Gateway, until
from tests.e2e.test_adversarial import (  # noqa: F401 - to be collected once more
    test_a_full_workspace_is_an_error_that_says_so,
    test_nobody_is_reached_over_the_network,
    test_nothing_of_the_gateway_can_be_found,
    test_the_secret_of_the_agent_cannot_be_read_from_its_memory,
)
from tests.e2e.test_stories import *  # noqa: F403
from tests.e2e.test_survival import (  # noqa: F401
    sandboxes_of,
    test_kill_9_of_the_gateway_under_load_loses_nothing,
)
from tests.engine import engine_client, image_of
from tests.extra import extra

pytestmark = [pytest.mark.engine, extra, pytest.mark.timeout(900)]  # the first of them builds the image


@pytest.fixture(scope="module")
def image() -> str:
    return image_of("python")


@pytest.fixture(scope="module")
def forwarder(image: str) -> Iterator[Forwarder]:
    forwarder = Forwarder(DEFAULT_HOST.removeprefix("unix://"))
    yield forwarder
    forwarder.close()


def elsewhere(forwarder: Forwarder) -> dict[str, Any]:
    return {"backend": "docker", "environment": {"KERNELPOOL_DOCKER__HOST": forwarder.host}}


@pytest.fixture(scope="module")
def gateway(forwarder: Forwarder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    state = STATE.with_name(f"{STATE.name}-elsewhere")
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), state=state, max_sessions=40, **elsewhere(forwarder))
    gateway.start()
    yield gateway
    gateway.stop()
    assert gateway.traces() == []


@pytest.fixture
def make_gateway(forwarder: Forwarder, tmp_path: Path) -> Iterator[Make]:
    made: list[Gateway] = []

    def make(**settings: Any) -> Gateway:
        state = STATE.with_name(f"{STATE.name}-{uuid.uuid4().hex[:8]}")
        made.append(Gateway(tmp_path, state=state, **elsewhere(forwarder), **settings))
        made[-1].start()
        return made[-1]

    yield make
    for gateway in made:
        gateway.stop()
        assert gateway.traces() == []
        shutil.rmtree(gateway.state)


def test_a_ready_sandbox_whose_container_dies_is_replaced_and_never_handed_out(make_gateway: Make) -> None:
    gateway = make_gateway(ready=1, max_sessions=3)
    gateway.wait_warm()
    (dead,) = sandboxes_of(gateway)

    with engine_client() as client:
        [container] = client.containers(filters={"label": f"{SANDBOX}={dead}"})
        client.kill(container["Id"])
    until(lambda: dead not in sandboxes_of(gateway) and gateway.pool()["ready"] == 1)

    session = gateway.session("fresh-one")
    assert session.value("1") == 1
    assert session.sandbox != dead
