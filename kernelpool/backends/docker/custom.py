"""A custom container's sandbox: a holder of ours first, then the image in the holder's network namespace.

The image's own code is hostile from its first instruction, and so gets no directory of the gateway's: what it is
reached by, the holder has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kernelpool.agent import forwarder
from kernelpool.backends.base import RuntimeMetadata, SandboxSpec, Say
from kernelpool.backends.container import ContainerSpec, Registry
from kernelpool.backends.docker.container import chosen, hardened, tmpfs
from kernelpool.backends.docker.engine import Engine, EngineError
from kernelpool.backends.docker.folders import Folders
from kernelpool.backends.docker.labels import HOLDER_SUFFIX, container_name, holder_name, labels
from kernelpool.backends.docker.network import holder, is_proxied
from kernelpool.backends.docker.outside import Outside, holding
from kernelpool.backends.docker.pull import pull
from kernelpool.backends.docker.sandbox import DockerSandbox
from kernelpool.backends.docker.start import OpenDoor, listening
from kernelpool.backends.oci_seccomp import oci_profile
from kernelpool.backends.tree.steps import in_thread
from kernelpool.errors import BackendUnavailable, PrepareFailed
from kernelpool.models import WORKSPACE, Limits

LOG: Final = {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}}
"""What a custom container prints is the only word of an image that does not start. A megabyte of it, and no more."""
_RUN_BYTES: Final = 16 << 20
_NOT_FOUND: Final = 404


@dataclass(frozen=True, slots=True)
class CustomImage:
    """As the engine has it: what its name points to may change while sandboxes live."""

    id: str
    user: str
    volumes: tuple[str, ...]


def custom(
    spec: SandboxSpec, container: ContainerSpec, image: CustomImage, network: str, given: Mapping[str, str]
) -> Any:
    """The body of `POST /containers/create`: the image as it is, in what holds for any hostile code. `network` is the
    holder's name."""
    proxies = forwarder.environment() if is_proxied(spec) else {}
    body: dict[str, Any] = {
        "Image": image.id,
        "Env": [f"{name}={value}" for name, value in {**proxies, **container.env}.items()],
        "Labels": dict(given),
        "Healthcheck": {"Test": ["NONE"]},
        "StopTimeout": 1,
        "HostConfig": {
            **hardened(spec.limits, json.dumps(oci_profile())),
            **chosen(spec),
            "NetworkMode": f"container:{network}",
            "ReadonlyRootfs": not container.writable_root,
            "Tmpfs": _writable(spec.limits, image.volumes),
            "LogConfig": LOG,
        },
    }
    if container.user is not None:
        body["User"] = container.user
    if container.command:
        body["Entrypoint"] = list(container.command)
    if container.args:
        body["Cmd"] = list(container.args)
    return body


def _writable(limits: Limits, volumes: Sequence[str]) -> dict[str, str]:
    """Whoever the image's user is. A volume of the image would lie on the host's disk, without a limit."""
    anyone = "mode=1777"
    return {
        **{path: tmpfs(limits.tmp, "exec", anyone) for path in volumes},
        "/run": tmpfs(_RUN_BYTES, "noexec", anyone),
        "/tmp": tmpfs(limits.tmp, "exec", anyone),  # noqa: S108 - the sandbox's own
        WORKSPACE: tmpfs(limits.workspace, "exec", anyone),
    }


class CustomStart:
    """One start of such a sandbox; whatever it leaves behind when it fails goes by the sandbox's id."""

    def __init__(
        self,
        engine: Engine,
        folders: Folders,
        spec: SandboxSpec,
        image: CustomImage,
        net: str,
        outside: Outside | None = None,
    ) -> None:
        """`net`: the image of holders."""
        self._outside = outside
        self._engine = engine
        self._folders = folders
        self._spec = spec
        self._image = image
        self._net = net

    async def run(self, sandbox: DockerSandbox, open_door: OpenDoor) -> None:
        """Raises `StartFailed`, `EngineError`, `BackendUnavailable`, `OSError`. The deadline is the caller's."""
        spec, tag = self._spec, self._folders.tag
        assert spec.container is not None  # or it would be another kind of start
        folder = await in_thread(self._folders.make, sandbox.record, None)
        network, given = holder_name(tag, spec.id), labels(tag, spec)
        held = holder(spec, self._net, folder, given)
        await self._start(network, holding(held, self._outside) if self._outside else held)
        await listening(sandbox)
        await in_thread(self._folders.seal, spec.id)
        await open_door(sandbox)  # before the first instruction that could ask for it
        await self._start(container_name(tag, spec.id), custom(spec, spec.container, self._image, network, given))

    async def _start(self, name: str, body: Any) -> None:
        await self._engine.call(lambda client: client.create_container_from_config(body, name))
        await self._engine.call(lambda client: client.start(name))


def whole_state(parts: Sequence[Mapping[str, Any]]) -> str:
    """Of the containers that a sandbox is made of, as the engine lists them: `running` when they all are."""
    mains = [part for part in parts if not any(name.endswith(HOLDER_SUFFIX) for name in part["Names"])]
    if not mains:
        return "missing"
    shares = str((mains[0].get("HostConfig") or {}).get("NetworkMode", "")).startswith("container:")
    if shares and len(parts) == len(mains):
        return "missing"
    return next((str(part["State"]) for part in parts if part["State"] != "running"), "running")


# --- images


async def fetched(engine: Engine, container: ContainerSpec, registry: Registry | None, say: Say) -> CustomImage:
    """An image that the engine has is taken as it is: a new version has a new tag. Raises `PrepareFailed`."""
    name = container.image
    try:
        facts = await _facts(engine, name)
        if facts is None:
            say(f"fetching the image {name}")
            await pull(engine, name, registry, anonymous=True)
            facts = await _facts(engine, name)
    except EngineError as error:
        raise PrepareFailed(f"the image {name} cannot be used: {error}") from error
    except BackendUnavailable as error:
        raise PrepareFailed(f"the image {name} cannot be had: {error}") from error
    if facts is None:
        raise PrepareFailed(f"the image {name} was fetched, and is not there: was it removed?")
    config = facts.get("Config") or {}
    return CustomImage(str(facts["Id"]), str(config.get("User") or ""), tuple(config.get("Volumes") or ()))


def described(container: ContainerSpec, created_at: float) -> RuntimeMetadata:
    return RuntimeMetadata("any", container.image, (), created_at, "none", "")


async def _facts(engine: Engine, name: str) -> Mapping[str, Any] | None:
    try:
        facts: Mapping[str, Any] = await engine.call(lambda client: client.inspect_image(name))
    except EngineError as error:
        if error.status == _NOT_FOUND:
            return None
        raise
    return facts
