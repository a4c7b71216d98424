"""Value types that cross rooms: limits, executions, outputs, files. Plain data, importable inside the sandbox."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Literal, Self

from kernelpool.errors import InvalidFileName, InvalidPath, InvalidRequest

WORKSPACE = "/mnt/data"
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4000
LATEST = 253_402_300_799.0
"""The end of the year 9999 in seconds since the epoch: no date comes after it."""
MAX_ARGUMENT = (128 << 10) - 1
"""Bytes of one argument of a program: what Linux lets through (MAX_ARG_STRLEN), without the NUL at its end."""
MAX_ARGUMENTS = 1 << 20
"""Bytes of all of them, and of the pointers to them. Linux lets twice as much through, with the environment."""
MAX_TYPED = 4000
"""Bytes that are typed into a terminal: it takes 4095 before somebody reads."""

_ID = re.compile(r"[A-Za-z0-9._:~-]{1,128}")
_CELL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_CELL_METADATA = 16 << 10
"""Characters of a cell's metadata as JSON."""
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

# How the gateway's validation, which is pydantic's, reads what comes out of a sandbox: NaN and the infinities are no
# numbers. Here it is but a dict, since the agent has no pydantic.
FINITE = {"allow_inf_nan": False}


def _check(holds: bool, what: str) -> None:
    """A ValueError is what pydantic expects of a type that checks itself."""
    if not holds:
        raise ValueError(what)


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
    RAISED = "raised"  # the code raised; the command's exit code was not 0
    TIMED_OUT = "timed_out"
    CANCELED = "canceled"  # by a caller, or because the only caller left
    KERNEL_DIED = "kernel_died"


class Origin(StrEnum):
    """By which door an execution came."""

    REST = "rest"
    JUPYTER = "jupyter"
    NOTEBOOK = "notebook"
    MCP = "mcp"


class Kind(StrEnum):
    """What an execution is."""

    CODE = "code"  # for the kernel, in line
    COMMAND = "command"  # a program beside the kernel


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
class Cell:
    """The notebook's cell that a piece of code stands in: its id there, and its metadata."""

    id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.id is not None and not self.is_id(self.id):
            raise InvalidRequest("a cell's id must be 1 to 64 of A-Z a-z 0-9 - _")
        if not isinstance(self.metadata, dict):
            raise InvalidRequest("a cell's metadata must be a JSON object")
        if self.metadata and not self.is_small(self.metadata):
            raise InvalidRequest(f"a cell's metadata must be JSON of {MAX_CELL_METADATA} characters at most")

    @staticmethod
    def is_id(text: object) -> bool:
        """Whether a cell may be called so, as nbformat has it."""
        return isinstance(text, str) and _CELL_ID.fullmatch(text) is not None

    @staticmethod
    def is_small(metadata: object) -> bool:
        """Whether it is JSON, and short enough to be kept with an execution."""
        try:
            return len(json.dumps(metadata, allow_nan=False)) <= MAX_CELL_METADATA
        except (TypeError, ValueError, RecursionError):
            return False


@dataclass(frozen=True, slots=True)
class Command:
    """A program to be run beside the kernel. Without `arguments` it is a shell that runs the execution's code."""

    arguments: tuple[str, ...] = ()
    """The program's name and what it is told."""
    stdin: str = ""
    pty: bool = False
    """In a terminal: programs that ask for one find one, and both streams are stdout."""

    def __post_init__(self) -> None:
        if isinstance(self.arguments, list):  # from JSON
            object.__setattr__(self, "arguments", tuple(self.arguments))
        if not (isinstance(self.stdin, str) and all(isinstance(text, str) for text in self.arguments)):
            raise InvalidRequest("arguments and stdin must be text")
        for text in self.arguments:
            check_argument(text, "an argument")
        size = sum(len(text.encode()) + 9 for text in self.arguments)
        if size > MAX_ARGUMENTS:
            raise InvalidRequest(f"all arguments together take {size} bytes; at most {MAX_ARGUMENTS} are allowed")
        if self.pty and len(self.stdin.encode(errors="replace")) > MAX_TYPED:
            raise InvalidRequest(f"stdin for a terminal must be at most {MAX_TYPED} bytes")


