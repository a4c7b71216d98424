"""Pools made, changed and deleted while the gateway runs, in our words and in Azure's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kernelpool.pool.store import PoolStore
from tests.api.conftest import TOKEN, VERSION, Api, api_of

GROUP = "/subscriptions/sub-1/resourceGroups/rg-1"
ARM = f"{GROUP}/providers/Microsoft.App/sessionPools"


class Manager:
    """A client of the management surface."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.root = f"http://127.0.0.1:{api.port}"

    async def call(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with self.api.http.request(method, self.root + path, json=body, headers=headers) as response:
            assert response.status == status, await response.text()
            return await response.json() if status != 204 else None

    async def arm(self, method: str, name: str, body: Any = None, status: int = 200) -> Any:
        return await self.call(method, f"{ARM}/{name}?api-version=2025-10-02-preview", body, status)

    async def run(self, pool: str, code: str, identifier: str = "abcd-1") -> Any:
        path = f"/pools/{pool}/executions?api-version={VERSION}&identifier={identifier}"
        return (await self.call("POST", path, {"code": code}))["result"]

    async def until(self, pool: str, **numbers: int) -> None:
        async with asyncio.timeout(20):
            while not numbers.items() <= (await self.call("GET", f"/pools/{pool}")).items():
                await asyncio.sleep(0.02)


@pytest.fixture
def manager(api: Api) -> Manager:
    return Manager(api)


async def test_a_pool_that_is_put_serves_sessions_at_once_and_is_gone_when_it_is_deleted(manager: Manager) -> None:
    made = await manager.call("PUT", "/pools/second", {"backend": "fake", "ready": 2, "cooldown": 30}, status=201)
    assert (made["settings"]["ready"], made["settings"]["cooldown"], made["settings"]["max_sessions"]) == (2, 30, 10)

    assert (await manager.run("second", "print(6 * 7)"))["stdout"] == "42\n"
    await manager.call("DELETE", "/pools/second", status=204)

    assert await manager.call("GET", "/pools/second", status=404)
    assert all(sandbox.pool == "python" for sandbox in manager.api.backend.sandboxes.values())


async def test_a_put_gives_a_pool_exactly_what_it_says(manager: Manager) -> None:
    await manager.call("PUT", "/pools/second", {"backend": "fake", "ready": 2, "cooldown": 30}, status=201)

    changed = await manager.call("PUT", "/pools/second", {"backend": "fake", "max_sessions": 5})

    assert (changed["settings"]["ready"], changed["settings"]["cooldown"], changed["maxSessions"]) == (2, 300, 5)
    await manager.call("DELETE", "/pools/second", status=204)


async def test_a_patch_changes_what_it_names_and_nothing_else(manager: Manager) -> None:
    changes = {"ready": 3, "limits": {"pids": 99}, "cooldown": None, "tags": {"team": "a"}}
    changed = await manager.call("PATCH", "/pools/python", changes)

    settings = changed["settings"]
    assert (settings["ready"], settings["limits"]["pids"], settings["limits"]["memory"]) == (3, 99, 1 << 30)
    assert (settings["tags"], settings["max_upload"]) == ({"team": "a"}, 1 << 20)
    await manager.until("python", ready=3, outdated=0)
    limits = [s.spec.limits.pids for s in manager.api.backend.sandboxes.values()]
    assert limits == [99] * 3


async def test_a_session_stays_as_it_is_when_its_pool_changes(manager: Manager) -> None:
    await manager.run("python", "x = 41")

    await manager.call("PATCH", "/pools/python", {"limits": {"pids": 99}, "cooldown": 10})
    await manager.until("python", ready=1, outdated=0)

    assert (await manager.run("python", "x + 1"))["executionResult"] == 42
    assert (await manager.run("python", "print(1)", identifier="abcd-2"))["stdout"] == "1\n"
    assert {s.spec.limits.pids for s in manager.api.backend.sandboxes.values()} == {99, 256}


async def test_a_smaller_pool_ends_no_session_and_takes_no_new_one(manager: Manager) -> None:
    for name in ("abcd-1", "abcd-2"):
        await manager.run("python", "x = 1", identifier=name)

    await manager.call("PATCH", "/pools/python", {"max_sessions": 1})

    assert (await manager.run("python", "x", identifier="abcd-2"))["executionResult"] == 1
    path = f"/pools/python/executions?api-version={VERSION}&identifier=abcd-3"
    assert (await manager.call("POST", path, {"code": "1"}, status=429))["code"] == "SessionsCountExceedsLimit"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "names"),
    [
        ("PUT", "/pools/second", {"ready": -1}, 400, "ready"),
        ("PUT", "/pools/second", {"limits": {"memory": "much"}}, 400, "limits.memory"),
        ("PUT", "/pools/second", {"nonsense": 1}, 400, "nonsense"),
        ("PUT", "/pools/second", {"name": "third"}, 400, "name"),
        ("PUT", "/pools/second", [], 400, "object"),
        ("PUT", "/pools/a%2Fb", {}, 400, "name"),
        ("PATCH", "/pools/second", {"ready": 1}, 404, "second"),
        ("PATCH", "/pools/python", {"ready": 99}, 400, "max_sessions"),
        ("DELETE", "/pools/second", None, 404, "second"),
        ("DELETE", "/pools/python", None, 409, "settings"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    manager: Manager, method: str, path: str, body: Any, status: int, names: str
) -> None:
    answer = await manager.call(method, path, body, status)

    assert names in answer["error"]["message"]
    assert [pool["name"] for pool in (await manager.call("GET", "/pools"))["value"]] == ["python"]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_sessions": 10**400},
        {"queue_size": 10**400},
        {"ready": 300_000, "max_sessions": 300_000},
        {"cooldown": 1e300},
        {"limits": {"memory": "9" * 400}},
        {"start_concurrency": 20_000},
        {"tags": {"a": "x" * 1000}},
        {"tags": {"x" * 1000: "a"}},
    ],
)
async def test_no_number_and_no_text_is_beyond_all_measure(manager: Manager, settings: Any) -> None:
    answer = await manager.call("PUT", "/pools/second", {"backend": "fake", **settings}, status=400)

    assert answer["error"]["code"] == "InvalidRequest"


