"""What a backend is: it makes sandboxes, finds those of an earlier gateway again, and says what it can promise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from kernelpool.models import AgentConfig, Limits
from kernelpool.runtimes import Runtime


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """Where an agent listens: a socket file that only the gateway may open."""

    path: str


@dataclass(frozen=True, slots=True)
class TcpAddress:
    host: str
    port: int


Address = UnixAddress | TcpAddress


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """All that it takes to make one sandbox."""

    id: str
    """Chosen by the pool: 12 lower-case hex digits, unique for ever."""
    pool: str
    fingerprint: str
    """Of the pool's settings: an adopted ready sandbox with another one is discarded."""
    runtime: Runtime
    limits: Limits
    agent: AgentConfig
    egress: bool = False


class Sandbox(Protocol):
    """One isolated container with an agent in it. Single-use."""

    @property
    def id(self) -> str: ...

    @property
    def pool(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def created_at(self) -> float:
        """Seconds since the epoch."""

    @property
    def address(self) -> Address: ...

    @property
    def secret(self) -> str:
        """The agent's bearer token."""

    async def wait_dead(self) -> str:
        """Returns once nothing runs in it any more; says why in a few words, such as "out of memory".

        Any number of waiters; immediate when it is dead already. Death is noticed by an event, not by polling.
        """

    async def destroy(self) -> None:
        """Kills all that runs in it and removes every trace: processes, mounts, sockets, directories, cgroups.

        Idempotent. Returns when it is done, within seconds, whatever the code inside does.
        """


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor: a promise, whether it holds here, and how to mend it when it does not."""

    name: str
    holds: bool
    seen: str
    wanted: str
    remedy: str = ""
    essential: bool = True
    """Without it the backend does not isolate, and `serve` refuses to use it."""


@dataclass(frozen=True, slots=True)
class Package:
    name: str
    version: str


@dataclass(frozen=True, slots=True)
class RuntimeMetadata:
    """What `GET /metadata` tells of a prepared runtime."""

    language: str
    language_version: str
    packages: tuple[Package, ...]
    created_at: float
    kernel_name: str
    kernel_version: str


Say = Callable[[str], None]
"""Tells the user of progress, a short line each."""


class Backend(Protocol):
    """Makes sandboxes. An async context manager: leaving it frees what the backend itself holds,
    but kills no sandbox: they live on for the next gateway."""

    @property
    def name(self) -> str: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def check(self, runtime: Runtime, limits: Limits) -> Sequence[Finding]:
        """Starts a throw-away sandbox and compares what an attacker sees in it with what was promised."""

    async def prepare(self, runtime: Runtime, say: Say) -> RuntimeMetadata:
        """Makes the runtime's file system (tree or image) if it is not there yet; may take minutes the first time."""

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Starts a sandbox; its agent may not answer yet. Raises `StartFailed`, leaving nothing behind."""

    async def adopt(self) -> Sequence[Sandbox]:
        """The living sandboxes that an earlier gateway made; traces of dead ones are removed on the way."""
