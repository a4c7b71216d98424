"""Holders: containers of ours that a sandbox's network namespace belongs to, where it must not be the sandbox's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kernelpool.backends.base import SandboxSpec, Say
from kernelpool.backends.docker.build import Plan, build
from kernelpool.backends.docker.container import SHARED, hardened
from kernelpool.backends.docker.context import find_target
from kernelpool.backends.docker.engine import Engine
from kernelpool.backends.docker.images import find
from kernelpool.backends.oci_seccomp import oci_profile
from kernelpool.backends.tree.steps import in_thread
from kernelpool.models import Limits

HOLDER_COMMAND: Final = ("python3", "-I", "-S", "/opt/holder/holder.py")
HOLDER_LIMITS: Final = Limits(memory=48 << 20, cpus=0.5, pids=8, open_files=2048)


def holder(spec: SandboxSpec, image: str, folder: Path, given: Mapping[str, str]) -> dict[str, Any]:
    """The body of `POST /containers/create`: nothing but a loopback interface, and a program of ours."""
    port = str(spec.container.target_port) if spec.container else "-"
    return {
        "Image": image,
        "User": "65532:65532",
        "Hostname": "sandbox",
        "Domainname": "",
        "Env": [],
        "Entrypoint": [*HOLDER_COMMAND, port, *(["--proxy"] if is_proxied(spec) else [])],
        "Cmd": None,
        "WorkingDir": "/",
        "Labels": dict(given),
        "Healthcheck": {"Test": ["NONE"]},
        "StopTimeout": 1,
        "NetworkDisabled": True,
        "HostConfig": {
            **hardened(HOLDER_LIMITS, json.dumps(oci_profile())),
            **oci_runtime(spec),
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "Mounts": [
                {"Type": "bind", "Source": str(folder), "Target": SHARED, "BindOptions": {"Propagation": "rprivate"}}
            ],
        },
    }


def is_proxied(spec: SandboxSpec) -> bool:
    return spec.egress.mode == "domains"


def oci_runtime(spec: SandboxSpec) -> dict[str, Any]:
    return {} if spec.oci_runtime is None else {"Runtime": spec.oci_runtime}


async def holder_image(engine: Engine, say: Say) -> str:
    """The id of the image of holders, built when it is not there. Raises `PrepareFailed`."""
    target = await in_thread(find_target, "net")
    if (id := await find(engine, target)) is not None:
        return id
    say(
        "building the image that holds networks of custom containers, once; `kernelpool images build net` does it ahead"
    )
    return await build(engine, Plan(target), lambda _: None)
