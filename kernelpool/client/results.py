"""What code did: results, outputs and events, read from the gateway's JSON."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kernelpool.models import DisplayOutput, ErrorOutput, ExecutionState, Output, ResultOutput, StreamOutput

STATES = {
    "NotStarted": ExecutionState.QUEUED,
    "Running": ExecutionState.RUNNING,
    "Succeeded": ExecutionState.SUCCEEDED,
    "Failed": ExecutionState.FAILED,
    "Canceled": ExecutionState.CANCELED,
}
_IMAGES = {"image/png": "png", "image/jpeg": "jpeg", "image/svg+xml": "svg"}


@dataclass(frozen=True, slots=True)
class Image:
    """A figure that code showed. `files` are where it lies in the workspace."""

    format: str
    """png, jpeg or svg."""
    data: bytes = field(repr=False)
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why code did not succeed: what it raised, or what was done to it (`Timeout`, `Canceled`, `KernelDied`, …)."""

    name: str
    message: str
    traceback: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class StateLost:
    """Why the session's variables are gone, or None. `before`: when this execution began; `during`: by this one."""

    before: str | None = None
    during: str | None = None

    def __bool__(self) -> bool:
        return self.before is not None or self.during is not None


@dataclass(frozen=True, slots=True)
class Truncated:
    """Bytes that were left out: of the two streams, and of all outputs, in the middle."""

    stdout: int = 0
    stderr: int = 0
    outputs: int = 0

    def __bool__(self) -> bool:
        return bool(self.stdout or self.stderr or self.outputs)


@dataclass(frozen=True, slots=True)
class Result:
    """An execution as it is now, or as it ended. Code that failed is a result like any other; look at `ok`."""

    id: str
    status: ExecutionState
    stdout: str = ""
    stderr: str = ""
    """With the message and traceback of a failure at its end."""
    result: Any = None
    """The value of the last expression: numbers, booleans and text as such, anything else as the text that Jupyter
    shows; None when there was none."""
    outputs: tuple[Output, ...] = ()
    """Everything that was shown, in order, as in a notebook."""
    error: Failure | None = None
    exit_code: int | None = None
    """Of a command that ended by itself: 128 and the number of the signal that ended it, as shells have it."""
    execution_count: int | None = None
    seconds: float = 0.0
    files: tuple[str, ...] = ()
    """Workspace files that were written while it ran."""
    files_complete: bool = True
    truncated: Truncated = Truncated()
    state_lost: StateLost = StateLost()
    interrupted: bool = False
    kernel_restarted: bool = False
    cause: str | None = None
    """completed, raised, timed_out, canceled, kernel_died or kernel_restarted."""
    message: str | None = None
    """A sentence on the cause, when there is more to say."""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The gateway's own JSON."""

    @property
    def ok(self) -> bool:
        return self.status is ExecutionState.SUCCEEDED

    @property
    def is_final(self) -> bool:
        return self.status.is_final

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(image for output in self.outputs if (image := image_of(output)) is not None)


@dataclass(frozen=True, slots=True)
class StateEvent:
    """The execution is waiting, running, or done."""

    id: int
    state: str


@dataclass(frozen=True, slots=True)
class OutputEvent:
    id: int
    output: Output


@dataclass(frozen=True, slots=True)
class DisplayUpdate:
    """A display that is already there looks different now."""

    id: int
    display_id: str
    data: dict[str, Any]
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class OutputCleared:
    """What was shown so far is to go: at once, or (`wait`) when the next output comes."""

    id: int
    wait: bool


@dataclass(frozen=True, slots=True)
class OutputGap:
    """Output was dropped before anybody read it."""

    id: int
    dropped_bytes: int


@dataclass(frozen=True, slots=True)
class Done:
    """Always the last."""

    id: int
    result: Result


Event = StateEvent | OutputEvent | DisplayUpdate | OutputCleared | OutputGap | Done


