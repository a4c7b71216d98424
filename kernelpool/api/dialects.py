"""Executions in the dialects of Azure Container Apps sessions: JSON body → request, Execution → JSON.

The core knows none of this. Three shapes, chosen by the route and never by the api-version:

=========  =======================  =====================================================  ========================
shape      route                    body                                                   answer
=========  =======================  =====================================================  ========================
WRAPPED    `/code/execute`          `{"properties": {"code": …, "codeInputType": …}}`      in `properties`
FLAT       `/python/execute`        `{"properties": {"pythonCode": …}}`                    at the top
MODERN     `/executions`            `{"code": …}`                                          a resource with `result`
=========  =======================  =====================================================  ========================

Any of these bodies is read on any route, names and enum values in any case.

What ACA does not have is added beside `stdout` and `stderr`, under the same names in every shape:

- `outputs`: everything that was shown, in order, as in a notebook (`output_type`, MIME bundles; `files` names the
  workspace files that its images were saved to). Stream text is cut as `stdout` and `stderr` are.
  `?outputs=false` leaves it out.
- `truncated`: bytes left out of `stdout`, `stderr`, and `outputs` (there: before they reached the gateway).
- `executionCount`, `interrupted`, `kernelRestarted`
- `stateLost`: `{"before", "during"}`: why variables are gone, or null.
- `files`: workspace paths written by this execution; `filesComplete` is false when there were too many to tell.
- `cause`: completed, raised, timed_out, canceled or kernel_died; `message`: a sentence on it.

Commands (`shellCommand`, `execCommandAndArgs`) have no `executionResult` but an `exitCode`, and in the modern shape it
is their `status`, as text: "-1" when they were ended before they had one, as `cause` tells.

A session has one kernel with its libraries imported before anybody gets it, so `useEmptyKernel` is accepted and
changes nothing: variables are shared by all executions of a session, synchronous or not.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kernelpool.api.resources import timestamp
from kernelpool.api.streams import cap, fold_lines
from kernelpool.api.values import json_value
from kernelpool.models import (
    DisplayOutput,
    EndCause,
    ErrorOutput,
    Event,
    Execution,
    ExecutionState,
    KeptExecution,
    Kind,
    Output,
    ResultOutput,
    StreamOutput,
)

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
MAX_MESSAGE = 4096
"""Characters of an exception's own text repeated in `error.message`."""


