"""Value types that cross rooms: limits, executions, outputs, files. Plain data, importable inside the sandbox."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Self

from kernelpool.errors import InvalidFileName, InvalidPath, InvalidRequest

WORKSPACE = "/mnt/data"
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4000


class ExecutionState(StrEnum):
    """The life of an execution: queued → running → one of the last three, for good."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        return self not in (ExecutionState.QUEUED, ExecutionState.RUNNING)


class EndCause(StrEnum):
    """Why an execution ended."""

    COMPLETED = "completed"  # the code ran to its end
    RAISED = "raised"  # the code raised
    TIMED_OUT = "timed_out"
    CANCELED = "canceled"  # by a caller, or because the only caller left
    KERNEL_DIED = "kernel_died"
    KERNEL_RESTARTED = "kernel_restarted"  # somebody restarted the kernel meanwhile


class SessionEnd(StrEnum):
    """Why a session ended, in a word; the sentence for its caller says more."""

    STOPPED = "stopped"  # by its caller, or with all others
    UNUSED = "unused"  # for its cooldown
    TOO_OLD = "too_old"
    DIED = "died"  # its sandbox did
    LOST = "lost"  # its sandbox does not answer


@dataclass(frozen=True, slots=True)
class StreamOutput:
    """Text that the code wrote. Neighbouring writes to one stream are one output."""

    name: Literal["stdout", "stderr"]
    text: str
    type: Literal["stream"] = "stream"


@dataclass(frozen=True, slots=True)
class DisplayOutput:
    """A MIME bundle. Binary types are base64 text; `files` are the workspace paths that images were written to."""

    data: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    display_id: str | None = None
    files: tuple[str, ...] = ()
    type: Literal["display_data"] = "display_data"


@dataclass(frozen=True, slots=True)
class ResultOutput:
    """The value of the last expression, as a MIME bundle."""

    data: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    execution_count: int | None = None
    files: tuple[str, ...] = ()
    type: Literal["execute_result"] = "execute_result"


@dataclass(frozen=True, slots=True)
class ErrorOutput:
    """What the code raised. `traceback` has no ANSI colours."""

    ename: str
    evalue: str
    traceback: tuple[str, ...] = ()
    type: Literal["error"] = "error"


Output = StreamOutput | DisplayOutput | ResultOutput | ErrorOutput


@dataclass(frozen=True, slots=True)
class ExecuteRequest:
    """One piece of code for a session. `timeout` counts from the start of running, in seconds."""

    id: str
    code: str
    timeout: float
    traceparent: str | None = None
    """The W3C trace context of the call, for the agent."""

    MAX_ID = 128

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._:~-]{1,128}", self.id):
            raise InvalidRequest("operation-id must be 1 to 128 of A-Z a-z 0-9 . _ : ~ -")
        if not self.timeout > 0:
            raise InvalidRequest(f"timeout must be more than 0 seconds, not {self.timeout:g}")


@dataclass(frozen=True, slots=True)
class Execution:
    """A look at an execution: as it is now, or as it ended. Times are seconds since the epoch."""

    id: str
    state: ExecutionState
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    execution_count: int | None = None
    outputs: tuple[Output, ...] = ()
    dropped_bytes: int = 0
    """Bytes of output beyond the limit, dropped from the middle: head and tail are in `outputs`."""
    cause: EndCause | None = None
    message: str | None = None
    """A sentence on what happened, when it is more than the code's own business."""
    interrupted: bool = False
    kernel_restarted: bool = False
    state_lost_before: str | None = None
    """Why variables of earlier executions are gone, said once, to the first execution after the loss."""
    state_lost_during: str | None = None
    files: tuple[str, ...] = ()
    """Workspace paths that were written while it ran, relative to the workspace."""
    files_complete: bool = True

    @property
    def seconds(self) -> float:
        """Time spent running; 0 when it never started."""
        if self.started_at is None:
            return 0.0
        return max(0.0, (self.finished_at or self.started_at) - self.started_at)


