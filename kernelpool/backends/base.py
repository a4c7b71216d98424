"""What a backend is: it makes sandboxes, finds those of an earlier gateway again, and says what it can promise."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self, runtime_checkable

from kernelpool.backends.container import ContainerSpec, Registry
from kernelpool.egress.policy import NOTHING, EgressPolicy
from kernelpool.models import AgentConfig, Limits
from kernelpool.runtimes import Runtime


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """Where an agent listens: a socket file that only the gateway may open."""

    path: str


@dataclass(frozen=True, slots=True)
class RelayedAddress(UnixAddress):
    """One of the gateway's own, that leads to an agent by way of something else."""

    is_away: Callable[[], Awaitable[bool]]
    """Whether that is not there, so that who does not answer may be well. Takes seconds at most to find out."""


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
    egress: EgressPolicy = NOTHING
    """What it may reach for as long as it lives, whatever the pool says later."""
    oci_runtime: str | None = None
    """What a container engine runs it with, such as `runsc`; None is the engine's default."""
    gpus: int | Literal["all"] | None = None
    container: ContainerSpec | None = None
    """A custom container: nothing of ours is in it, `runtime` and `agent` mean nothing."""


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
    def egress(self) -> EgressPolicy:
        """What it was made with, and what holds for it until its end."""

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

    async def check(self, spec: SandboxSpec) -> Sequence[Finding]:
        """Starts a throw-away sandbox like those of `spec`, and compares what an attacker sees in it with what was
        promised. Raises `InvalidRequest` for a setting that this backend does not have."""

    async def prepare(self, runtime: Runtime, say: Say) -> RuntimeMetadata:
        """Makes the runtime's file system (tree or image) if it is not there yet; may take minutes the first time."""

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Starts a sandbox; its agent may not answer yet. Raises `StartFailed`, leaving nothing behind, or
        `BackendUnavailable` while what makes sandboxes is away; what it has by then goes when it is back."""

    async def adopt(self) -> Sequence[Sandbox]:
        """The living sandboxes that an earlier gateway made; traces of dead ones are removed on the way."""


@runtime_checkable
class ContainerBackend(Protocol):
    """What a `Backend` has besides if it can make sandboxes of `spec.container`."""

    async def prepare_container(self, container: ContainerSpec, registry: Registry | None, say: Say) -> RuntimeMetadata:
        """Fetches the image if it is not there. Raises `PrepareFailed`, saying why it is not to be had."""
