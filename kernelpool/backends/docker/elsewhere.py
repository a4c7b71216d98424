"""One start of a sandbox on an engine that shares no directory with the gateway, step by step.

The same container as `start.py` makes, without its directory: the agent gets its configuration, with the secret, by the
container's input, which ends with that, and listens on loopback. Nothing but a line leads there; see `lines.py`.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Final

from kernelpool.backends.base import SandboxSpec
from kernelpool.backends.docker.container import LISTEN_AND_CONFIG_ELSEWHERE, View, container
from kernelpool.backends.docker.engine import Engine
from kernelpool.backends.docker.folders import Folders
from kernelpool.backends.docker.labels import container_name, labels
from kernelpool.backends.docker.lines import Lines
from kernelpool.backends.docker.sandbox import DockerSandbox
from kernelpool.backends.docker.settings import DockerSettings
from kernelpool.backends.docker.start import Program, Shown, ended
from kernelpool.backends.oci_seccomp import oci_profile
from kernelpool.backends.tree.steps import in_thread
from kernelpool.errors import InvalidRequest, SandboxLost, StartFailed

_PAUSE: Final = 0.05


class StartElsewhere:
    """Whatever it leaves behind when it fails goes by the sandbox's id."""

    def __init__(
        self, engine: Engine, folders: Folders, lines: Lines, spec: SandboxSpec, shown: Shown, program: Program
    ) -> None:
        self._engine = engine
        self._folders = folders
        self._lines = lines
        self._spec = spec
        self._shown = shown
        self._program = program

    async def run(self, sandbox: DockerSandbox) -> None:
        """Raises `StartFailed`, `EngineError`, `BackendUnavailable`, `OSError`. The deadline is the caller's."""
        await in_thread(self._folders.make, sandbox.record, None)
        await self._create()
        await self._run()
        await self._answered(sandbox)
        await self._seal()

    async def _create(self) -> None:
        view = View(
            image=self._shown.image.id,
            unset=self._shown.variables,
            folder=None,
            command=(*self._program.argv, *LISTEN_AND_CONFIG_ELSEWHERE),
            labels=labels(self._folders.tag, self._spec),
            seccomp=json.dumps(oci_profile()),
        )
        body = container(self._spec, view)
        await self._engine.call(lambda client: client.create_container_from_config(body, self._name))

    async def _run(self) -> None:
        """The engine passes the configuration on, and keeps it nowhere."""
        stream = await self._engine.stream(f"/containers/{self._name}/attach?stream=1&stdin=1")
        try:
            await self._engine.call(lambda client: client.start(self._name))
            stream.writer.write(json.dumps(asdict(self._spec.agent)).encode())
            await stream.writer.drain()
            stream.writer.close()
            await stream.writer.wait_closed()
        finally:
            await stream.aclose()

    async def _answered(self, sandbox: DockerSandbox) -> None:
        """Until the agent accepts connections, or the sandbox is dead. Nothing else tells of that moment."""
        way = await self._lines.open(sandbox.id, self._name, self._folders.socket(sandbox.record))
        while not sandbox.is_dead:
            try:
                if await (await way.line()).is_answered():
                    return
            except (SandboxLost, OSError):
                pass  # dead, which is heard of soon
            await asyncio.sleep(_PAUSE)
        raise await ended(sandbox)

    async def _seal(self) -> None:
        """What is sealed is complete, and adopted."""
        await in_thread(self._folders.seal, self._spec.id)

    @property
    def _name(self) -> str:
        return container_name(self._folders.tag, self._spec.id)


def is_elsewhere(settings: DockerSettings) -> bool:
    """Whether the engine shares no directory with the gateway. Raises `StartFailed` for one that no line leads to."""
    if settings.host.startswith("unix://"):
        return False
    if not settings.host.startswith(("tcp://", "http://", "https://")):
        raise StartFailed(f"docker.host {settings.host} is neither unix:// nor tcp://")
    return settings.run_dir is None


_HERE: Final = "only on an engine that shares docker.run_dir with the gateway, and docker.host names one elsewhere"


def refuse_elsewhere(spec: SandboxSpec) -> None:
    """What an engine elsewhere has not. Raises `InvalidRequest`."""
    if spec.container is not None:
        refuse_containers()
    match spec.egress.mode:
        case "outside":
            raise InvalidRequest(f"egress = true is to be had {_HERE}: only there are the host's own addresses known")
        case "domains":
            raise InvalidRequest(f"egress to a list of domains is to be had {_HERE}: the proxy runs beside the gateway")


def refuse_containers() -> None:
    raise InvalidRequest(f"custom containers are to be had {_HERE}")
