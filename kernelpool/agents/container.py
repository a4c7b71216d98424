"""What the gateway knows of a custom container, in the shape of an agent's client. Nothing of ours runs in there.

What an agent would remember, the gateway has to: whether the container is somebody's already says the journal, through
`is_used`; how busy it is, the requests that are being forwarded; how it is, its probes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import PurePath
from typing import Final, NoReturn

from kernelpool.agents.base import MAX_LISTED, Channels, FileContent
from kernelpool.agents.forward import Answer, Forward, forwarded
from kernelpool.backends.base import Address, TcpAddress, UnixAddress
from kernelpool.backends.container import KNOCK_SOCKET, ContainerSpec, HttpCheck, Probe
from kernelpool.errors import Conflict, ContainerBusy, ContainerFault, StartFailed
from kernelpool.models import (
    Activation,
    AgentStatus,
    Event,
    ExecuteRequest,
    Execution,
    FileInfo,
    KeptExecution,
    KernelState,
    WorkspacePath,
)

LISTENS: Final = Probe(timeout=1.0)
"""What takes the place of a startup probe that nobody wanted."""
LISTEN_INTERVAL: Final = 0.1
MOST_FORWARDS: Final = 200
"""Requests that one container is handed at a time, tunnels included: fewer than its holder has places."""


class ContainerAgent:
    """`Agent` of a sandbox that has none. Executions and files are refused with `Conflict`; see `forward` instead."""

    def __init__(self, address: Address, container: ContainerSpec, *, is_used: bool = False) -> None:
        self._address = address
        self._container = container
        self._loop = asyncio.get_running_loop()
        # The mutable state: how far it is, what is being forwarded, and since when nothing is.
        self._is_ready = False
        self._is_used = is_used
        self._forwards = 0
        self._idle_since = self._loop.time()
        self.notice: str | None = None
        """What the first answer is to tell: why the session before this one ended."""

    def __repr__(self) -> str:
        return f"<ContainerAgent {self._container.image} [{self._forwards} forwards]>"

    async def wait_ready(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._wait_listening()
                if self._container.startup is not None:
                    await self._wait_started(self._container.startup)
        except TimeoutError:
            raise StartFailed(f"the container did not get ready within {timeout:g} s") from None
        self._is_ready = True

    async def status(self) -> AgentStatus:
        if not self._is_ready and not self._is_used:
            # Of an earlier gateway, which may have been killed while this one was starting.
            self._is_ready = await self.probe(self._container.startup or LISTENS) is None
        idle = 0.0 if self._forwards else self._loop.time() - self._idle_since
        return AgentStatus(
            ready=self._is_ready or self._is_used,
            activated=self._is_used,
            running=self._forwards,
            queued=0,
            idle_seconds=idle,
        )

    async def activate(self, activation: Activation) -> None:
        if self._is_used:
            raise Conflict("the sandbox is activated already")
        self._is_used = True
        self.notice = activation.notice

    async def probe(self, probe: Probe) -> str | None:
        """None when it is well; else what is wrong, in a few words."""
        try:
            async with asyncio.timeout(probe.timeout):
                if probe.http is None:
                    return None if await self._listens() else f"port {self._container.target_port} takes no connections"
                return await self._ask(probe.http)
        except TimeoutError:
            return f"no answer within {probe.timeout:g} s"
        except ContainerFault as error:
            return error.message

    @asynccontextmanager
    async def forward(self, request: Forward) -> AsyncIterator[Answer]:
        """Raises `ContainerBusy`, and `ContainerFault`, also while the answer is read; the sandbox may be lost then, or
        may not."""
        if self._forwards >= MOST_FORWARDS:
            raise ContainerBusy(f"{MOST_FORWARDS} requests of this session are under way already")
        self._forwards += 1
        try:
            async with self._forwarded(request) as answer:
                yield answer
        finally:
            self._forwards -= 1
            self._idle_since = self._loop.time()

    async def aclose(self) -> None:
        """There is nothing to close: each connection belongs to its request."""

    def _forwarded(self, request: Forward) -> AbstractAsyncContextManager[Answer]:
        return forwarded(self._address, self._container.target_port, self._container.silence, request)

    # --- probes

    async def _wait_listening(self) -> None:
        """The first look of a startup probe would fail if it came sooner, and the next one is a period away."""
        while not await self._listens():  # noqa: ASYNC110 - who starts has nobody to tell: looking is the only way
            await asyncio.sleep(LISTEN_INTERVAL)

    async def _wait_started(self, probe: Probe) -> None:
        await asyncio.sleep(probe.initial_delay)
        for failures in range(1, probe.failure_threshold + 1):
            if (why := await self.probe(probe)) is None:
                return
            if failures == probe.failure_threshold:
                raise StartFailed(f"the container failed its startup probe {failures} times: {why}")
            await asyncio.sleep(probe.period)

    async def _ask(self, check: HttpCheck) -> str | None:
        headers = (("User-Agent", "kernelpool-probe"), *check.headers)
        async with self._forwarded(Forward("GET", check.path, headers)) as answer:
            return None if 200 <= answer.status < 400 else f"status {answer.status}"

    async def _listens(self) -> bool:
        """A byte comes from who knows; of a container that is reached directly, the connection is enough."""
        try:
            match self._address:
                case TcpAddress(host, port):
                    _, writer = await asyncio.open_connection(host, port)
                    writer.transport.abort()
                    return True
                case UnixAddress(path):
                    reader, writer = await asyncio.open_unix_connection(str(PurePath(path).with_name(KNOCK_SOCKET)))
            try:
                return bool(await reader.read(1))
            finally:
                writer.transport.abort()
        except OSError:
            return False

    # --- what only a kernel has

    async def execute(self, request: ExecuteRequest) -> Execution:
        self._refuse("executions")

    async def submit(self, request: ExecuteRequest) -> Execution:
        self._refuse("executions")

    async def events(self, id: str, after: int = -1) -> AsyncIterator[Event | None]:
        self._refuse("executions")
        yield

    async def execution(self, id: str) -> Execution:
        self._refuse("executions")

    async def executions(
        self, after: int = 0, *, limit: int = MAX_LISTED, outputs: bool = False
    ) -> AsyncIterator[KeptExecution | int]:
        self._refuse("executions")
        yield

    async def cancel(self, id: str) -> Execution:
        self._refuse("executions")

    async def kernel(self) -> KernelState:
        self._refuse("kernel")

    async def interrupt(self) -> None:
        self._refuse("kernel")

    async def restart(self) -> KernelState:
        self._refuse("kernel")

    @asynccontextmanager
    async def channels(self, session_id: str = "", last_msg_id: str | None = None) -> AsyncIterator[Channels]:
        self._refuse("kernel")
        yield

    async def list_files(self, path: WorkspacePath, *, recursive: bool = False) -> Sequence[FileInfo]:
        self._refuse("a file API")

    async def file_info(self, path: WorkspacePath) -> FileInfo:
        self._refuse("a file API")

    @asynccontextmanager
    async def read_file(
        self, path: WorkspacePath, start: int | None = None, stop: int | None = None
    ) -> AsyncIterator[FileContent]:
        self._refuse("a file API")
        yield

    async def write_file(self, path: WorkspacePath, chunks: AsyncIterator[bytes]) -> FileInfo:
        self._refuse("a file API")

    async def delete_file(self, path: WorkspacePath) -> None:
        self._refuse("a file API")

    def _refuse(self, what: str) -> NoReturn:
        raise Conflict(
            f"This pool runs custom containers ({self._container.image}), which have no {what} of the gateway."
        )
