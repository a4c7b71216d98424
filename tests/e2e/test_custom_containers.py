"""A pool of custom containers on a real engine: the sample of kernels/custom-example, as its users meet it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import docker
import docker.errors
import pytest
import requests

from kernelpool.backends.docker.labels import GATEWAY, SANDBOX
from tests.e2e.gateways import TOKEN, VERSION, Gateway, Session, until
from tests.engine import base_image, engine_client, image_of

pytestmark = pytest.mark.engine

SAMPLE = Path(__file__).parents[2] / "kernels" / "custom-example"
SECRET = "canary-of-a-secret-9b1"
SETTINGS = """
[pools.python]
backend = "docker"
limits = {{ memory = "256Mi", workspace = "16Mi", tmp = "16Mi", pids = 64 }}

[pools.python.container]
image = "{image}"
target_port = 8080
lifecycle = "{lifecycle}"
env = {{ GREETING = {{ secret_ref = "greeting" }} }}
secrets = {{ greeting = "{secret}" }}

[pools.python.container.probes]
startup = {{ http_get = {{ path = "/health" }}, period_seconds = 1, timeout_seconds = 30 }}
liveness = {{ http_get = {{ path = "/health" }}, period_seconds = 1, timeout_seconds = 30, failure_threshold = 2 }}
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.APIClient]:
    with engine_client() as client:
        yield client


@pytest.fixture(scope="module")
def sample(engine: docker.APIClient) -> Iterator[str]:
    """Its name; the image of holders is there as well."""
    image_of("net")
    name = f"kernelpool-test-custom:{os.getpid()}"
    lines = engine.build(str(SAMPLE), tag=name, buildargs={"BASE": base_image(engine)}, rm=True, decode=True)
    assert not [line for line in lines if "error" in line]
    yield name
    engine.remove_image(name)


class Containers(Gateway):
    """A gateway with such a pool, and a state of its own."""

    def __init__(self, engine: docker.APIClient, image: str, *, lifecycle: str = "timed", **pool: Any) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kpc-", dir="/var/tmp"))
        (self.folder / "kernelpool.toml").write_text(SETTINGS.format(image=image, lifecycle=lifecycle, secret=SECRET))
        self.engine = engine
        super().__init__(self.folder, state=self.folder / "s", **{"ready": 1, "max_sessions": 4, **pool})

    @property
    def tag(self) -> str:
        return (self.state / "docker" / "tag").read_text()

    def containers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.engine.containers(all=True, filters={"label": f"{GATEWAY}={self.tag}"})
        return found

    def of(self, sandbox: str) -> list[dict[str, Any]]:
        return [one for one in self.containers() if one["Labels"][SANDBOX] == sandbox]

    def close(self) -> None:
        self.stop()
        left = self.containers()
        shutil.rmtree(self.folder)
        assert left == []


@pytest.fixture(scope="module")
def containers(engine: docker.APIClient, sample: str) -> Iterator[Containers]:
    gateway = Containers(engine, sample, max_sessions=16, cooldown=3600)
    with contextlib.closing(gateway):
        gateway.start()
        yield gateway


def count(session: Session) -> int:
    response = session.request("GET", "/")
    assert response.status_code == 200, response.text
    number: int = response.json()["count"]
    return number


def test_a_session_is_a_container_with_its_own_state(containers: Containers) -> None:
    first, second = containers.session("first"), containers.session("second")

    assert [count(first), count(first), count(second), count(first)] == [1, 2, 1, 3]
    assert first.sandbox != second.sandbox
    assert first.request("GET", "/").json()["greeting"] == SECRET
    assert first.request("GET", "/nothing").status_code == 404


async def test_a_body_streams_there_and_back_at_once(containers: Containers) -> None:
    data = os.urandom(1 << 20)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield data

    url = f"{containers.endpoint}/echo?identifier=echoes"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(headers=headers) as http, http.post(url, data=pieces()) as response:
        assert await response.read() == data * 20


def test_an_answer_streams_as_it_comes(containers: Containers) -> None:
    session = containers.session("streams")
    with session.request("GET", "/stream", stream=True) as response:
        events = [line for line in response.iter_lines(chunk_size=1) if line]
    assert events == [b"data: 0", b"data: 1", b"data: 2", b"data: 3"]


def test_a_redirect_is_passed_on_and_credentials_are_not(containers: Containers) -> None:
    session = containers.session("headers")
    redirect = session.request("GET", "/go", allow_redirects=False)
    seen = session.request("GET", "/request", headers={"Cookie": "canary=1", "X-Kept": "yes"}).json()

    assert (redirect.status_code, redirect.headers["Location"]) == (302, "http://example.com/elsewhere")
    assert seen["X-Kept"] == "yes"
    assert not {"Authorization", "Cookie"} & seen.keys()
    assert TOKEN not in json.dumps(seen)


async def test_a_websocket_reaches_the_container(containers: Containers) -> None:
    url = f"{containers.endpoint}/ws?identifier=web-socket"
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as http,
        http.ws_connect(url, timeout=aiohttp.ClientWSTimeout(ws_close=60)) as socket,
    ):
        await socket.send_str("hello")
        assert await socket.receive_str(timeout=60) == "HELLO"
        await socket.ping(b"x")
        await socket.send_str("x" * 40_000)
        assert await socket.receive_str(timeout=60) == "X" * 40_000
        await socket.close(code=4000)
        assert socket.close_code == 4000


