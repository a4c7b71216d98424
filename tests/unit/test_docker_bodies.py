"""What the Docker backend asks the engine for, without an engine."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from kernelpool.agents.container import MOST_FORWARDS
from kernelpool.backends.container import ContainerSpec
from kernelpool.backends.docker.custom import CustomImage, custom
from kernelpool.backends.docker.holder import CHUNK, MOST
from kernelpool.backends.docker.labels import GATEWAY
from kernelpool.backends.docker.network import HOLDER_LIMITS, holder
from kernelpool.backends.docker.outside import is_ours
from tests.unit.test_docker_doctor import spec


def test_connections_that_nobody_reads_fit_half_of_a_holders_memory() -> None:
    assert HOLDER_LIMITS.memory // 2 >= MOST * 2 * (2 * CHUNK)


def test_a_holder_has_a_place_for_each_request_that_its_container_is_handed_and_for_probes() -> None:
    assert MOST_FORWARDS < MOST


@pytest.mark.parametrize(("gpus", "count"), [(2, 2), ("all", -1), (None, None)])
def test_the_gpus_of_a_pool_are_its_containers_and_not_their_holders(
    gpus: int | Literal["all"] | None, count: int | None
) -> None:
    asked = replace(spec(), gpus=gpus, container=ContainerSpec("image", 8080))
    assert asked.container is not None

    body = custom(asked, asked.container, CustomImage("sha256:1", "", ()), "holder", {})
    requests = body["HostConfig"].get("DeviceRequests")

    assert requests == (count and [{"Driver": "", "Count": count, "Capabilities": [["gpu"]]}])
    assert "DeviceRequests" not in holder(asked, "sha256:2", Path("/run"), {})["HostConfig"]


def test_a_network_whose_sandboxes_reach_each_other_is_not_taken_for_ours() -> None:
    icc = "com.docker.network.bridge.enable_icc"
    good = {"Labels": {GATEWAY: "t"}, "Driver": "bridge", "EnableIPv6": False, "Options": {icc: "false", "more": "1"}}

    assert is_ours(good, "t")
    assert not is_ours(good, "other")
    for wrong in ({"Options": {icc: "true"}}, {"Options": None}, {"Driver": "macvlan"}, {"EnableIPv6": True}):
        assert not is_ours({**good, **wrong}, "t"), wrong
