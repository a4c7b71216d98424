"""Notebooks run by a gateway, as they run and as they ended; and what a session ran. Read from JSON, without I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kernelpool.client.calls import Call, read
from kernelpool.client.errors import ConnectionBroken, UnexpectedAnswer, error_in
from kernelpool.client.frames import Frame, FrameReader
from kernelpool.client.results import STATES, Event, event_of
from kernelpool.models import ExecutionState

Notebook = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CellState:
    """A cell waits, runs, or has ended. `seconds` and `cause` are known at its end."""

    index: int
    """Its place in the notebook, from 0 on."""
    cell: str
    state: ExecutionState
    execution: str
    """The id under which it is executed: to cancel it, or to look at it later."""
    cause: str | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class CellOutput:
    """Something that a cell shows: an output, or what becomes of those before."""

    index: int
    cell: str
    event: Event


@dataclass(frozen=True, slots=True)
class NotebookResult:
    """A notebook as it was executed. Cells that raised are in there; look at `ok`."""

    notebook: dict[str, Any] = field(repr=False)
    ok: bool
    executed: int
    """How many cells were run."""
    cell: str | None = None
    """The id of the first that failed."""
    cause: str | None = None
    message: str | None = None


CellEvent = CellState | CellOutput
OnCell = Callable[[CellEvent], object]


@dataclass(frozen=True, slots=True)
class ExecutionInfo:
    """One of a session's executions, as its list tells it."""

    id: str
    number: int
    """Its place among all that the session ever ran; those that are missing are no longer kept."""
    origin: str
    """By which door it came: rest, jupyter, notebook or mcp."""
    status: ExecutionState
    code: str | None
    """None when it was too long to be kept."""
    cell: str | None
    execution_count: int | None
    created_at: datetime
    seconds: float
    cause: str | None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


class NotebookWatch:
    """A run of a notebook, as it happens. It is sent again when a connection breaks, and goes on from the last event
    that was seen: the gateway runs no cell twice."""

    repeatable = True

    def __init__(self, submit: Call[Any], limit: int) -> None:
        self._submit = submit
        self._limit = limit
        self._last: str | None = None
        self._frames = FrameReader(limit)
        self.is_done = False

    def call(self) -> Call[Any]:
        self._frames = FrameReader(self._limit)
        return self._submit if self._last is None else self._submit.with_headers(Last_Event_ID=self._last)

    def receive(self, chunk: bytes) -> Iterator[CellEvent | NotebookResult]:
        for frame in self._frames.feed(chunk):
            event = self._read(frame)
            if event is not None and not self.is_done:
                self.is_done = isinstance(event, NotebookResult)
                yield event

    def end(self) -> None:
        if not self.is_done:
            raise ConnectionBroken("the stream of events ended before the notebook did")

    def _read(self, frame: Frame) -> CellEvent | NotebookResult | None:
        if frame.kind == "error":
            raise read(lambda body: error_in(body, None), frame.data)
        if frame.kind == "done":
            return read(result_of, frame.data)
        if frame.id is None or not (frame.id.isascii() and frame.id.isdigit() and len(frame.id) <= 18):
            raise UnexpectedAnswer(f"an event has the id {str(frame.id)[:40]!r}")
        self._last = frame.id
        return read(lambda data: _cell_event(frame.kind, int(frame.id or 0), data), frame.data)


def _cell_event(kind: str, id: int, data: Mapping[str, Any]) -> CellEvent | None:
    """None for a kind that this version does not know."""
    index, cell = data["index"], data["cell"]
    if kind == "cell":
        state = ExecutionState(data["state"])
        return CellState(index, cell, state, data["execution"], data.get("cause"), data.get("seconds"))
    event = event_of(kind, id, data)
    return CellOutput(index, cell, event) if event is not None else None


def result_of(notebook: dict[str, Any]) -> NotebookResult:
    told = notebook["metadata"]["kernelpool"]
    return NotebookResult(
        notebook,
        told["status"] == "succeeded",
        told["executed"],
        told.get("cell"),
        told.get("cause"),
        told.get("message"),
    )


def executions_of(answer: dict[str, Any]) -> tuple[list[ExecutionInfo], bool]:
    """A page, and whether there may be another."""
    return [_execution_of(entry) for entry in answer["value"]], "nextLink" in answer


def unfinished(executions: Iterable[ExecutionInfo], run: str) -> list[str]:
    """The cells of a notebook's run that have begun and not ended; also those of whose beginning nobody has heard."""
    cells = [each for each in executions if each.origin == "notebook" and each.id.rpartition(".")[0] == run]
    return [cell.id for cell in cells if not cell.status.is_final]


def _execution_of(entry: Mapping[str, Any]) -> ExecutionInfo:
    return ExecutionInfo(
        id=entry["id"],
        number=entry["number"],
        origin=entry["origin"],
        status=STATES[entry["status"]],
        code=entry["code"],
        cell=entry.get("cell"),
        execution_count=entry.get("executionCount"),
        created_at=datetime.fromisoformat(entry["createdAt"]),
        seconds=entry["executionTimeInMilliseconds"] / 1000,
        cause=entry.get("cause"),
        raw=entry,
    )