async def test_the_largest_pool_that_can_be_made_can_be_read_by_the_next_gateway(tmp_path: Path) -> None:
    tags = {f"{number:02}" + "\x01" * 510: "\x01" * 256 for number in range(50)}
    async with api_of(tmp_path) as api:
        await Manager(api).call("PUT", "/pools/fat", {"ready": 0, "backend": "fake", "tags": tags}, status=201)

    assert (await asyncio.to_thread(PoolStore(tmp_path).load))["fat"].tags == tags


async def test_those_who_race_for_the_last_pool_do_not_all_get_it(manager: Manager) -> None:
    async def put(number: int) -> int:
        url, headers = f"{manager.root}/pools/x{number}", {"Authorization": f"Bearer {TOKEN}"}
        async with manager.api.http.put(url, json={"backend": "fake", "ready": 0}, headers=headers) as response:
            return int(response.status)

    statuses = await asyncio.gather(*(put(number) for number in range(20)))

    assert sorted(statuses) == [201] * 2 + [429] * 18


async def test_what_was_started_with_egress_is_nobodys_once_that_is_taken_away(tmp_path: Path) -> None:
    async with api_of(tmp_path, egress=True, ready=2, start_concurrency=1) as api:
        manager = Manager(api)
        await manager.until("python", ready=2)
        api.backend.may_create.clear()
        await manager.run("python", "1", identifier="before")
        await manager.until("python", ready=1, starting=1)

        await manager.call("PATCH", "/pools/python", {"egress": False})
        api.backend.may_create.set()
        await manager.run("python", "1", identifier="after")
        await manager.until("python", ready=2, outdated=0)

        assert [bool(sandbox.spec.egress) for sandbox in api.backend.sandboxes.values()].count(True) == 1


async def test_a_session_tells_the_policy_that_it_has_whatever_its_pool_says_by_now(tmp_path: Path) -> None:
    domains = ["*.pythonhosted.org", "pypi.org"]
    async with api_of(tmp_path, egress=domains) as api:
        await Manager(api).run("python", "1", identifier="abcd-1")
        await Manager(api).call("PATCH", "/pools/python", {"egress": ["pypi.org"]})
        await Manager(api).run("python", "1", identifier="abcd-2")

        first, second = [await api.json("GET", "/session", identifier=id) for id in ("abcd-1", "abcd-2")]
        listed = await api.json("GET", "/listSessions")

    assert first["egress"] == {"mode": "domains", "domains": domains}
    assert second["egress"] == {"mode": "domains", "domains": ["pypi.org"]}
    assert [session["egress"] for session in listed["sessions"]] == [first["egress"], second["egress"]]


