"""PoolSettings: what an operator says of a pool, and what follows from it for each sandbox."""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kernelpool import __version__
from kernelpool.backends.base import SandboxSpec
from kernelpool.egress.doors import SOCKET_INSIDE
from kernelpool.egress.policy import EgressPolicy
from kernelpool.models import AgentConfig, Limits
from kernelpool.pool.container import CONTAINER, ContainerSettings
from kernelpool.pool.plan import Sizes
from kernelpool.runtimes import Runtime

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_size(value: object) -> object:
    """'1Gi', '512MiB', '1.5G' or a number of bytes → bytes. What is no size is left for pydantic to refuse."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([kmgt]i?)?b?\s*", value, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{value!r} is no size; write for example 512Mi or 1Gi")
    return round(float(match[1]) * _UNITS[(match[2] or "").lower()])


def _written_egress(value: object) -> object:
    """'a.org, *.b.org', as an environment variable has a list; what reads as true or false is left to be that."""
    if not isinstance(value, str) or "." not in value:
        return value
    return [item.strip() for item in value.split(",") if item.strip()]


def _normal_egress(value: bool | list[str]) -> bool | list[str]:
    return EgressPolicy.of(value).setting


Egress = Annotated[bool | list[str], BeforeValidator(_written_egress), AfterValidator(_normal_egress)]
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0, le=1 << 50)]
Seconds = Annotated[float, Field(gt=0, le=10 * 365 * 86400, allow_inf_nan=False)]

# Azure's limits.
TagName = Annotated[str, Field(max_length=512)]
TagValue = Annotated[str, Field(max_length=256)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LimitSettings(_Settings):
    """What one session may use."""

    memory: Size = 1 << 30
    """Memory of all processes of a session together, page cache included; past it the kernel is killed."""
    cpus: float = Field(1.0, gt=0, le=1024)
    """Cores that a session may use at the same time."""
    pids: int = Field(256, ge=16, le=1 << 20)
    """Processes and threads of a session."""
    workspace: Size = 512 << 20
    """Size of the session's files in /mnt/data."""
    tmp: Size = 128 << 20
    """Size of the session's /tmp."""
    open_files: int = Field(4096, ge=64, le=1 << 20)
    """Open files of one process."""

    def to_limits(self) -> Limits:
        return Limits(**self.model_dump())


class McpSettings(_Settings):
    """The MCP server of one pool."""

    enabled: bool = True
    """Serve MCP clients at `/pools/<name>/mcp`. Needs the extra `mcp`."""
    api_key: bool = True
    """Let the pool's MCP key in, which whoever manages the pool may fetch; else only the gateway's own tokens."""