class Shape(StrEnum):
    WRAPPED = "wrapped"
    FLAT = "flat"
    MODERN = "modern"


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How a caller wants its answer."""

    streams_max_length: int
    jupyter_format: bool = False
    """`returnJupyterFormatExecutionResult`: the result as its text/plain, null when there is none."""
    with_outputs: bool = True
    text_results: bool = False
    """Nothing but strings in `executionResult`; see `quirks`."""
    language: str = "python"
    """Whose notation results are in."""


LEGACY_STATUS = {
    ExecutionState.QUEUED: "NotStarted",
    ExecutionState.RUNNING: "Running",
    ExecutionState.SUCCEEDED: "Success",
    ExecutionState.FAILED: "Failure",
    ExecutionState.CANCELED: "Failure",
}
MODERN_STATUS = {
    ExecutionState.QUEUED: "NotStarted",
    ExecutionState.RUNNING: "Running",
    ExecutionState.SUCCEEDED: "Succeeded",
    ExecutionState.FAILED: "Failed",
    ExecutionState.CANCELED: "Canceled",
}
NO_EXIT_CODE = "-1"
_CAUSES = {
    EndCause.TIMED_OUT: ("Timeout", "The code ran into its time limit."),
    EndCause.CANCELED: ("Canceled", "The execution was canceled."),
    EndCause.KERNEL_DIED: ("KernelDied", "The kernel died; the session's variables are lost."),
}


def execution_answer(
    execution: Execution, identifier: str, shape: Shape, options: AnswerOptions, *, asynchronous: bool
) -> dict[str, Any]:
    """The JSON that this execution is in this shape, finished or not."""
    if shape is Shape.MODERN:
        answer: dict[str, Any] = {
            "id": execution.id,
            "identifier": identifier,
            "executionType": "Asynchronous" if asynchronous else "Synchronous",
            "status": _modern_status(execution),
        }
        if execution.state.is_final:
            is_code = execution.kind is Kind.CODE
            answer["result"] = _result_fields(execution, options, ("executionResult",) if is_code else ())
            answer |= {"error": error} if (error := _error(execution)) else {}
        return answer
    status = LEGACY_STATUS[execution.state]
    names = ("result", "executionResult") if shape is Shape.WRAPPED else ("result",)
    fields = {"id": execution.id, "status": status, **_result_fields(execution, options, names)}
    return {"properties": fields} if shape is Shape.WRAPPED else fields


def _modern_status(execution: Execution) -> str:
    """Of a command that has ended its exit code."""
    if execution.kind is Kind.COMMAND and execution.state.is_final:
        return NO_EXIT_CODE if execution.exit_code is None else str(execution.exit_code)
    return MODERN_STATUS[execution.state]


def executions_page(found: Sequence[KeptExecution], count: int, next_link: str | None) -> dict[str, Any]:
    """What a session ran, the oldest first, without outputs. `number` counts all that it ever ran: what is missing is
    kept no longer."""
    return {
        "value": [_listed(kept) for kept in found],
        **({"nextLink": next_link} if next_link else {"count": count}),
    }


def _listed(kept: KeptExecution) -> dict[str, Any]:
    execution = kept.execution
    times = {"createdAt": execution.created_at, "startedAt": execution.started_at, "finishedAt": execution.finished_at}
    return {
        "id": execution.id,
        "number": kept.number,
        "origin": execution.origin.value,
        "kind": execution.kind.value,
        "status": _modern_status(execution),
        "code": kept.code,
        "cell": kept.cell.id if kept.cell else None,
        "executionCount": execution.execution_count,
        **{name: timestamp(seconds) if seconds is not None else None for name, seconds in times.items()},
        "executionTimeInMilliseconds": round(execution.seconds * 1000),
        "cause": execution.cause,
        "message": execution.message,
    }


def _result_fields(execution: Execution, options: AnswerOptions, result_names: tuple[str, ...]) -> dict[str, Any]:
    limit = options.streams_max_length
    (stdout,), stdout_dropped = cap([fold_lines(_stream(execution, "stdout"))], limit)
    (stderr,), stderr_dropped = cap([_stderr(execution)], limit)
    value = _result_value(execution, options)
    fields: dict[str, Any] = {
        "stdout": stdout,
        "stderr": stderr,
        **dict.fromkeys(result_names, value),
        "executionTimeInMilliseconds": round(execution.seconds * 1000),
        "executionCount": execution.execution_count,
        **({"exitCode": execution.exit_code} if execution.kind is Kind.COMMAND else {}),
        "truncated": {"stdout": stdout_dropped, "stderr": stderr_dropped, "outputs": execution.dropped_bytes},
        "stateLost": {"before": execution.state_lost_before, "during": execution.state_lost_during},
        "interrupted": execution.interrupted,
        "kernelRestarted": execution.kernel_restarted,
        "files": list(execution.files),
        "filesComplete": execution.files_complete,
        "cause": execution.cause,
        "message": execution.message,
    }
    if options.with_outputs:
        fields["outputs"] = notebook_outputs(execution.outputs, limit)
    return fields


def _stream(execution: Execution, name: str) -> str:
    return "".join(
        output.text for output in execution.outputs if isinstance(output, StreamOutput) and output.name == name
    )


def _stderr(execution: Execution) -> str:
    """What was written, then for a failure `<message>  <traceback>` as ACA puts it, then what else happened."""
    text = fold_lines(_stream(execution, "stderr"))
    parts = [f"{error.evalue}{'  ' if error.evalue else ''}{_traceback(error)}\n" for error in _errors(execution)]
    if execution.state.is_final and execution.cause in _CAUSES:
        parts.append(f"{execution.message or _CAUSES[execution.cause][1]}\n")
    if text and parts and not text.endswith("\n"):
        text += "\n"
    return text + "".join(parts)


def _traceback(error: ErrorOutput) -> str:
    """The last line names the exception even when the kernel sent no traceback."""
    return _ANSI.sub("", "\n".join(error.traceback)) or f"{error.ename}: {error.evalue}"


def _errors(execution: Execution) -> list[ErrorOutput]:
    return [output for output in execution.outputs if isinstance(output, ErrorOutput)]


def _error(execution: Execution) -> dict[str, str] | None:
    """The `error` of a resource that did not succeed: who polls needs no look at stderr to know why."""
    if execution.state is ExecutionState.SUCCEEDED or execution.exit_code is not None:
        return None
    if execution.cause in _CAUSES:
        code, sentence = _CAUSES[execution.cause]
        return {"code": code, "message": execution.message or sentence}
    errors = _errors(execution)
    if not errors:
        return {"code": "ExecutionFailed", "message": execution.message or "The execution failed."}
    return {"code": errors[-1].ename, "message": errors[-1].evalue[:MAX_MESSAGE]}


def _result_value(execution: Execution, options: AnswerOptions) -> Any:
    """One value: null for a failure, else the last image shown, else the last expression, else ""."""
    if execution.state is not ExecutionState.SUCCEEDED:
        return None
    bundles = [output.data for output in execution.outputs if isinstance(output, DisplayOutput | ResultOutput)]
    image = _image(bundles)
    if image and not options.text_results:
        return image
    results = [output for output in execution.outputs if isinstance(output, ResultOutput)]
    plain = results[-1].data.get("text/plain") if results else None
    if not isinstance(plain, str):
        return None if options.jupyter_format else ""
    if options.jupyter_format:
        return plain
    value = json_value(plain, nan="nan" if options.text_results else None, language=options.language)
    return plain if options.text_results and not isinstance(value, str) else value


def _image(bundles: list[dict[str, Any]]) -> dict[str, str] | None:
    """The last png, else jpeg, else svg. A figure wins over the value of the last line, as with ACA."""
    for mime, name in (("image/png", "png"), ("image/jpeg", "jpeg"), ("image/svg+xml", "svg")):
        for bundle in reversed(bundles):
            if isinstance(data := bundle.get(mime), str):
                encoded = base64.b64encode(data.encode(errors="replace")).decode() if name == "svg" else data
                return {"type": "image", "format": name, "base64_data": encoded}
    return None


def notebook_outputs(outputs: tuple[Output, ...], limit: int) -> list[dict[str, Any]]:
    """Outputs in the form of nbformat, the text of each stream cut to `limit` bytes in sum."""
    entries = [_notebook_output(output) for output in outputs]
    for name in ("stdout", "stderr"):
        streams = [entry for entry in entries if entry["output_type"] == "stream" and entry["name"] == name]
        texts, _ = cap([fold_lines(entry["text"]) for entry in streams], limit)
        for entry, text in zip(streams, texts, strict=True):
            entry["text"] = text
    return [entry for entry in entries if entry.get("text") != ""]


def _notebook_output(output: Output) -> dict[str, Any]:
    match output:
        case StreamOutput():
            return {"output_type": "stream", "name": output.name, "text": output.text}
        case ErrorOutput():
            traceback = list(output.traceback)
            return {"output_type": "error", "ename": output.ename, "evalue": output.evalue, "traceback": traceback}
        case DisplayOutput():
            entry: dict[str, Any] = {"output_type": "display_data", "data": output.data, "metadata": output.metadata}
        case ResultOutput():
            entry = {"output_type": "execute_result", "data": output.data, "metadata": output.metadata}
            entry["execution_count"] = output.execution_count
    return entry | ({"files": list(output.files)} if output.files else {})


def event_data(event: Event) -> dict[str, Any]:
    """An event as a stream of Server-Sent Events tells it: outputs under the names that `outputs` uses."""
    if event.kind != "output" or "type" not in event.data:
        return event.data
    rest = {name: value for name, value in event.data.items() if name != "type" and value not in ([], None)}
    return {"output_type": event.data["type"], **rest}
