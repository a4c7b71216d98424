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

log = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0
TRIES = 3
"""For a session: its variables are worth some patience. A ready sandbox gets one: another is as good."""
PAUSE_SECONDS = 5.0
MAX_LISTED = 1000
"""Executions in one answer."""


@dataclass(frozen=True, slots=True)
class FileContent:
    """A download under way: `stop - start` bytes follow in `chunks`."""

    info: FileInfo
    start: int
    stop: int
    chunks: AsyncIterator[bytes]


class Channels(Protocol):
    """One Jupyter client's connection to a kernel, frames in the framing `protocol.framing.V1` both ways.

    Iterating waits for the next frame. It ends when a newer connection has taken the place of this one; it raises
    `SandboxLost` when the sandbox goes, `AgentFault` for a frame that is none. The kernel's death ends nothing: its
    clients are told, and hear from the next one.
    """

    async def send(self, frame: bytes) -> None:
        """Waits while the sandbox does not read. A frame that it cannot make sense of is dropped there."""

    async def confirm(self, count: int) -> None:
        """The client has got the first `count` frames of this connection, by the answer to a ping, say. What was not
        confirmed is told again to the next connection with this session id."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...


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

    def executions(
        self, after: int = 0, *, limit: int = MAX_LISTED, outputs: bool = False
    ) -> AsyncIterator[KeptExecution | int]:
        """Those of the session with number > after that it still keeps, whoever submitted them, oldest first; at last
        how many there ever were. Without `outputs` theirs are left empty. One is in memory at a time: the caller says
        how many bytes of them are enough, by leaving."""

    async def cancel(self, id: str) -> Execution:
        """Interrupts it when it runs, unqueues it when it waits, and waits for its end. Raises `ExecutionNotFound`."""

    async def kernel(self) -> KernelState:
        """How the kernel is, and who is connected."""

    async def interrupt(self) -> None:
        """Whatever the kernel runs, whoever asked for it, is interrupted. Nothing when it runs nothing."""

    async def restart(self) -> KernelState:
        """Ends the kernel and returns when a fresh one is ready. Variables are lost, files stay; what runs ends, what
        waited over REST runs on the fresh one. Raises `StartFailed` when none comes up."""

    def channels(self, session_id: str = "", last_msg_id: str | None = None) -> AbstractAsyncContextManager[Channels]:
        """Connects a Jupyter client. A later connection with the same `session_id` takes the place of the earlier one
        and is told what that one missed, in order: what comes after the message `last_msg_id`, if the client names the
        last one that it saw, else what was not confirmed. Without a `session_id`, and with a new one, it hears what
        happens from now on. Raises `InvalidRequest` (an impossible id) and `TooManyConnections`.

        A connection is no activity of the session, messages of its client are: whoever holds the session for as long
        as a connection is open keeps forgotten tabs alive."""

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