def check_argument(text: str, what: str) -> None:
    """Raises `InvalidRequest` for what no program can be told."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(f"{what} is not valid Unicode") from None
    if size > MAX_ARGUMENT:
        raise InvalidRequest(
            f"{what} has {size} bytes; Linux takes at most {MAX_ARGUMENT} at once: use stdin or a file"
        )
    if "\0" in text:
        raise InvalidRequest(f"{what} has a NUL character, which no program can be told")


@dataclass(frozen=True, slots=True)
class ExecuteRequest:
    """One piece of code for a session. `timeout` counts from the start of running, in seconds."""

    id: str
    code: str
    timeout: float
    traceparent: str | None = None
    """The caller's trace, as in W3C Trace Context: handed to the kernel, and named in the agent's log lines."""
    origin: Origin = Origin.REST
    cell: Cell | None = None
    command: Command | None = None
    """Where it is no code for the kernel. `code` is then what to show of it."""

    def __post_init__(self) -> None:
        # From JSON these come as what JSON has.
        object.__setattr__(self, "origin", Origin(self.origin))
        if isinstance(self.cell, dict):
            object.__setattr__(self, "cell", Cell(**self.cell))
        if isinstance(self.command, dict):
            object.__setattr__(self, "command", Command(**self.command))
        if self.command is not None and not self.command.arguments:
            check_argument(self.code, "the command")
        if not self.is_id(self.id):
            raise InvalidRequest("operation-id must be 1 to 128 of A-Z a-z 0-9 . _ : ~ -")
        if not self.timeout > 0:
            raise InvalidRequest(f"timeout must be more than 0 seconds, not {self.timeout:g}")
        if self.traceparent is not None and not _TRACEPARENT.fullmatch(self.traceparent):
            raise InvalidRequest("traceparent must be four groups of 2, 32, 16 and 2 lower-case hexadecimal digits")

    @property
    def kind(self) -> Kind:
        return Kind.CODE if self.command is None else Kind.COMMAND

    @staticmethod
    def is_id(text: str) -> bool:
        """Whether an execution may be called so; what may not is safe in no URL either."""
        return re.fullmatch(r"[A-Za-z0-9._:~-]{1,128}", text) is not None


@dataclass(frozen=True, slots=True)
class UpdateDisplayData:
    """Every output with this display_id becomes this."""

    display_id: str
    data: dict[str, Any]
    metadata: dict[str, Any]
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Execution:
    """A look at an execution: as it is now, or as it ended. Times are seconds since the epoch."""

    __pydantic_config__: ClassVar[dict[str, bool]] = FINITE

    id: str
    state: ExecutionState
    created_at: float
    """When it was queued."""
    started_at: float | None = None
    """When the kernel got it."""
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
    origin: Origin = Origin.REST
    kind: Kind = Kind.CODE
    exit_code: int | None = None
    """Of a command that ended by itself; 128 and the number of the signal that ended it, as shells have it."""
    updates: tuple[UpdateDisplayData, ...] = ()
    """Of displays that earlier executions made, the last of each."""

    def __post_init__(self) -> None:
        _check(_ID.fullmatch(self.id) is not None, "an impossible id")
        _check(self.exit_code is None or 0 <= self.exit_code <= 255, "an impossible exit code")
        for at in (self.created_at, self.started_at, self.finished_at):
            _check(at is None or 0 <= at <= LATEST, "an impossible time")
        _check(self.dropped_bytes >= 0, "a negative size")

    @property
    def seconds(self) -> float:
        """Time spent running; 0 when it never started."""
        if self.started_at is None:
            return 0.0
        return max(0.0, (self.finished_at or self.started_at) - self.started_at)


@dataclass(frozen=True, slots=True)
class KeptExecution:
    """One of the executions that a session keeps, with the code that was run."""

    number: int
    """Its place among all that the session ever had, from 1 on: one that is missing is kept no longer."""
    code: str | None
    """None when it was too long to be kept."""
    execution: Execution
    cell: Cell | None = None

    def __post_init__(self) -> None:
        _check(self.number > 0, "an impossible number")


EventKind = Literal["state", "output", "update_display", "clear_output", "gap", "done"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to an execution; `seq` grows; what later events made void may be missing.

    kind `output`: data = an Output as JSON; of the others, and what each means, see `EVENT_DATA`.
    """

    seq: int
    kind: EventKind
    data: dict[str, Any]

    def __post_init__(self) -> None:
        _check(self.seq >= 0, "a negative seq")


