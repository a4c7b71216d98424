"""The files of deployment: whole, pinned, as closed as can be, and in one version with the code."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kernelpool import __version__

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy/systemd/kernelpool.service"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ENGINE = "docker.sock"


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_as_closed_as_can_be(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "cap_add" not in service
    assert service["logging"]["options"]["max-size"]
    assert "healthcheck" in service or service["build"]["target"] == "gateway"  # whose image has one


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_has_an_exact_version(name: str) -> None:
    assert re.search(r":v?\d+\.\d+\.\d+$", SERVICES[name]["image"])


def test_the_gateways_image_is_of_this_version() -> None:
    assert SERVICES["gateway"]["image"] == f"kernelpool-gateway:{__version__}"


def test_nobody_but_the_gateway_has_the_engines_socket() -> None:
    assert [name for name, service in SERVICES.items() if ENGINE in str(service["volumes"])] == ["gateway"]


def test_nothing_is_published_but_on_the_loopback() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]

    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_file_that_is_mounted_is_there() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service["volumes"] if mount.startswith("./")]

    assert len(mounts) > 3
    assert [mount for mount in mounts if not (ROOT / mount.split(":")[0]).exists()] == []


def test_prometheus_finds_the_gateway_and_its_key_where_compose_puts_them() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    [job] = config["scrape_configs"]
    [key] = [mount.split(":")[1] for mount in SERVICES["prometheus"]["volumes"] if mount.startswith("keys:")]

    assert job["static_configs"] == [{"targets": ["gateway:8080"]}]
    assert job["authorization"]["credentials_file"] == f"{key}/prometheus"
    assert "gateway" in SERVICES["gateway"]["environment"]["KERNELPOOL_ALLOWED_HOSTS"]
    assert "> /keys/new" in SERVICES["keys"]["command"][0]


def test_grafana_finds_prometheus_where_compose_puts_it() -> None:
    [source] = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]

    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in SERVICES


def has_compose() -> bool:
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0


@pytest.mark.skipif(not has_compose(), reason="no docker compose here: its own check of compose.yaml is NOT DONE")
def test_compose_itself_accepts_the_file() -> None:
    command = ["docker", "compose", "--file", str(ROOT / "compose.yaml"), "config", "--quiet"]

    assert subprocess.run(command, capture_output=True, text=True).stderr == ""


# --- systemd

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze here: the unit is NOT CHECKED"
)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """With a program that is there."""
    text = UNIT.read_text().replace("/opt/kernelpool/bin/kernelpool serve", "/bin/true")
    (tmp_path / UNIT.name).write_text(text)
    return tmp_path / UNIT.name


def analyze(*arguments: str) -> str:
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@needs_systemd
def test_systemd_has_nothing_to_say_against_the_unit(unit: Path) -> None:
    assert analyze("verify", "--man=no", str(unit)) == ""


@needs_systemd
def test_systemd_calls_the_unit_ok(unit: Path) -> None:
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", analyze("security", "--offline=true", str(unit)))

    assert found is not None
    assert float(found[1]) < 4


@pytest.mark.parametrize(
    "setting",
    ["ProtectKernelTunables", "ProtectKernelLogs", "ProtectControlGroups", "ProtectHostname", "PrivateDevices"],
)
def test_the_unit_leaves_out_what_would_break_sandboxes(setting: str) -> None:
    assert not re.search(rf"^{setting}=", UNIT.read_text(), re.MULTILINE)


def test_a_restart_of_the_unit_ends_no_session() -> None:
    lines = UNIT.read_text().splitlines()

    assert "KillMode=process" in lines
    assert "Delegate=yes" in lines