@pytest.mark.parametrize("egress", [1, None, ["1.2.3.4"], ["*.org"], [1], {"a.org": True}, [["a.org"]], "true"])
async def test_an_egress_that_is_none_is_refused_by_its_name(manager: Manager, egress: object) -> None:
    answer = await manager.call("PUT", "/pools/odd", {"backend": "fake", "egress": egress}, status=400)

    assert "egress" in str(answer)


async def test_what_is_refused_while_draining_is_not_kept(tmp_path: Path) -> None:
    async with api_of(tmp_path) as api:
        await api.gateway.drain(0)

        await Manager(api).call("PUT", "/pools/ghost", {"backend": "fake", "ready": 0}, status=503)

        assert await asyncio.to_thread(PoolStore(tmp_path).load) == {}


async def test_there_are_no_more_pools_than_allowed(manager: Manager) -> None:
    for name in ("b", "c"):
        await manager.call("PUT", f"/pools/{name}", {"backend": "fake", "ready": 0}, status=201)

    answer = await manager.call("PUT", "/pools/d", {"backend": "fake"}, status=429)

    assert "3 session pools" in answer["error"]["message"]


async def test_a_pool_has_one_change_at_a_time(manager: Manager) -> None:
    await manager.call("PUT", "/pools/second", {"backend": "fake", "ready": 1}, status=201)
    await manager.until("second", ready=1)
    manager.api.backend.may_destroy.clear()
    deleting = asyncio.create_task(manager.call("DELETE", "/pools/second", status=204))
    async with asyncio.timeout(30):
        while "second" in str(await manager.call("GET", "/pools")):
            await asyncio.sleep(0.01)

    await manager.call("PUT", "/pools/second", {"backend": "fake"}, status=409)
    manager.api.backend.may_destroy.set()
    await deleting

    await manager.call("PUT", "/pools/second", {"backend": "fake"}, status=201)


async def test_whoever_waits_for_a_pool_that_is_deleted_is_told(manager: Manager) -> None:
    await manager.call("PUT", "/pools/second", {"backend": "fake", "ready": 0}, status=201)
    manager.api.backend.may_create.clear()
    path = f"/pools/second/executions?api-version={VERSION}&identifier=abcd-1"
    waiting = asyncio.create_task(manager.call("POST", path, {"code": "1"}, status=404))
    await manager.until("second", waiting=1)

    await manager.call("DELETE", "/pools/second", status=204)

    assert (await waiting)["error"]["code"] == "SessionPoolNotFound"
    manager.api.backend.may_create.set()


async def test_what_was_made_or_changed_is_kept_on_disk(tmp_path: Path) -> None:
    async with api_of(tmp_path) as api:
        manager = Manager(api)
        await manager.call("PUT", "/pools/second", {"backend": "fake", "ready": 0}, status=201)
        await manager.call("PATCH", "/pools/python", {"ready": 0, "cooldown": 17})
        stored = await asyncio.to_thread(PoolStore(tmp_path).load)
        assert (sorted(stored), stored["python"].cooldown) == (["python", "second"], 17)
        await manager.call("DELETE", "/pools/second", status=204)

        assert sorted(await asyncio.to_thread(PoolStore(tmp_path).load)) == ["python"]


# --- in Azure's words

RESOURCE = {
    "location": "westeurope",
    "tags": {"team": "a"},
    "properties": {
        "containerType": "PythonLTS",
        "poolManagementType": "Dynamic",
        "scaleConfiguration": {"maxConcurrentSessions": 7, "readySessionInstances": 3},
        "dynamicPoolConfiguration": {
            "lifecycleConfiguration": {"lifecycleType": "Timed", "cooldownPeriodInSeconds": 600}
        },
        "sessionNetworkConfiguration": {"status": "EgressEnabled"},
    },
}


async def test_a_resource_is_made_read_changed_and_deleted(manager: Manager) -> None:
    made = await manager.arm("PUT", "azure", RESOURCE, status=201)
    read = await manager.arm("GET", "azure")

    assert made == read
    assert read["id"] == f"{ARM}/azure"
    assert (read["location"], read["tags"]) == ("westeurope", {"team": "a"})
    assert RESOURCE["properties"].items() <= read["properties"].items()  # type: ignore[attr-defined]
    assert read["properties"]["provisioningState"] == "Succeeded"

    changes = {"properties": {"scaleConfiguration": {"readySessionInstances": 1}}}
    changed = await manager.arm("PATCH", "azure", changes)
    assert changed["properties"]["scaleConfiguration"] == {"maxConcurrentSessions": 7, "readySessionInstances": 1}
    assert changed["tags"] == {"team": "a"}

    listed = await manager.call("GET", f"{ARM}?api-version=2025-01-01")
    everywhere = await manager.call(
        "GET", "/subscriptions/sub-1/providers/Microsoft.App/sessionPools?api-version=2025-01-01"
    )
    assert [pool["name"] for pool in listed["value"]] == ["python", "azure"]
    assert len(everywhere["value"]) == 2

    await manager.arm("DELETE", "azure", status=204)
    assert (await manager.arm("GET", "azure", status=404))["error"]["code"] == "SessionPoolNotFound"