def result_of(answer: Mapping[str, Any]) -> Result:
    fields = answer.get("result")
    status = _state_of(answer["status"], fields)
    if not isinstance(fields, Mapping):
        return Result(answer["id"], status, raw=answer)
    outputs = tuple(output for entry in fields.get("outputs", ()) if (output := output_of(entry)) is not None)
    truncated, lost = fields.get("truncated") or {}, fields.get("stateLost") or {}
    return Result(
        id=answer["id"],
        status=status,
        stdout=fields["stdout"],
        stderr=fields["stderr"],
        result=_value(fields.get("executionResult"), outputs),
        outputs=outputs,
        error=_failure(answer.get("error"), outputs),
        exit_code=fields.get("exitCode"),
        execution_count=fields.get("executionCount"),
        seconds=fields.get("executionTimeInMilliseconds", 0) / 1000,
        files=tuple(fields.get("files", ())),
        files_complete=bool(fields.get("filesComplete", True)),
        truncated=Truncated(truncated.get("stdout", 0), truncated.get("stderr", 0), truncated.get("outputs", 0)),
        state_lost=StateLost(lost.get("before"), lost.get("during")),
        interrupted=bool(fields.get("interrupted")),
        kernel_restarted=bool(fields.get("kernelRestarted")),
        cause=fields.get("cause"),
        message=fields.get("message"),
        raw=answer,
    )


def _state_of(status: str, fields: Any) -> ExecutionState:
    """Of a command that has ended, the status is its exit code, or -1 without one."""
    if status in STATES:
        return STATES[status]
    if int(status) == 0:
        return ExecutionState.SUCCEEDED
    return ExecutionState.CANCELED if fields["cause"] == "canceled" else ExecutionState.FAILED


def output_of(entry: Mapping[str, Any]) -> Output | None:
    """None for a kind that this version does not know."""
    match entry.get("output_type"):
        case "stream":
            return StreamOutput("stderr" if entry["name"] == "stderr" else "stdout", entry["text"])
        case "error":
            return ErrorOutput(entry["ename"], entry["evalue"], tuple(entry.get("traceback", ())))
        case "display_data":
            return DisplayOutput(
                entry["data"], entry.get("metadata", {}), entry.get("display_id"), tuple(entry.get("files", ()))
            )
        case "execute_result":
            return ResultOutput(
                entry["data"], entry.get("metadata", {}), entry.get("execution_count"), tuple(entry.get("files", ()))
            )
    return None


def event_of(kind: str, id: int, data: Mapping[str, Any]) -> Event | None:
    """None for a kind that this version does not know."""
    match kind:
        case "state":
            return StateEvent(id, data["state"])
        case "output":
            output = output_of(data)
            return OutputEvent(id, output) if output is not None else None
        case "update_display":
            return DisplayUpdate(id, data["display_id"], data["data"], data.get("metadata", {}))
        case "clear_output":
            return OutputCleared(id, bool(data.get("wait")))
        case "gap":
            return OutputGap(id, data["dropped_bytes"])
        case "done":
            return Done(id, result_of(data))
    return None


def image_of(output: Output) -> Image | None:
    """The image in an output. One that is no base64, which hostile code may show, is none."""
    if not isinstance(output, DisplayOutput | ResultOutput):
        return None
    for mime, format in _IMAGES.items():
        data = output.data.get(mime)
        if isinstance(data, str):
            try:
                decoded = data.encode() if format == "svg" else base64.b64decode(data)
            except (binascii.Error, UnicodeEncodeError):
                return None
            return Image(format, decoded, output.files)
    return None


def text_of(output: DisplayOutput | ResultOutput) -> str:
    """As a terminal can show it; "" for what has no text."""
    text = output.data.get("text/plain")
    return text if isinstance(text, str) else ""


def _value(value: Any, outputs: Sequence[Output]) -> Any:
    """`executionResult` puts a figure in the value's place, and "" where there is none; here those are told apart."""
    results = [output for output in outputs if isinstance(output, ResultOutput)]
    if not results:
        return None
    return text_of(results[-1]) if isinstance(value, dict) else value


def _failure(error: Any, outputs: Sequence[Output]) -> Failure | None:
    if not isinstance(error, Mapping):
        return None
    tracebacks = ["\n".join(output.traceback) for output in outputs if isinstance(output, ErrorOutput)]
    return Failure(error["code"], error["message"], tracebacks[-1] if tracebacks else "")