def test_one_that_fails_its_liveness_probe_is_replaced_and_the_next_answer_says_why(containers: Containers) -> None:
    session = containers.session("unwell")
    count(session)
    broken = session.sandbox
    assert session.request("POST", "/break").status_code == 200

    until(lambda: broken not in [one["Labels"][SANDBOX] for one in containers.containers()])
    answer = session.request("GET", "/")

    assert answer.json()["count"] == 1
    assert session.sandbox != broken
    assert "liveness probe" in answer.headers["x-kernelpool-notice"]
    containers.wait_warm()


def test_a_container_that_exits_ends_its_session(engine: docker.APIClient, sample: str) -> None:
    gateway = Containers(engine, sample, lifecycle="on_container_exit", cooldown=0.5)
    with contextlib.closing(gateway):
        gateway.start()
        session = gateway.session("exits")
        assert count(session) == 1
        gateway.session("another").request("GET", "/stream")  # longer than the cooldown
        assert count(session) == 2
        ended = session.sandbox

        lost = session.request("POST", "/exit", data=b"7")

        assert lost.status_code == 502
        assert "status 7" in lost.json()["error"]["message"]
        until(lambda: gateway.of(ended) == [])
        assert count(session) == 1


def test_kill_9_of_the_gateway_keeps_containers_and_sessions(containers: Containers) -> None:
    session = containers.session("survivor")
    count(session)
    containers.wait_warm()
    before = {one["Id"] for one in containers.containers()}
    sandbox = session.sandbox

    containers.kill()
    containers.start()

    assert count(session) == 2
    assert session.sandbox == sandbox
    assert before <= {one["Id"] for one in containers.containers()}
    session.request("POST", "/break")  # probes go on
    until(lambda: containers.of(sandbox) == [])


def test_the_end_of_either_container_is_the_end_of_both(containers: Containers) -> None:
    for number, suffix in enumerate(("-net", "")):
        session = containers.session(f"halves-{number}")
        count(session)
        [half] = [one for one in containers.of(session.sandbox) if one["Names"][0].endswith(session.sandbox + suffix)]
        ended = session.sandbox

        containers.engine.kill(half["Id"])

        until(lambda ended=ended: containers.of(ended) == [])  # type: ignore[misc]
        assert count(session) == 1


def test_a_container_gets_what_any_hostile_code_gets(containers: Containers) -> None:
    session = containers.session("hardened")
    count(session)
    parts = {
        one["Names"][0].endswith("-net"): containers.engine.inspect_container(one["Id"])
        for one in containers.of(session.sandbox)
    }

    assert set(parts) == {True, False}
    for part in parts.values():
        host = part["HostConfig"]
        assert host["CapDrop"] == ["ALL"]
        assert "no-new-privileges" in host["SecurityOpt"]
        assert host["ReadonlyRootfs"]
        assert not host["Privileged"]
        assert SECRET not in json.dumps(part["Config"]["Labels"])
    assert parts[False]["Mounts"] == []
    assert parts[True]["HostConfig"]["NetworkMode"] == "none"
    assert parts[False]["HostConfig"]["NetworkMode"].startswith("container:")


def test_list_get_and_stop(containers: Containers) -> None:
    session = containers.session("managed")
    count(session)

    listed = session.request("POST", "/.management/listSessions").json()
    found = session.request("POST", "/.management/getSession").json()
    stopped = session.request("POST", "/.management/stopSession")

    assert "managed" in [each["identifier"] for each in listed["value"]]
    assert found["expiresAt"]
    assert stopped.text == "Session managed in session pool python stopped."
    assert containers.of(session.sandbox) == []


def test_an_image_that_is_not_to_be_had_makes_no_pool_and_is_named(containers: Containers) -> None:
    pools = f"http://127.0.0.1:{containers.port}/pools"
    settings = {"backend": "docker", "container": {"image": "registry.invalid/app:1", "target_port": 80}}
    headers = {"Authorization": f"Bearer {TOKEN}"}

    answer = requests.put(f"{pools}/missing", json=settings, headers=headers, timeout=60)

    assert answer.status_code == 503
    assert "registry.invalid/app:1" in answer.json()["error"]["message"]
    assert requests.get(f"{pools}/missing", headers=headers, timeout=60).status_code == 404


def test_an_image_that_does_not_start_is_told_with_its_status(containers: Containers, sample: str) -> None:
    url = f"http://127.0.0.1:{containers.port}/pools/broken"
    container = {
        "image": sample,
        "target_port": 8080,
        "args": ["python3", "-c", "print('last words'); raise SystemExit(9)"],
    }
    settings = {"backend": "docker", "ready": 1, "container": container, "allocation_timeout": 120}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert requests.put(url, json=settings, headers=headers, timeout=60).status_code == 201

    answer = requests.get(f"{url}/x?identifier=broken-1", headers=headers, timeout=150)
    requests.delete(url, headers=headers, timeout=60)

    assert answer.status_code == 503
    until(lambda: "last words" in containers.log.read_text())
    assert "exited with status 9" in containers.log.read_text()


def test_a_secret_is_nowhere_to_be_read(containers: Containers) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    pool = requests.get(containers.endpoint, headers=headers, timeout=60)
    arm = f"http://127.0.0.1:{containers.port}/subscriptions/s/resourceGroups/g/providers/Microsoft.App/sessionPools/python"
    resource = requests.get(f"{arm}?api-version={VERSION}", headers=headers, timeout=60)

    assert pool.ok
    assert resource.ok
    assert SECRET not in pool.text + resource.text + containers.log.read_text()
    command_lines = [_read(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert any(command_lines)
    assert not [line for line in command_lines if SECRET.encode() in line]


def _read(path: Path) -> bytes:
    with contextlib.suppress(OSError):  # the process is gone
        return path.read_bytes()
    return b""