EventKind = Literal["state", "output", "update_display", "clear_output", "gap", "done"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to an execution; `seq` grows; what later events made void may be missing.

    kind `state`: data {"state"} · `output`: data = an Output as JSON · `update_display`: data {"display_id", "data",
    "metadata"} · `clear_output`: data {"wait"} · `gap`: data {"dropped_bytes"}, events before this one were dropped
    · `done`: data = the Execution as JSON without outputs; always the last.
    """

    seq: int
    kind: EventKind
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file or directory of the workspace. `path` is relative to the workspace, '/'-separated."""

    path: str
    is_directory: bool
    size: int
    modified_at: float

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def directory(self) -> str:
        return self.path.rpartition("/")[0] or "."


@dataclass(frozen=True, slots=True)
class WorkspacePath:
    """A path that is safe to append to the workspace: relative, normal, no NUL or control character, no '..'.

    It says nothing about symlinks: those are resolved inside the sandbox, where they reach only what the code reaches.
    """

    text: str
    """Relative to the workspace; '' is the workspace itself."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Accepts 'a/b', '/mnt/data/a/b', './a'. Raises `InvalidPath` or `InvalidFileName`, naming what is wrong."""
        if text == WORKSPACE or text.startswith(WORKSPACE + "/"):
            text = text[len(WORKSPACE) :].lstrip("/")
        if text.startswith("/"):
            raise InvalidPath("path must be relative to /mnt/data")
        try:
            encoded = text.encode()
        except UnicodeEncodeError:
            raise InvalidPath("path is not valid Unicode") from None
        if len(encoded) > MAX_PATH_BYTES:
            raise InvalidPath(f"path is longer than {MAX_PATH_BYTES} bytes")
        parts = [part for part in text.split("/") if part not in ("", ".")]
        for part in parts:
            if part == "..":
                raise InvalidPath("path must not contain '..'")
            if "\\" in part or any(ord(char) < 32 or ord(char) == 127 for char in part):
                raise InvalidFileName("file name must not contain a backslash or control character")
            if len(part.encode()) > MAX_NAME_BYTES:
                raise InvalidFileName(f"file name is longer than {MAX_NAME_BYTES} bytes")
        return cls("/".join(parts))

    @classmethod
    def parse_file(cls, text: str) -> Self:
        """As `parse`, and names a file: not the workspace itself."""
        path = cls.parse(text)
        if not path.text:
            raise InvalidFileName("file name is missing")
        return path

    def child(self, name: str) -> Self:
        return type(self).parse_file(f"{self.text}/{name}" if self.text else name)

    @property
    def absolute(self) -> str:
        """As the code in the sandbox sees it."""
        return f"{WORKSPACE}/{self.text}" if self.text else WORKSPACE


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox may use. Bytes, cores and counts; enforced by the backend."""

    memory: int = 1 << 30
    cpus: float = 1.0
    pids: int = 256
    workspace: int = 512 << 20
    tmp: int = 128 << 20
    open_files: int = 4096


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What a backend hands to the agent, as JSON; nothing of it comes from the workspace."""

    secret: str
    """Bearer token of this one sandbox. Worth nothing elsewhere."""
    kernel_argv: tuple[str, ...]
    """With `{connection_file}` as placeholder."""
    kernel_env: Mapping[str, str] = field(default_factory=dict)
    """Besides HOME, PATH and the like, which the agent sets."""
    warmup_code: str = ""
    """Run once before the sandbox is ready, with no history."""
    interrupt_mode: Literal["signal", "message"] = "signal"
    workspace: str = WORKSPACE
    runtime_dir: str = "/tmp"  # noqa: S108 - the sandbox's own private tmpfs
    """Where connection file and ipc sockets go; short, for the 107 bytes of a socket address."""
    lease: float = 600.0
    """Seconds without an authenticated request after which an agent that was never activated ends itself."""
    processes: int = 0
    """RLIMIT_NPROC that the agent sets on itself and its children; 0 leaves it. Counted in the sandbox's own
    user namespace, which is why it cannot be set from outside."""
    queue_size: int = 16
    """Executions that may wait behind the running one."""
    output_bytes: int = 8 << 20
    """Output kept of one execution."""
    history_bytes: int = 32 << 20
    """Output kept of all executions; the oldest finished ones go first."""
    history_size: int = 1000
    """Executions kept."""
    save_images: bool = True
    """Write displayed images into the workspace."""
    interrupt_grace: float = 3.0
    """Seconds between the interrupt and the kernel's restart."""


@dataclass(frozen=True, slots=True)
class Activation:
    """The one message that turns a ready sandbox into somebody's session."""

    session: str
    """An opaque id for logs; not the caller's identifier."""
    cooldown: float
    """Seconds without activity after which the agent ends itself, should no gateway do it (plus a grace)."""
    max_alive: float
    """Seconds after which the agent ends itself whatever happens (plus a grace)."""
    notice: str | None = None
    """Said to the first execution as `state_lost_before`: the session that this one replaces died."""


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """What an agent says of itself. From inside a hostile sandbox: believe types, not truth."""

    ready: bool
    """The kernel has answered and the warm-up has run."""
    activated: bool
    session: str | None
    running: int
    queued: int
    idle_seconds: float
    """Since the last execution ended, file transfer, or activation; 0 while one is under way."""
    kernel_restarts: int
    failure: str | None = None
    """Why the kernel does not come up, when it does not."""
    cpu_seconds: float = 0.0
    """Used by all processes of the sandbox so far."""
    memory_bytes: int = 0
    """Used by all processes of the sandbox now."""
    workspace_bytes: int = 0
    """Of the session's files."""
