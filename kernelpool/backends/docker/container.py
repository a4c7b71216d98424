"""What a Docker sandbox is, as one pure function from a spec and a view to what the engine is asked to create."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kernelpool.backends.base import SandboxSpec
from kernelpool.backends.bwrap_argv import ENVIRONMENT, SANDBOX_UID
from kernelpool.models import WORKSPACE, Limits

SHARED: Final = "/run/kp"
"""The sandbox's directory of the host. The agent may make its socket there; after that nobody inside makes anything."""
SOCKET: Final = "agent.sock"
CONFIG: Final = "config.json"
"""Gone before the sandbox counts as made."""

LISTEN_AND_CONFIG: Final = ("--listen", f"unix:{SHARED}/{SOCKET}", "--config", f"{SHARED}/{CONFIG}")
AGENT_PORT: Final = 61208
"""On loopback, where no directory is shared with the gateway. Above the ports that Linux gives out by itself."""
LISTEN_AND_CONFIG_ELSEWHERE: Final = ("--listen", f"tcp:127.0.0.1:{AGENT_PORT}", "--config", "fd:0")

SHM: Final = 64 << 20
OOM_SCORE: Final = 500
"""When the machine itself runs out of memory, sandboxes go before the gateway does."""
MASKED: Final = (
    # What engines hide by themselves.
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    # What else tells about the host.
    "/proc/config.gz",
    "/proc/kallsyms",
    "/proc/key-users",
    "/sys",
)
_BYTES_PER_INODE: Final = 5120
_FEWEST_INODES: Final = 1024


@dataclass(frozen=True, slots=True)
class View:
    """What one sandbox is made from, besides its spec."""

    image: str
    unset: Sequence[str]
    """Environment variables that the image sets and the sandbox does not get."""
    folder: Path | None
    """Of the host, shown at `SHARED`. None where the engine shares none: then the container has an input, once."""
    command: Sequence[str]
    labels: Mapping[str, str]
    seccomp: str
    """The profile itself: the API takes no path."""


def container(spec: SandboxSpec, view: View) -> dict[str, Any]:
    """The body of `POST /containers/create`."""
    return {
        "Image": view.image,
        "User": f"{SANDBOX_UID}:{SANDBOX_UID}",
        "Hostname": "sandbox",
        "Domainname": "",
        "Env": _environment(view.unset),
        "Entrypoint": list(view.command),
        "Cmd": None,
        "WorkingDir": WORKSPACE,
        "Labels": dict(view.labels),
        "Healthcheck": {"Test": ["NONE"]},
        "StopTimeout": 1,
        "OpenStdin": view.folder is None,
        "StdinOnce": view.folder is None,
        "AttachStdin": view.folder is None,
        "AttachStdout": False,
        "AttachStderr": False,
        "Tty": False,
        "NetworkDisabled": True,
        "HostConfig": {
            **hardened(spec.limits, view.seccomp),
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "Tmpfs": {
                "/tmp": tmpfs(spec.limits.tmp, "noexec", "mode=1777"),  # noqa: S108 - the sandbox's own
                # Compiled wheels that a session installs must load.
                WORKSPACE: tmpfs(spec.limits.workspace, "exec", f"mode=0700,uid={SANDBOX_UID},gid={SANDBOX_UID}"),
            },
            "Mounts": _mounts(view.folder),
            **chosen(spec),
        },
    }


def _environment(unset: Sequence[str]) -> list[str]:
    """A name alone takes a variable of the image away."""
    ours = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
    return ours + [name for name in unset if name not in ENVIRONMENT]


def hardened(limits: Limits, seccomp: str) -> dict[str, Any]:
    """Of the HostConfig, what holds for any container in which somebody else's code runs."""
    return {
        "Privileged": False,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", f"seccomp={seccomp}"],
        "IpcMode": "private",
        "PidMode": "",
        "UTSMode": "",
        "CgroupnsMode": "private",
        "Init": True,
        "ShmSize": SHM,
        "Memory": limits.memory,
        "MemorySwap": limits.memory,  # together with swap: so there is none
        "NanoCpus": round(limits.cpus * 1e9),
        "PidsLimit": limits.pids,
        "Ulimits": _ulimits(limits),
        "OomScoreAdj": OOM_SCORE,
        "MaskedPaths": list(MASKED),
        "LogConfig": {"Type": "none"},  # a log is a way to fill the host's disk
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,  # why it ended must be readable
    }


def _mounts(folder: Path | None) -> list[dict[str, Any]]:
    if folder is None:
        return []
    return [{"Type": "bind", "Source": str(folder), "Target": SHARED, "BindOptions": {"Propagation": "rprivate"}}]


def chosen(spec: SandboxSpec) -> dict[str, Any]:
    """The runtime and the devices that the pool names."""
    parts: dict[str, Any] = {}
    if spec.oci_runtime is not None:
        parts["Runtime"] = spec.oci_runtime
    if spec.gpus is not None:
        count = -1 if spec.gpus == "all" else spec.gpus
        parts["DeviceRequests"] = [{"Driver": "", "Count": count, "Capabilities": [["gpu"]]}]
    return parts


def tmpfs(size: int, execute: str, owner: str) -> str:
    inodes = max(_FEWEST_INODES, size // _BYTES_PER_INODE)
    return f"rw,nosuid,nodev,{execute},size={size},nr_inodes={inodes},{owner}"


def _ulimits(limits: Limits) -> list[dict[str, Any]]:
    """RLIMIT_NPROC is missing: it would count the processes of all sandboxes, which have one user together."""
    wanted = {
        "core": (0, 0),
        "memlock": (64 << 10, 64 << 10),
        "msgqueue": (0, 0),
        "nice": (0, 0),
        "nofile": (limits.open_files, limits.open_files),
        "rtprio": (0, 0),
        # Counted over all sandboxes of a user: what one may add to that.
        "sigpending": (1024, 1024),
        "stack": (8 << 20, 64 << 20),
    }
    return [{"Name": name, "Soft": soft, "Hard": hard} for name, (soft, hard) in wanted.items()]