@dataclass(frozen=True, slots=True)
class StateData:
    state: ExecutionState


@dataclass(frozen=True, slots=True)
class ClearOutputData:
    """All outputs so far are gone, or, with `wait`, when the next one comes."""

    wait: bool


@dataclass(frozen=True, slots=True)
class GapData:
    """Events before this one were dropped for want of room."""

    dropped_bytes: int

    def __post_init__(self) -> None:
        _check(self.dropped_bytes >= 0, "a negative size")


@dataclass(frozen=True, slots=True)
class DoneData:
    """The end, always the last event. The execution without its outputs, which were events."""

    execution: Execution


EVENT_DATA: Mapping[EventKind, Any] = {
    "state": StateData,
    "output": Output,
    "update_display": UpdateDisplayData,
    "clear_output": ClearOutputData,
    "gap": GapData,
    "done": DoneData,
}
"""What `Event.data` must be for each kind: the types to validate it with."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file or directory of the workspace. `path` is relative to the workspace, '/'-separated."""

    __pydantic_config__: ClassVar[dict[str, bool]] = FINITE

    path: str
    is_directory: bool
    size: int
    modified_at: float
    """Seconds since the epoch, within what a date can say whatever the file's own is."""

    def __post_init__(self) -> None:
        _check(self.size >= 0, "a negative size")
        _check(0 <= self.modified_at <= LATEST, "an impossible time")

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
    kernel_transport: Literal["ipc", "tcp"] = "ipc"
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
    """Executions that may wait behind the running one, besides the cells of Jupyter clients; commands behind theirs."""
    commands: int = 8
    """Commands that run at once."""
    cell_queue_size: int = 1000
    """Cells of Jupyter clients that may wait: "run all" sends a whole notebook at once."""
    relay_bytes: int = 32 << 20
    """Bytes kept of what Jupyter clients are told, for those that are slow or away. None without any client."""
    relay_messages: int = 10_000
    """How many messages those are at most."""
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
    egress_socket: str = ""
    """Path of the socket that the proxy outside listens on. With one the agent forwards 127.0.0.1:3128 to it, and the
    kernel is told to use that."""


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

    __pydantic_config__: ClassVar[dict[str, bool]] = FINITE

    ready: bool
    """The kernel has answered and the warm-up has run."""
    activated: bool
    running: int
    queued: int
    idle_seconds: float
    """Since the last execution ended, file transfer, or activation; 0 while one is under way."""
    failure: str | None = None
    """Why the kernel does not come up, when it does not."""
    workspace_bytes: int = 0
    """Room that the files of the workspace take; 0 when it is no file system of its own, so that nobody can tell."""
    cpu_seconds: float = 0.0
    """Processor time of all that ran in the sandbox so far, a few seconds old at most."""
    memory_bytes: int = 0
    """Resident memory of all processes of the sandbox; what they share counts for each. As old as `cpu_seconds`."""

    def __post_init__(self) -> None:
        _check(self.running >= 0 and self.queued >= 0, "a negative number of executions")
        _check(self.workspace_bytes >= 0 and self.memory_bytes >= 0, "a negative size")
        _check(self.cpu_seconds >= 0, "a negative time")


class KernelPhase(StrEnum):
    """How a kernel is, in the words of Jupyter's `execution_state`."""

    STARTING = "starting"  # the first one of its sandbox
    IDLE = "idle"
    BUSY = "busy"  # with an execution
    RESTARTING = "restarting"  # the one before has ended, the next has not answered yet
    DEAD = "dead"  # none comes up; it is tried again and again


@dataclass(frozen=True, slots=True)
class KernelState:
    """What an agent says of its kernel. From inside a hostile sandbox: believe types, not truth."""

    __pydantic_config__: ClassVar[dict[str, bool]] = FINITE

    execution_state: KernelPhase
    last_activity: float
    """When the kernel or a client last said something, in seconds since the epoch."""
    connections: int = 0
    """Jupyter clients that are connected now."""
    restarts: int = 0
    """Kernels that ended since the sandbox began, whatever ended them."""
    queued: int = 0
    """Executions that wait, of all surfaces."""
    failure: str | None = None
    """Why no kernel comes up, when none does."""

    def __post_init__(self) -> None:
        _check(0 <= self.last_activity <= LATEST, "an impossible time")
        _check(min(self.connections, self.restarts, self.queued) >= 0, "a negative number")
