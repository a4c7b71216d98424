"""Pools of custom containers over both surfaces that manage pools: what is read, shown, changed and refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kernelpool.backends.bubblewrap import BubblewrapBackend
from kernelpool.errors import InvalidRequest
from kernelpool.pool.settings import PoolSettings
from kernelpool.sources import Sources
from tests.api.conftest import Api
from tests.api.test_forward import containers_of, echoing
from tests.containers import CONTAINER, app

CANARY = "canary-of-a-secret"
ARM = "/subscriptions/s/resourceGroups/g/providers/Microsoft.App/sessionPools"
TEMPLATE: dict[str, Any] = {
    "containers": [
        {
            "name": "app",
            "image": "registry.example.com/app:1",
            "command": ["/bin/app"],
            "args": ["--fast"],
            "env": [{"name": "PLAIN", "value": "yes"}, {"name": "KEY", "secretRef": "key"}],
            "resources": {"cpu": 0.5, "memory": "1Gi"},
            "probes": [
                {"type": "Startup", "httpGet": {"path": "/health", "port": 8080}, "periodSeconds": 5},
                {"type": "Liveness", "tcpSocket": {"port": 8080}, "failureThreshold": 2},
            ],
        }
    ],
    "registryCredentials": {"server": "registry.example.com", "username": "u", "passwordSecretRef": "key"},
    "ingress": {"targetPort": 8080},
}


def resource(**properties: Any) -> dict[str, Any]:
    return {
        "location": "local",
        "properties": {
            "containerType": "CustomContainer",
            "scaleConfiguration": {"maxConcurrentSessions": 4, "readySessionInstances": 0},
            "customContainerTemplate": TEMPLATE,
            "secrets": [{"name": "key", "value": CANARY}],
            **properties,
        },
    }


@pytest.fixture
async def managed(tmp_path: Path) -> AsyncIterator[Api]:
    async with containers_of(tmp_path, app(echoing)) as api:
        api.base = f"http://127.0.0.1:{api.port}"
        yield api


async def test_a_template_of_azure_makes_a_pool_and_is_shown_again(managed: Api) -> None:
    shown = await managed.json("PUT", f"{ARM}/app", 201, json=resource(), identifier=None)

    properties = shown["properties"]
    [container] = properties["customContainerTemplate"]["containers"]
    assert properties["containerType"] == "CustomContainer"
    assert properties["customContainerTemplate"]["ingress"] == {"targetPort": 8080}
    assert properties["secrets"] == [{"name": "key"}]
    assert (container["image"], container["command"], container["args"]) == (
        "registry.example.com/app:1",
        ["/bin/app"],
        ["--fast"],
    )
    assert container["env"] == TEMPLATE["containers"][0]["env"]
    assert container["resources"] == {"cpu": 0.5, "memory": "1Gi"}
    assert [(probe["type"], probe["periodSeconds"]) for probe in container["probes"]] == [
        ("Startup", 5),
        ("Liveness", 10),
    ]
    settings = (await managed.json("GET", "/pools/app", identifier=None))["settings"]
    assert (settings["backend"], settings["runtime"], settings["container"]["secrets"]) == (
        "docker",
        "container",
        {"key": "**********"},
    )


async def test_what_is_shown_can_be_sent_again_with_its_secrets(managed: Api) -> None:
    shown = await managed.json("PUT", f"{ARM}/app", 201, json=resource(), identifier=None)
    shown["properties"]["secrets"] = resource()["properties"]["secrets"]
    for name in ("id", "name", "type"):
        del shown[name]

    again = await managed.json("PUT", f"{ARM}/app", 200, json=shown, identifier=None)

    shown["properties"]["secrets"] = [{"name": "key"}]
    assert again["properties"] == shown["properties"]


async def test_no_answer_has_a_secret(managed: Api) -> None:
    answers = [
        await managed.json("PUT", f"{ARM}/app", 201, json=resource(), identifier=None),
        await managed.json("GET", f"{ARM}/app", identifier=None),
        await managed.json("GET", ARM, identifier=None),
        await managed.json("GET", "/pools", identifier=None),
        await managed.json("GET", "/pools/app", identifier=None),
        await managed.json("PATCH", "/pools/app", json={"cooldown": 400}, identifier=None),
    ]

    assert CANARY not in str(answers)


async def test_a_change_of_the_lifecycle_and_back_keeps_the_secrets(managed: Api) -> None:
    await managed.json("PUT", f"{ARM}/app", 201, json=resource(), identifier=None)
    exits = {"lifecycleConfiguration": {"lifecycleType": "OnContainerExit", "maxAlivePeriodInSeconds": 7200}}
    timed = {"lifecycleConfiguration": {"lifecycleType": "Timed", "cooldownPeriodInSeconds": 600}}

    changed = await managed.json("PATCH", f"{ARM}/app", json={"properties": {"dynamicPoolConfiguration": exits}})
    back = await managed.json("PATCH", f"{ARM}/app", json={"properties": {"dynamicPoolConfiguration": timed}})

    assert changed["properties"]["dynamicPoolConfiguration"] == exits
    assert back["properties"]["dynamicPoolConfiguration"] == timed
    assert back["properties"]["secrets"] == [{"name": "key"}]


async def test_a_container_in_a_change_replaces_the_one_that_was_there(managed: Api) -> None:
    await managed.json("PUT", f"{ARM}/app", 201, json=resource(), identifier=None)
    template = {
        "containers": [{"name": "app", "image": "registry.example.com/app:2", "env": [{"name": "NEW", "value": "1"}]}]
    }

    changed = await managed.json("PATCH", f"{ARM}/app", json={"properties": {"customContainerTemplate": template}})

    [container] = changed["properties"]["customContainerTemplate"]["containers"]
    assert (container["image"], container["command"], container["probes"]) == ("registry.example.com/app:2", [], [])
    assert container["env"] == [{"name": "NEW", "value": "1"}]
    assert changed["properties"]["customContainerTemplate"]["ingress"] == {"targetPort": 8080}


@pytest.mark.parametrize(
    ("properties", "why"),
    [
        ({"environmentId": "/x"}, "properties.environmentId"),
        ({"managedIdentitySettings": [{"identity": "x"}]}, "managed identities"),
        ({"secrets": [{"name": "key"}]}, "each secret needs a name and a value"),
        ({"customContainerTemplate": {**TEMPLATE, "containers": []}}, "must be an array of 1"),
        ({"customContainerTemplate": {**TEMPLATE, "initContainers": []}}, "initContainers: no such property"),
        (
            {"customContainerTemplate": {**TEMPLATE, "registryCredentials": {"server": "x", "identity": "system"}}},
            "managed identities do not exist here",
        ),
        (
            {
                "customContainerTemplate": {
                    **TEMPLATE,
                    "containers": [{"image": "a", "probes": [{"type": "Readiness"}]}],
                }
            },
            "Startup and Liveness",
        ),
        (
            {"customContainerTemplate": {**TEMPLATE, "containers": [{"image": "a", "volumeMounts": []}]}},
            "volumeMounts: no such property",
        ),
        ({"containerType": "PythonLTS"}, "only a CustomContainer"),
        ({"dynamicPoolConfiguration": {"lifecycleConfiguration": {"lifecycleType": "Never"}}}, "OnContainerExit"),
    ],
)
async def test_what_has_no_counterpart_is_refused_by_its_name(
    managed: Api, properties: dict[str, Any], why: str
) -> None:
    said = await managed.json("PUT", f"{ARM}/app", 400, json=resource(**properties), identifier=None)

    assert why in said["error"]["message"]
    assert CANARY not in str(said)


async def test_a_pool_cannot_change_between_kernels_and_containers(managed: Api) -> None:
    await managed.json("PUT", "/pools/kernels", 201, json={"ready": 0}, identifier=None)

    there = await managed.json(
        "PATCH", "/pools/kernels", 409, json={"runtime": "container", "container": CONTAINER}, identifier=None
    )
    back = await managed.json("PUT", "/pools/python", 409, json={"ready": 0}, identifier=None)

    assert "another one" in there["error"]["message"]
    assert back["error"]["code"] == "Conflict"


async def test_a_backend_that_runs_no_containers_is_refused_by_name(tmp_path: Path) -> None:
    async with Sources(tmp_path, lambda _: None) as sources:
        sources._backends["bubblewrap"] = BubblewrapBackend(tmp_path)

        with pytest.raises(InvalidRequest, match="'bubblewrap' runs no custom containers; say docker"):
            await sources.make(PoolSettings(name="app", container=CONTAINER))
