"""Gateway: the dozen things that a client can ask for, whatever the surface. (interface; being implemented)"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from kernelpool.agents import FileContent
from kernelpool.backends.base import RuntimeMetadata
from kernelpool.models import Event, ExecuteRequest, Execution, FileInfo, WorkspacePath


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. Identifiers belong to a tenant; one tenant until issue-level auth grows."""

    name: str
    tenant: str = "default"


@dataclass(frozen=True, slots=True)
class SessionInfo:
    identifier: str
    etag: str
    created_at: float
    last_accessed_at: float
    expires_at: float
    sandbox: str


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """A pool's numbers now, and the settings that surfaces need."""

    name: str
    runtime: str
    language: str
    ready: int
    starting: int
    sessions: int
    max_sessions: int
    default_timeout: float
    max_timeout: float
    max_upload: int
    output_streams_max_length: int


class Session(Protocol):
    """A live session in a caller's hand; the hold keeps its cooldown from running out."""

    @property
    def is_new(self) -> bool:
        """Allocated by this very request."""

    @property
    def info(self) -> SessionInfo: ...

    @property
    def allocation_seconds(self) -> float: ...

    async def execute(self, request: ExecuteRequest) -> Execution:
        """Runs it and waits for the end. Cancelling the caller cancels the execution. The same id never runs twice:
        a second call with it waits for, or answers with, the same execution."""

    async def submit(self, request: ExecuteRequest) -> Execution:
        """Queues it and returns at once; it runs on whoever leaves."""

    def events(self, request_or_id: ExecuteRequest | str, after: int = -1) -> AsyncIterator[Event | None]:
        """Submits a request (or attaches to the id of one) and yields its events with seq > after, the last being
        `done`; yields None as a keep-alive at least every 10 seconds."""

    async def execution(self, id: str) -> Execution:
        """Raises `ExecutionNotFound`."""

    async def cancel(self, id: str) -> Execution:
        """Interrupts it when it runs, takes it out of the queue when it waits. Raises `ExecutionNotFound`."""

    async def list_files(self, path: WorkspacePath, *, recursive: bool = False) -> Sequence[FileInfo]:
        """Raises `FileNotFound`."""

    async def file_info(self, path: WorkspacePath) -> FileInfo:
        """Raises `FileNotFound`."""

    def read_file(
        self, path: WorkspacePath, start: int | None = None, stop: int | None = None
    ) -> AbstractAsyncContextManager[FileContent]:
        """Bytes start..stop (exclusive; a negative start counts from the end) as a stream with back-pressure.
        Raises `FileNotFound`, `InvalidRequest` for what is no regular file, `RangeNotSatisfiable`."""

    async def write_file(self, path: WorkspacePath, chunks: AsyncIterator[bytes]) -> FileInfo:
        """Streams into a temporary name, then renames. Raises `WorkspaceFull`, `PayloadTooLarge`."""

    async def delete_file(self, path: WorkspacePath) -> None:
        """A file, or a directory with all that is in it. Raises `FileNotFound`."""


class Gateway(Protocol):
    def pool(self, principal: Principal, name: str) -> PoolInfo:
        """Raises `PoolNotFound`."""

    def pools(self, principal: Principal) -> Sequence[PoolInfo]: ...

    def use(self, principal: Principal, pool: str, identifier: str) -> AbstractAsyncContextManager[Session]:
        """The identifier's session, allocated from the pool when there is none yet.
        Raises `PoolNotFound`, `InvalidIdentifier`, `SessionLimitReached`, `AllocationTimeout`, `GatewayDraining`."""

    def find(self, principal: Principal, pool: str, identifier: str) -> AbstractAsyncContextManager[Session]:
        """As `use`, but raises `SessionNotFound` instead of allocating."""

    async def list_sessions(self, principal: Principal, pool: str) -> Sequence[SessionInfo]:
        """The principal's own, oldest first."""

    async def stop_session(self, principal: Principal, pool: str, identifier: str) -> None:
        """Destroys it now, whatever runs. Raises `SessionNotFound`."""

    async def metadata(self, principal: Principal, pool: str) -> RuntimeMetadata: ...
