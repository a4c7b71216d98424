"""compose.yaml without compose: its services as containers with exactly its options, and code run through them."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
import requests
import yaml

from tests.e2e.gateways import TOKEN, until
from tests.engine import engine_client, image_of
from tests.extra import extra

# The first test of all builds what the others use.
pytestmark = [pytest.mark.engine, extra, pytest.mark.timeout(1200)]  # two images are built

COMPOSE = Path(__file__).parents[2] / "compose.yaml"
PORT = 8080
VERSION = "2025-10-02-preview"


def services(**variables: str) -> dict[str, dict[str, Any]]:
    """With `${NAME:-default}` replaced, as compose does."""
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: variables.get(match[1], match[2]), COMPOSE.read_text())
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return found


class Project:
    """Containers, volumes and a directory of one test."""

    def __init__(self, client: docker.APIClient, image: str) -> None:
        self._client = client
        self._image = image
        self.name = f"kptest-{uuid.uuid4().hex[:8]}"
        self.run_dir = Path("/var/tmp", self.name)
        self._services = services(KP_RUN_DIR=str(self.run_dir), KP_READY="1")
        self._label = {"io.kernelpool.test": self.name}

    def start(self, name: str, *command: str) -> str:
        """Returns the container's id."""
        service = self._services[name]
        published: dict[int | str, Any] | None = {PORT: ("127.0.0.1", None)} if "ports" in service else None
        host = self._client.create_host_config(
            binds=[self._bind(mount) for mount in service["volumes"]],
            cap_drop=service["cap_drop"],
            security_opt=service["security_opt"],
            read_only=service["read_only"],
            tmpfs=dict(entry.split(":") for entry in service.get("tmpfs", ())),
            mem_limit=service.get("mem_limit"),
            pids_limit=service.get("pids_limit"),
            port_bindings=published,
            network_mode=service.get("network_mode", self._network()),
            init=False,
        )
        made = self._client.create_container(
            self._image,
            command=list(command) or service.get("command"),
            entrypoint=service.get("entrypoint"),
            environment={**service.get("environment", {}), **({"KERNELPOOL_TOKEN": TOKEN} if published else {})},
            user=service["user"],
            ports=[PORT],
            host_config=host,
            labels=self._label,
        )
        self._client.start(made["Id"])
        return str(made["Id"])

    def _bind(self, mount: str) -> str:
        return mount if mount.startswith("/") else f"{self.name}-{mount}"

    def _network(self) -> str:
        if not self._client.networks(names=[self.name]):
            self._client.create_network(self.name, driver="bridge", labels=self._label)
        return self.name

    def run(self, name: str, *command: str) -> str:
        """To its end; returns what it printed."""
        container = self.start(name, *command)
        code = self._client.wait(container)["StatusCode"]
        output: str = self._client.logs(container).decode()
        assert code == 0, output
        return output

    def url(self, container: str) -> str:
        [binding] = self._client.inspect_container(container)["NetworkSettings"]["Ports"][f"{PORT}/tcp"]
        return f"http://127.0.0.1:{binding['HostPort']}"

    def log(self, container: str) -> str:
        return str(self._client.logs(container).decode())

    def stop(self, container: str) -> None:
        self._client.stop(container, timeout=30)

    def read(self, path: str) -> str:
        """Of a file below the volume of the keys."""
        made = self._client.create_host_config(binds=[f"{self.name}-keys:/keys:ro"], network_mode="none")
        container = self._client.create_container(
            self._image, ["-c", f"cat {path}"], entrypoint="/bin/sh", user="65534", host_config=made, labels=self._label
        )
        self._client.start(container["Id"])
        assert self._client.wait(container["Id"])["StatusCode"] == 0
        return str(self._client.logs(container["Id"]).decode())

    def remove(self) -> None:
        for container in self._client.containers(all=True, filters={"label": f"io.kernelpool.test={self.name}"}):
            self._client.remove_container(container["Id"], force=True)
        for volume in ("state", "keys"):
            with_volume = f"{self.name}-{volume}"
            if self._client.volumes(filters={"name": with_volume})["Volumes"]:
                self._client.remove_volume(with_volume)
        for network in self._client.networks(names=[self.name]):
            self._client.remove_network(network["Id"])
        shutil.rmtree(self.run_dir, ignore_errors=True)


@pytest.fixture
def client() -> Iterator[docker.APIClient]:
    with engine_client() as client:
        yield client


@pytest.fixture
def project(client: docker.APIClient) -> Iterator[Project]:
    image_of("python")
    project = Project(client, image_of("gateway"))
    yield project
    project.remove()


def up(project: Project, gateway: str) -> str:
    url = project.url(gateway)

    def is_ready() -> bool:
        try:
            return requests.get(f"{url}/readyz", timeout=120).ok
        except requests.ConnectionError:
            assert "Error:" not in project.log(gateway), project.log(gateway)
            return False

    until(is_ready, seconds=120)
    return url


def execute(url: str, code: str) -> Any:
    answer = requests.post(
        f"{url}/pools/python/executions",
        params={"api-version": VERSION, "identifier": "compose-1"},
        headers={"Authorization": f"Bearer {TOKEN}"},
        json={"code": code},
        timeout=120,
    )
    assert answer.ok, answer.text
    return answer.json()["result"]["stdout"].strip()


def test_the_gateway_of_compose_runs_code_and_goes_on_with_it_after_a_restart(
    project: Project, client: docker.APIClient
) -> None:
    project.run("keys")
    first = project.start("gateway")
    url = up(project, first)

    assert execute(url, "import os; x = 41; print(os.getuid())") == "65532"
    key = project.read("/keys/prometheus")
    metrics = requests.get(f"{url}/metrics", headers={"Authorization": f"Bearer {key.strip()}"}, timeout=60)
    assert "kernelpool_pool_ready" in metrics.text

    project.stop(first)
    second = project.start("gateway")
    url = up(project, second)

    assert execute(url, "print(x + 1)") == "42"

    project.stop(second)
    assert "destroyed" in project.run("gateway", "cleanup")
    assert list(project.run_dir.glob("*/*")) == []


def test_the_key_of_prometheus_is_made_once_and_may_only_look(project: Project) -> None:
    project.run("keys")
    made = project.read("/keys/prometheus")

    project.run("keys")

    assert project.read("/keys/prometheus") == made
    assert re.fullmatch(r"kp_[0-9a-f]{12}_\S+\n", made)


def test_the_gateways_image_has_a_user_of_its_own_and_says_how_it_is(
    project: Project, client: docker.APIClient
) -> None:
    config = client.inspect_image(image_of("gateway"))["Config"]  # type: ignore[no-untyped-call]

    assert config["User"] == "10001:10001"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert config["Entrypoint"] == ["/opt/venv/bin/kernelpool"]

    container = project.start("gateway")
    up(project, container)
    probe = client.exec_create(container, config["Healthcheck"]["Test"][1:])
    client.exec_start(probe["Id"])

    assert client.exec_inspect(probe["Id"])["ExitCode"] == 0
    project.stop(container)
    project.run("gateway", "cleanup")
