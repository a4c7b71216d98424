"""The doctor's words on an engine: what it has, what it lacks, and what to do about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kernelpool.backends.base import SandboxSpec
from kernelpool.backends.docker.doctor import compare, engine_findings, start_finding, way_findings
from kernelpool.backends.docker.engine import is_gvisor, runtimes
from kernelpool.backends.docker.settings import DockerSettings
from kernelpool.backends.probe import ADDRESSES, CALLS, SOCKETS
from kernelpool.errors import InvalidRequest, StartFailed
from kernelpool.pool.settings import PoolSettings, sandbox_spec
from tests.fakes import RUNTIME

INFO: dict[str, Any] = {
    "ServerVersion": "28.1.0",
    "DefaultRuntime": "runc",
    "Runtimes": {
        "runc": {"path": "runc"},
        "io.containerd.runc.v2": {"path": "runc"},
        "gvisor": {"path": "/usr/bin/runsc", "runtimeArgs": ["--ignore-cgroups"]},
    },
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=default", "name=rootless"],
    "CgroupVersion": "2",
    **dict.fromkeys(("MemoryLimit", "SwapLimit", "PidsLimit", "CpuCfsQuota"), True),
}

SEEN: dict[str, Any] = {
    "uid": 65532,
    "capabilities": dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), 0),
    "no new privileges": "1",
    "seccomp": "2",
    "processes": [1, 7, 9],
    "environment of process 1": "PATH=/bin\0HOSTNAME=sandbox\0HOME=/mnt/data\0LANG=C.UTF-8\0",
    "host paths in process 1": ["/sbin/docker-init", "/run/kp/probe"],
    "descriptors": [0, 1, 2, 3, 4],
    "environment": ["HOME", "HOSTNAME", "LANG", "PATH"],
    "interfaces": ["lo"],
    "routes": [],
    "connections": dict.fromkeys(ADDRESSES, "ENETUNREACH"),
    "lookup": "fails",
    "abstract sockets": [],
    "writable": ["/dev/shm", "/mnt/data", "/tmp"],
    "devices": ["full", "mqueue", "null", "pts", "random", "shm", "tty", "urandom", "zero"],
    "kernel files": [],
    "host files": [],
    "calls": dict.fromkeys(CALLS, "EPERM"),
    "sockets": dict.fromkeys(SOCKETS, "ENOSYS"),
    "core limit": [0, 0],
    "hostname": "sandbox",
}


def spec(**settings: Any) -> SandboxSpec:
    return sandbox_spec(PoolSettings(**settings), RUNTIME)


def broken(seen: dict[str, Any], **settings: Any) -> list[str]:
    return [finding.name for finding in compare(seen, INFO, spec(**settings)) if not finding.holds]


def test_what_is_as_promised_holds() -> None:
    assert broken(SEEN) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("uid", 0),
        ("capabilities", {**SEEN["capabilities"], "CapBnd": 1}),
        ("no new privileges", "0"),
        ("seccomp", "0"),
        ("processes", [1, 7, 8, 9]),
        ("environment of process 1", SEEN["environment of process 1"] + "TOKEN=x\0"),
        ("host paths in process 1", ["/var/lib/kernelpool"]),
        ("descriptors", [0, 1, 2, 3, 4, 5]),
        ("environment", ["GPG_KEY", *SEEN["environment"]]),
        ("interfaces", ["eth0", "lo"]),
        ("connections", {**SEEN["connections"], "10.0.0.1": "ECONNREFUSED"}),
        ("writable", ["/", *SEEN["writable"]]),
        ("devices", ["nvidia0", *SEEN["devices"]]),
        ("host files", ["/var/run/docker.sock"]),
        ("calls", {**SEEN["calls"], "bpf": "EINVAL"}),
        ("sockets", {**SEEN["sockets"], "packet": "OK"}),
    ],
)
def test_anything_else_does_not_hold(key: str, value: object) -> None:
    assert broken({**SEEN, key: value}) == [key]


def test_a_gpu_that_was_asked_for_is_no_surprise() -> None:
    assert broken({**SEEN, "devices": ["nvidia0", *SEEN["devices"]]}, gpus=1) == []


def test_what_the_kernel_of_gvisor_answers_is_its_own_affair() -> None:
    seen = {**SEEN, "calls": dict.fromkeys(CALLS, "OK"), "seccomp": "0"}

    assert broken(seen, oci_runtime="gvisor") == []
    assert broken({**seen, "writable": ["/"]}, oci_runtime="gvisor") == ["writable"]


def test_a_runtime_is_known_by_its_program() -> None:
    assert runtimes(INFO) == ["gvisor", "runc"]
    assert is_gvisor(INFO, "gvisor")
    assert not is_gvisor(INFO, None)


def test_a_good_engine_lacks_nothing() -> None:
    assert all(finding.holds for finding in engine_findings(INFO, None))


def test_what_an_engine_lacks_comes_with_a_remedy() -> None:
    lacking = {**INFO, "ServerVersion": "20.10.24+dfsg1", "SecurityOptions": [], "MemoryLimit": False}

    missing = [finding for finding in engine_findings(lacking, None) if not finding.holds]

    assert [finding.name for finding in missing] == [
        "Docker Engine",
        "user namespace",
        "system call filter",
        "security module",
        "memory limit",
    ]
    assert all(finding.remedy for finding in missing)
    assert [finding.name for finding in missing if finding.essential] == ["system call filter"]


def test_a_runtime_that_ignores_control_groups_limits_nothing() -> None:
    missing = [finding.name for finding in engine_findings(INFO, "gvisor") if not finding.holds]

    assert missing == ["memory limit", "swap limit", "process limit", "CPU limit"]


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("invalid mount config: bind source path does not exist: /x", "docker.run_dir"),
        ("OCI runtime create failed: unknown platform: systrap: unknown", "runsc"),
        ("something new", "See what the engine says"),
    ],
)
def test_why_no_sandbox_starts(words: str, remedy: str) -> None:
    error = StartFailed("the Docker Engine could not start a sandbox")
    error.add_note(words)

    finding = start_finding(error, spec())

    assert finding.essential
    assert not finding.holds
    assert remedy in finding.remedy


def test_gpus_that_are_not_there_are_a_wrong_setting() -> None:
    error = StartFailed("the Docker Engine could not start a sandbox")
    error.add_note('could not select device driver "" with capabilities: [[gpu]]')

    with pytest.raises(InvalidRequest, match="gpus"):
        start_finding(error, replace(spec(), gpus=2))


@pytest.mark.parametrize("host", ["unix:///var/run/docker.sock", "tcp://127.0.0.1:2375", "tcp://[::1]:2375"])
def test_the_way_to_an_engine_on_this_machine_is_nobodys_business(host: str) -> None:
    assert way_findings(DockerSettings(host=host)) == []


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"tls_verify": True}, "TLS"),
        ({"cert_path": "/etc/engine"}, "TLS, unverified"),
        ({}, "no TLS"),
    ],
)
def test_a_way_to_an_engine_that_others_may_listen_on_is_told(settings: dict[str, Any], seen: str) -> None:
    [finding] = way_findings(DockerSettings(host="tcp://engine.example:2376", **settings))

    assert (finding.seen, finding.holds, finding.essential) == (seen, seen == "TLS", False)
    assert bool(finding.remedy) != finding.holds
