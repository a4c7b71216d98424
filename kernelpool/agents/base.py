"""What the gateway can ask of an agent, whatever carries the question."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from kernelpool.backends.base import Sandbox
from kernelpool.errors import AgentFault, SandboxLost
from kernelpool.models import Activation, AgentStatus, Event, ExecuteRequest, Execution, FileInfo, WorkspacePath

log = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0
TRIES = 3
"""For a session: its variables are worth some patience. A ready sandbox gets one: another is as good."""
PAUSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class FileContent:
    """A download under way: `stop - start` bytes follow in `chunks`."""

    info: FileInfo
    start: int
    stop: int
    chunks: AsyncIterator[bytes]


class Agent(Protocol):
    """One sandbox's agent, as the gateway sees it.

    Every method may raise `SandboxLost` (no answer within the silence limit, connection refused or cut), `AgentFault`
    (an answer that the contract does not allow) and `BackendUnavailable` (the gateway has no means to ask). What else
    a method raises, it says; a hostile agent cannot make it raise more. Waits are bounded, all but those for
    the end of an execution, which the caller bounds.
    """

    async def wait_ready(self, timeout: float) -> None:
        """Until the kernel has answered and is warm. Raises `StartFailed` after `timeout` seconds or when the agent
        says that its kernel does not come up."""

    async def status(self) -> AgentStatus: ...

    async def activate(self, activation: Activation) -> None:
        """Once in an agent's life. Raises `Conflict` the second time."""

    async def execute(self, request: ExecuteRequest) -> Execution:
        """Runs it and waits for the end; the same id attaches to the same execution. Cancelling the caller only stops
        the waiting: a gateway that dies must not stop what runs. Raises `ExecutionQueueFull`."""

    async def submit(self, request: ExecuteRequest) -> Execution:
        """Queues it and returns a look at it at once. Idempotent by id. Raises `ExecutionQueueFull`."""

    def events(self, id: str, after: int = -1) -> AsyncIterator[Event | None]:
        """The execution's events with seq > after, as they happen, the last being `done`; None is a keep-alive.
        Raises `ExecutionNotFound`."""

    async def execution(self, id: str) -> Execution:
        """Raises `ExecutionNotFound`."""

    async def cancel(self, id: str) -> Execution:
        """Interrupts it when it runs, unqueues it when it waits, and waits for its end. Raises `ExecutionNotFound`."""

    async def list_files(self, path: WorkspacePath, *, recursive: bool = False) -> Sequence[FileInfo]:
        """Raises `FileNotFound`, `InvalidRequest` (not a directory)."""

    async def file_info(self, path: WorkspacePath) -> FileInfo:
        """Raises `FileNotFound`."""

    def read_file(
        self, path: WorkspacePath, start: int | None = None, stop: int | None = None
    ) -> AbstractAsyncContextManager[FileContent]:
        """Bytes start..stop, stop exclusive; a negative start counts from the end; None means from/to the end.
        Raises `FileNotFound`, `InvalidRequest` for what is no regular file, `RangeNotSatisfiable`."""

    async def write_file(self, path: WorkspacePath, chunks: AsyncIterator[bytes]) -> FileInfo:
        """Into a temporary name, then renamed; makes parent directories. Raises `WorkspaceFull`, `InvalidRequest`."""

    async def delete_file(self, path: WorkspacePath) -> None:
        """A file, or a directory with all in it. Raises `FileNotFound`."""

    async def aclose(self) -> None:
        """Closes the connections; the agent lives on."""


Connect = Callable[[Sandbox], Agent]


async def pulse(agent: Agent, tries: int = TRIES) -> AgentStatus | None:
    """What the agent says of itself; None when it does not answer, or not as an agent does.
    Raises `BackendUnavailable` when it is the gateway that cannot ask."""
    for attempt in range(tries):
        if attempt:
            await asyncio.sleep(PAUSE_SECONDS)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await agent.status()
        except (SandboxLost, AgentFault, TimeoutError) as error:
            log.debug("agent did not answer", extra={"attempt": attempt, "error": str(error)})
    return None
