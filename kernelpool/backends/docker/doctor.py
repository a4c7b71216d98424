"""The doctor of the Docker backend: what the engine offers and a probe sees in a container, against our promises."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from kernelpool.backends import doctor
from kernelpool.backends.base import Finding, SandboxSpec
from kernelpool.backends.bwrap_argv import ENVIRONMENT, PYTHON
from kernelpool.backends.container import ContainerSpec
from kernelpool.backends.docker.container import SHARED
from kernelpool.backends.docker.engine import is_gvisor, runtime_of
from kernelpool.backends.docker.settings import DockerSettings
from kernelpool.backends.docker.start import Program
from kernelpool.backends.doctor import GOLDEN, Promise
from kernelpool.errors import InvalidRequest, StartFailed

PROBE: Final = Program((PYTHON, "-I", f"{SHARED}/probe"), doctor.install_probe)


def probe_elsewhere() -> Program:
    """Where there is no directory to put it into. Blocks."""
    return Program((PYTHON, "-I", "-c", doctor.probe_as_text()))


_ADVISED: Final = (25, 0)
_NAMES: Final = sorted({*ENVIRONMENT, "HOSTNAME"})
_INIT: Final = "/sbin/docker-init"

# Of what bubblewrap promises. "mounts without nosuid" is missing: the engine has no such option for all mounts, and
# "no new privileges" makes setuid programs inert.
_SAME: Final = frozenset(
    {"uid", "interfaces", "routes", "lookup", "abstract sockets", "writable", "kernel files", "core limit", "hostname"}
)
_ANY_KERNEL: Final[Sequence[Promise]] = (
    *(promise for promise in GOLDEN if promise.key in _SAME),
    Promise("capabilities", [], "no capabilities"),
    Promise("processes", 3, "only the sandbox's own processes are seen"),
    Promise("environment of process 1", _NAMES, "nothing of the engine's environment is seen"),
    Promise("host paths in process 1", [], "no path of the host is seen"),
    Promise("descriptors", [0, 1, 2, 3, 4], "no open file of the engine is inherited"),
    Promise("environment", _NAMES, "the environment is ours alone, and not the image's"),
    Promise("connections", [], "no address can be reached"),
)
_SHARED_KERNEL: Final[Sequence[Promise]] = (
    *(promise for promise in GOLDEN if promise.key in ("no new privileges", "seccomp")),
    Promise(
        "devices",
        ["full", "mqueue", "null", "pts", "random", "shm", "tty", "urandom", "zero"],
        "no device but the harmless ones",
    ),
    Promise("host files", [], "no file of the host is seen"),
    Promise("calls", [], "dangerous system calls are refused"),
    Promise("sockets", [], "only Unix, TCP, UDP and route sockets"),
)
"""What gVisor's own kernel answers to these is the affair of gVisor, which is no way to the host's."""

_REFUSED: Final = frozenset({"EPERM", "ENOSYS", "EAFNOSUPPORT"})
"""Which of them it is depends on the engine's age: before 23.0 it did not know of a profile's default errno."""
_UNREACHED: Final = frozenset({"ENETUNREACH", "EHOSTUNREACH"})


def compare(seen: Mapping[str, Any], info: Mapping[str, Any], spec: SandboxSpec, *, relays: int = 0) -> list[Finding]:
    """`relays`: processes of ours in the sandbox, besides its own."""
    gvisor = is_gvisor(info, spec.oci_runtime)
    plain = _plain(seen, spec)
    plain["processes"] -= relays
    return doctor.compare(plain, _ANY_KERNEL if gvisor else (*_ANY_KERNEL, *_SHARED_KERNEL))


def _plain(seen: Mapping[str, Any], spec: SandboxSpec) -> dict[str, Any]:
    """Without what differs from engine to engine."""

    def those_not(key: str, outcomes: frozenset[str]) -> list[str]:
        return [f"{name}: {outcome}" for name, outcome in seen[key].items() if outcome not in outcomes]

    inside = [entry.partition("=")[0] for entry in seen["environment of process 1"].split("\0") if entry]
    paths = [path for path in seen["host paths in process 1"] if path != _INIT and not path.startswith(f"{SHARED}/")]
    return {
        **seen,
        "capabilities": [name for name, value in seen["capabilities"].items() if value],
        "processes": len(seen["processes"]),
        "environment of process 1": sorted(inside),
        "host paths in process 1": paths,
        "connections": those_not("connections", _UNREACHED),
        "calls": those_not("calls", _REFUSED),
        "sockets": those_not("sockets", _REFUSED),
        "devices": [name for name in seen["devices"] if not (spec.gpus and name.startswith("nvidia"))],
    }


def engine_findings(info: Mapping[str, Any], oci_runtime: str | None) -> list[Finding]:
    """What makes sandboxes stronger or weaker on this engine. `info` is what it tells of itself."""
    options = " ".join(info.get("SecurityOptions") or [])
    version = str(info.get("ServerVersion", ""))
    gvisor = is_gvisor(info, oci_runtime)
    separate = "name=userns" in options or "name=rootless" in options
    module = next((name for name in ("apparmor", "selinux") if f"name={name}" in options), "")
    findings = [
        _advice(
            "Docker Engine",
            _numbers(version) >= _ADVISED,
            version,
            f"{'.'.join(map(str, _ADVISED))} or newer",
            "Update the engine: older ones have known holes, such as that of runc's file descriptors (CVE-2024-21626).",
        ),
        Finding("runtime", True, _runtime_words(info, oci_runtime, gvisor), "what runs containers", essential=False),
        _advice(
            "user namespace",
            separate,
            "the engine has one" if separate else "uid 65532 inside is uid 65532 outside",
            "sandboxes have users that are nobody outside",
            "Run the engine rootless, or with userns-remap.",
        ),
    ]
    if not gvisor:
        findings += [
            Finding(
                "system call filter",
                "name=seccomp" in options,
                "the engine loads filters" if "name=seccomp" in options else "none",
                "the engine loads filters for system calls",
                "Install an engine that was built with seccomp, on a kernel that has it.",
            ),
            _advice(
                "security module",
                bool(module),
                module or "none",
                "AppArmor or SELinux holds containers as well",
                "Use a system with one of them, if this one can.",
            ),
        ]
    return [*findings, *_limits(info, oci_runtime)]


def way_findings(settings: DockerSettings) -> list[Finding]:
    """Whoever listens on the way to an engine learns what passes, and whoever speaks there is root on its host."""
    place = urlsplit(settings.host)
    if place.scheme == "unix" or _is_loopback(place.hostname or ""):
        return []
    spoken = "TLS" if settings.tls_verify else "TLS, unverified" if settings.cert_path else "no TLS"
    return [
        _advice(
            "way to the engine",
            settings.tls_verify,
            spoken,
            "nobody can listen or speak on it but the gateway",
            "Give the engine TLS with client certificates; set docker.tls_verify and docker.cert_path. Without, the "
            "network between must be nobody else's, such as a WireGuard tunnel.",
        )
    ]


def _limits(info: Mapping[str, Any], oci_runtime: str | None) -> list[Finding]:
    """A runtime that leaves control groups alone has no limits, whatever the engine thinks."""
    counted = not ignores_cgroups(info, oci_runtime)
    remedy = "Mount the control groups' memory, pids and cpu controllers" if counted else "Take --ignore-cgroups away"
    told = {
        "memory limit": ("MemoryLimit", "a control group counts all memory of a sandbox"),
        "swap limit": ("SwapLimit", "a sandbox gets no swap"),
        "process limit": ("PidsLimit", "a control group counts the processes of a sandbox"),
        "CPU limit": ("CpuCfsQuota", "a control group limits the CPU time of a sandbox"),
    }
    return [
        _advice(name, bool(info.get(key)) and counted, _yes(bool(info.get(key)) and counted), wanted, f"{remedy}.")
        for name, (key, wanted) in told.items()
    ]


def custom_findings(info: Mapping[str, Any], spec: SandboxSpec, container: ContainerSpec, user: str) -> list[Finding]:
    """No probe can look around in an image of somebody else; what holds is what the engine is asked for."""
    if is_gvisor(info, spec.oci_runtime):
        raise InvalidRequest(
            f"oci_runtime {spec.oci_runtime!r}: gVisor's containers have networks of their own, and a custom "
            "container shares that of its holder; run it with runc"
        )
    runs_as = (container.user or user or "root").partition(":")[0]
    is_root = runs_as in ("root", "0")
    return [
        _advice(
            "user of the image",
            not is_root,
            f"{runs_as}, without any capability" if is_root else runs_as,
            "not root",
            "Name another in container.user: root without capabilities is still root to the kernel's own checks.",
        ),
        _advice(
            "files of the image",
            not container.writable_root,
            "writable, without a limit" if container.writable_root else "read-only",
            "read-only",
            "Take container.writable_root away: what a session writes there can fill the host's disk.",
        ),
    ]


def start_finding(error: StartFailed, spec: SandboxSpec) -> Finding:
    """Why not even the probe's sandbox came up. Raises `InvalidRequest` when it was for a setting."""
    seen = "; ".join([str(error), *getattr(error, "__notes__", [])])
    if spec.gpus is not None and "device driver" in seen:
        raise InvalidRequest("gpus: the engine has none to give; install the NVIDIA Container Toolkit for it")
    remedy = next((text for word, text in _REMEDIES.items() if word in seen), "See what the engine says.")
    return Finding("sandbox", False, seen, "a sandbox starts", remedy)


_SHARE: Final = (
    "The engine does not see the gateway's directory: set docker.run_dir to one that has the same path for both."
)
_REMEDIES: Final[Mapping[str, str]] = {
    "bind source path does not exist": _SHARE,
    "was not there within": _SHARE,
    "unknown platform": "This runsc is too old: install one of 2023 or later, with --platform=systrap.",
    "seccomp": "The engine cannot load the filter for system calls: update it, and libseccomp.",
}


def ignores_cgroups(info: Mapping[str, Any], oci_runtime: str | None) -> bool:
    return "--ignore-cgroups" in (runtime_of(info, oci_runtime).get("runtimeArgs") or [])


def _advice(name: str, holds: bool, seen: str, wanted: str, remedy: str) -> Finding:
    return Finding(name, holds, seen, wanted, "" if holds else remedy, essential=False)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _yes(holds: bool) -> str:
    return "by control group" if holds else "none"


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()


def _runtime_words(info: Mapping[str, Any], oci_runtime: str | None, gvisor: bool) -> str:
    name = oci_runtime or str(info.get("DefaultRuntime", ""))
    return (
        f"{name}, a kernel of its own in user space"
        if gvisor
        else f"{name}, on control groups of version " + str(info.get("CgroupVersion") or 1)
    )