class PoolSettings(_Settings):
    """Ready sandboxes of one runtime with one set of limits, and the sessions made of them."""

    name: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")
    """How URLs name the pool."""
    runtime: str = Field("python", max_length=64)
    """What runs in its sandboxes: a folder of kernels/; `container` with a container."""
    backend: str = Field("bubblewrap", max_length=64)
    """What makes its sandboxes."""

    ready: int = Field(2, ge=0, le=1000)
    """Sandboxes kept started for the next new sessions."""
    max_sessions: int = Field(10, ge=1, le=10_000)
    """Sandboxes that may exist at the same time, ready ones included; beyond it a new session is refused with 429."""
    cooldown: Seconds = 300.0
    """Seconds without activity after which a session is destroyed. Activity is a request, or code that runs."""
    idle_connected: Seconds = 3600.0
    """The same while a Jupyter client is connected: somebody reads what is in an open notebook, or has forgotten it.
    Never less than `cooldown`."""
    max_alive: Seconds = 86400.0
    """Seconds after which a session is destroyed whatever it does. It frees the place of a sandbox that claims to be
    busy for ever; it is a day, because work in use for hours is common and its variables are what people lose."""
    max_ready_age: Seconds = 3600.0
    """Seconds after which a ready sandbox that nobody took is replaced by a fresh one, one at a time."""
    allocation_timeout: Seconds = 30.0
    """Seconds that a new session waits for a sandbox when none is ready."""
    start_timeout: Seconds = 60.0
    """Seconds that a sandbox may take to get ready."""
    start_concurrency: int = Field(2, ge=1, le=64)
    """Sandboxes that start at the same time; more than cores only makes each of them later."""
    warmup: bool = True
    """Run the runtime's warm-up in a sandbox before anybody gets it: Python's loads pandas and matplotlib and draws a
    figure. Without it a sandbox is there sooner and smaller, and a session's first imports take their time."""
    lease: float = Field(600.0, ge=10, le=10 * 365 * 86400, allow_inf_nan=False)
    """Seconds without a word from a gateway after which a sandbox that nobody took ends itself."""

    limits: LimitSettings = LimitSettings()
    """What one session may use: memory, cpus, pids, workspace, tmp, open_files."""
    oci_runtime: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    """What the container engine runs its sandboxes with, by the engine's name for it: `runc`, `runsc` (gVisor), `kata`.
    Without one, the engine's default."""
    gpus: Annotated[int, Field(ge=1, le=64)] | Literal["all"] | None = None
    """GPUs that each sandbox gets from the container engine: a number, or `all`."""
    image: str | None = Field(None, min_length=1, max_length=512)
    """The container engine's image for its sandboxes: one that you have built FROM ours, with more in it. Without one,
    ours, which is built when it is not there."""
    egress: Egress = False
    """What sessions may reach: `false` is nothing, not even DNS; `true` the public internet, never this host, the
    gateway or private networks; a list such as `["pypi.org", "*.pythonhosted.org", "example.com:8443"]` these domains
    (without a port: 80 and 443), by a proxy that checks and logs each connection, and nothing else."""

    default_timeout: Seconds = 60.0
    """Seconds that an execution may run when the caller does not say."""
    max_timeout: Seconds = 220.0
    """Seconds that a caller may ask for."""
    queue_size: int = Field(16, ge=0, le=10_000)
    """Executions of one session that may wait behind the running one."""
    output_bytes: Size = Field(8 << 20, le=16 << 20)
    """Output kept of one execution, at most 16 MiB; past it head and tail stay, and the result says how much was
    dropped. For more there are files."""
    history_bytes: Size = 32 << 20
    """Output kept of all executions of a session, for those who poll; the oldest go first."""
    history_size: int = Field(1000, ge=1, le=100_000)
    """Executions of a session that can still be polled."""
    interrupt_grace: Seconds = 3.0
    """Seconds that interrupted code has to stop, before its kernel is restarted; first to begin, if it has not yet."""
    save_displayed_images: bool = True
    """Also write the images that code displays into the workspace."""
    output_streams_max_length: int = Field(4096, ge=0, le=64 << 20)
    """Bytes of stdout and of stderr in answers of the ACA surface, which cuts there; 0 does not cut."""
    max_upload: Size = 128 << 20
    """Size of one uploaded file."""

    container: ContainerSettings | None = None
    """Run an image of your own in the place of a kernel: image, target_port and more, as `[pools.<name>.container]`.
    The pool's `max_upload` limits the bodies that are forwarded to it; settings of executions mean nothing then."""

    mcp: McpSettings = McpSettings()
    """The pool's MCP server: enabled, api_key. A custom container has none of ours: its `/mcp` is its own."""

    location: str = Field("local", max_length=128)
    """Where it is, for whoever manages it in the words of Azure; it changes nothing."""
    tags: dict[TagName, TagValue] = Field(default_factory=dict, max_length=50)
    """Words for whoever manages it; they change nothing."""

    @model_validator(mode="before")
    @classmethod
    def _name_runtime(cls, values: Any) -> Any:
        """One with a container has the runtime of that name, unsaid."""
        if isinstance(values, dict) and values.get("container") is not None:
            return {"runtime": CONTAINER, **values}
        return values

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if (self.runtime == CONTAINER) != (self.container is not None):
            raise ValueError("the runtime 'container' and `container` go together: say both, or neither")
        if self.container is not None and self.image is not None:
            raise ValueError("image is that of a kernel's sandboxes; a container has container.image")
        if self.ready > self.max_sessions:
            raise ValueError(f"ready {self.ready} is more than max_sessions {self.max_sessions}")
        if self.default_timeout > self.max_timeout:
            raise ValueError(f"default_timeout {self.default_timeout:g} is more than max_timeout {self.max_timeout:g}")
        return self

    @property
    def session_cooldown(self) -> float:
        """Infinite where a session ends with its container."""
        ends_by_itself = self.container is not None and self.container.lifecycle == "on_container_exit"
        return math.inf if ends_by_itself else self.cooldown

    @property
    def connected_cooldown(self) -> float:
        return max(self.session_cooldown, self.idle_connected)

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.ready, self.max_sessions, self.start_concurrency, self.allocation_timeout, self.max_ready_age)

    @property
    def egress_policy(self) -> EgressPolicy:
        return EgressPolicy.of(self.egress)

    @property
    def longest_stop(self) -> float:
        """Seconds in which an execution that is asked to end has ended: interrupted, or its kernel restarted."""
        return 4 * self.interrupt_grace + self.start_timeout + 30

    @property
    def longest_wait(self) -> float:
        """Seconds in which the last of a full queue has ended."""
        return (self.queue_size + 1) * (self.max_timeout + self.longest_stop)


def sandbox_spec(settings: PoolSettings, runtime: Runtime) -> SandboxSpec:
    """The next sandbox of a pool, with an id and a secret that no other has."""
    spec = _nameless_spec(settings, runtime)
    agent = replace(spec.agent, secret=secrets.token_urlsafe(32))
    return replace(spec, id=secrets.token_hex(6), fingerprint=fingerprint(settings, runtime), agent=agent)


def fingerprint(settings: PoolSettings, runtime: Runtime) -> str:
    """Equal for two sandboxes that can stand in for each other: all that a sandbox is made from, but not how many of
    them, nor what is said to it later."""
    facts: dict[str, Any] = asdict(_nameless_spec(settings, runtime))
    # Where the folder lies does not matter; what is in it belongs to this version.
    del facts["runtime"]["folder"]
    text = json.dumps([__version__, settings.backend, facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _nameless_spec(settings: PoolSettings, runtime: Runtime) -> SandboxSpec:
    limits = settings.limits.to_limits()
    agent = AgentConfig(
        secret="",
        kernel_argv=tuple(word.replace("{memory}", str(limits.memory)) for word in runtime.argv),
        kernel_env=dict(runtime.env),
        kernel_transport=runtime.transport,
        warmup_code=runtime.warmup_code if settings.warmup else "",
        interrupt_mode=runtime.interrupt_mode,
        lease=settings.lease,
        processes=limits.pids,
        queue_size=settings.queue_size,
        output_bytes=settings.output_bytes,
        history_bytes=settings.history_bytes,
        history_size=settings.history_size,
        save_images=settings.save_displayed_images,
        interrupt_grace=settings.interrupt_grace,
        egress_socket=SOCKET_INSIDE if settings.egress_policy.mode == "domains" else "",
    )
    container = settings.container.to_spec() if settings.container else None
    runtime = replace(runtime, image=settings.image or "")
    return SandboxSpec(
        "",
        settings.name,
        "",
        runtime,
        limits,
        agent,
        settings.egress_policy,
        settings.oci_runtime,
        settings.gpus,
        container,
    )