async def test_a_list_of_domains_is_a_property_of_ours_in_azures_words(manager: Manager) -> None:
    def network(**values: object) -> dict[str, object]:
        return {"properties": {"containerType": "PythonLTS", "sessionNetworkConfiguration": values}}

    listed = {"status": "EgressEnabled", "allowedDomains": ["a.org"]}
    made = await manager.arm("PUT", "azure", network(**listed), status=201)
    kept = await manager.arm("PATCH", "azure", network(status="EgressEnabled"))
    widened = await manager.arm("PUT", "azure", network(status="EgressEnabled"))
    closed = await manager.arm("PATCH", "azure", network(status="EgressDisabled"))
    await manager.arm("PATCH", "azure", network(status="EgressDisabled", allowedDomains=["a.org"]), status=400)

    assert made["properties"]["sessionNetworkConfiguration"] == listed
    assert kept["properties"]["sessionNetworkConfiguration"] == listed
    assert widened["properties"]["sessionNetworkConfiguration"] == {"status": "EgressEnabled"}
    assert closed["properties"]["sessionNetworkConfiguration"] == {"status": "EgressDisabled"}


async def test_the_management_endpoint_of_a_resource_serves_its_sessions(manager: Manager) -> None:
    await manager.arm("PUT", "azure", RESOURCE, status=201)
    endpoint = (await manager.arm("GET", "azure"))["properties"]["poolManagementEndpoint"]

    path = endpoint.removeprefix(manager.root) + f"/executions?api-version={VERSION}&identifier=abcd-1"

    assert (await manager.call("POST", path, {"code": "1 + 1"}))["result"]["executionResult"] == 2


async def test_the_older_shape_of_a_lifecycle_is_read(manager: Manager) -> None:
    older = {
        "properties": {
            "containerType": "pythonlts",
            "dynamicPoolConfiguration": {"executionType": "Timed", "cooldownPeriodInSeconds": 77},
        }
    }
    await manager.arm("PUT", "azure", older, status=201)

    assert (await manager.call("GET", "/pools/azure"))["settings"]["cooldown"] == 77


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"containerType": "CustomContainer"}, "properties.containerType"),
        ({"containerType": None}, "properties.containerType"),
        ({"poolManagementType": "Manual"}, "properties.poolManagementType"),
        ({"customContainerTemplate": {"containers": []}}, "properties.customContainerTemplate"),
        ({"secrets": [{"name": "a", "value": "b"}]}, "properties.secrets"),
        ({"managedIdentitySettings": [{"identity": "x"}]}, "properties.managedIdentitySettings"),
        ({"environmentId": "x"}, "properties.environmentId"),
        ({"mcpServerSettings": {"isMcpServerOn": True}}, "mcpServerSettings.isMcpServerOn"),
        ({"sessionNetworkConfiguration": {"status": "Maybe"}}, "sessionNetworkConfiguration.status"),
        ({"scaleConfiguration": {"maxNodes": 1}}, "scaleConfiguration.maxNodes"),
        ({"scaleConfiguration": {"maxConcurrentSessions": 0}}, "max_sessions"),
        ({"dynamicPoolConfiguration": {"lifecycleConfiguration": {"lifecycleType": "OnContainerExit"}}}, "Timed"),
        ({"nonsense": 1}, "properties.nonsense"),
    ],
)
async def test_what_has_no_counterpart_is_refused_by_name(manager: Manager, change: Any, names: str) -> None:
    properties = {"containerType": "PythonLTS", **change}

    answer = await manager.arm("PUT", "azure", {"location": "x", "properties": properties}, status=400)

    assert names in answer["error"]["message"]
    await manager.arm("GET", "azure", status=404)


async def test_a_resource_needs_an_api_version(manager: Manager) -> None:
    answer = await manager.call("GET", f"{ARM}/python", status=400)

    assert answer["error"]["code"] == "InvalidApiVersion"
