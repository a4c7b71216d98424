"""One start of a Docker sandbox, step by step.

The order is the promise: the record before anything that it tells of; the agent's secret lies in the sandbox's
directory until the agent has read it; the directory is closed before anybody can reach the agent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernelpool.backends.base import SandboxSpec
from kernelpool.backends.bwrap_argv import PROGRAM, PYTHON
from kernelpool.backends.docker.container import LISTEN_AND_CONFIG, View, container
from kernelpool.backends.docker.engine import Engine
from kernelpool.backends.docker.folders import Folders, Record
from kernelpool.backends.docker.image import Image
from kernelpool.backends.docker.labels import container_name, holder_name, labels
from kernelpool.backends.docker.network import holder
from kernelpool.backends.docker.outside import READY_SOCKET, Outside, holding, sharing
from kernelpool.backends.docker.sandbox import DockerSandbox
from kernelpool.backends.oci_seccomp import oci_profile
from kernelpool.backends.tree.steps import in_thread
from kernelpool.errors import StartFailed

_PAUSE: Final = 0.02


@dataclass(frozen=True, slots=True)
class Shown:
    """A runtime's image, and the environment variables that it sets."""

    image: Image
    variables: Sequence[str]


def _nothing(folder: Path) -> None:
    pass


OpenDoor = Callable[[DockerSandbox], Awaitable[None]]
"""Makes a sandbox's way to the egress proxy, if it has one. Raises `OSError`."""


@dataclass(frozen=True, slots=True)
class Program:
    """What runs in a sandbox: the image's agent, or the doctor's probe in its place."""

    argv: Sequence[str] = (PYTHON, "-I", PROGRAM)
    """What comes after it says where it listens, and where its configuration is."""
    install: Callable[[Path], object] = _nothing
    """Puts into the sandbox's directory what `argv` needs there."""


AGENT: Final = Program()


class Start:
    """One start of a sandbox; whatever it leaves behind when it fails goes by the sandbox's id."""

    def __init__(
        self,
        engine: Engine,
        folders: Folders,
        spec: SandboxSpec,
        shown: Shown,
        program: Program,
        net: str = "",
        outside: Outside | None = None,
    ) -> None:
        """`net`: the image of holders; needed with `outside`."""
        self._net = net
        self._outside = outside
        self._engine = engine
        self._folders = folders
        self._spec = spec
        self._shown = shown
        self._program = program

    async def run(self, sandbox: DockerSandbox, open_door: OpenDoor) -> None:
        """Raises `StartFailed`, `EngineError`, `BackendUnavailable`, `OSError`. The deadline is the caller's."""
        folder = await in_thread(self._lay_out, sandbox.record)
        if self._outside is not None:
            await self._hold(folder, self._outside)
            await listening(sandbox, folder / READY_SOCKET)
        await self._create(folder)
        await self._run()
        await listening(sandbox)
        await self._seal()
        await open_door(sandbox)

    def _lay_out(self, record: Record) -> Path:
        folder = self._folders.make(record, self._spec.agent)
        self._program.install(folder)
        return folder

    async def _hold(self, folder: Path, outside: Outside) -> None:
        name = holder_name(self._folders.tag, self._spec.id)
        body = holding(holder(self._spec, self._net, folder, labels(self._folders.tag, self._spec)), outside)
        await self._engine.call(lambda client: client.create_container_from_config(body, name))
        await self._engine.call(lambda client: client.start(name))

    async def _create(self, folder: Path) -> None:
        view = View(
            image=self._shown.image.id,
            unset=self._shown.variables,
            folder=folder,
            command=(*self._program.argv, *LISTEN_AND_CONFIG),
            labels=labels(self._folders.tag, self._spec),
            seccomp=json.dumps(oci_profile()),
        )
        body = container(self._spec, view)
        if self._outside is not None:
            body = sharing(body, holder_name(self._folders.tag, self._spec.id))
        await self._engine.call(lambda client: client.create_container_from_config(body, self._name))

    async def _run(self) -> None:
        await self._engine.call(lambda client: client.start(self._name))

    async def _seal(self) -> None:
        await in_thread(self._folders.seal, self._spec.id)

    @property
    def _name(self) -> str:
        return container_name(self._folders.tag, self._spec.id)


async def listening(sandbox: DockerSandbox, path: Path | None = None) -> None:
    """Until the agent, or who is at `path`, accepts connections, or the sandbox is dead. Nothing else tells of that
    moment."""
    while not sandbox.is_dead:
        try:
            _, writer = await asyncio.open_unix_connection(path or sandbox.address.path)
        except OSError:
            await asyncio.sleep(_PAUSE)
        else:
            writer.close()
            return
    raise await ended(sandbox)


async def ended(sandbox: DockerSandbox) -> StartFailed:
    """Of one that is dead, or about to be."""
    failure = StartFailed("a sandbox ended while it started")
    failure.add_note(await sandbox.wait_dead())
    return failure
