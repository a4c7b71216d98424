"""Values that come out of a sandbox: what no honest agent says is refused when it is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from kernelpool.errors import InvalidRequest
from kernelpool.models import EVENT_DATA, AgentStatus, Event, ExecuteRequest, Execution, FileInfo

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

VALID: dict[Any, dict[str, Any]] = {
    Execution: {"id": "x", "state": "succeeded", "created_at": 1, "started_at": 1, "finished_at": 1},
    FileInfo: {"path": "a", "is_directory": False, "size": 1, "modified_at": 1},
    AgentStatus: {"ready": True, "activated": True, "running": 0, "queued": 0, "idle_seconds": 0},
    Event: {"seq": 1, "kind": "state", "data": {}},
}


def read(kind: Any, fields: dict[str, Any]) -> Any:
    # Not strict: NaN, Infinity and 1e400 are written as a hostile agent would.
    return TypeAdapter(kind).validate_json(json.dumps(fields).replace('"1e400"', "1e400"))


@pytest.mark.parametrize("kind", VALID)
def test_what_an_honest_agent_says_is_read(kind: Any) -> None:
    read(kind, VALID[kind])


@pytest.mark.parametrize("kind", VALID)
def test_a_later_agent_may_say_more(kind: Any) -> None:
    read(kind, {**VALID[kind], "more": 1})


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (Execution, "created_at"),
        (Execution, "started_at"),
        (Execution, "finished_at"),
        (FileInfo, "modified_at"),
        (AgentStatus, "idle_seconds"),
        (AgentStatus, "cpu_seconds"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), "1e400"])
def test_no_time_is_infinite_or_no_number(kind: Any, field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        read(kind, {**VALID[kind], field: value})


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (Execution, "created_at", 1e12),
        (Execution, "started_at", 1e300),
        (Execution, "finished_at", -1),
        (Execution, "dropped_bytes", -1),
        (Execution, "id", "../../x"),
        (FileInfo, "modified_at", 1e18),
        (FileInfo, "size", -1),
        (AgentStatus, "running", -1),
        (AgentStatus, "queued", -1),
        (AgentStatus, "workspace_bytes", -1),
        (AgentStatus, "memory_bytes", -1),
        (AgentStatus, "cpu_seconds", -1),
        (Event, "seq", -5),
        (Event, "kind", "nonsense"),
    ],
)
def test_no_value_is_beyond_what_it_can_be(kind: Any, field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        read(kind, {**VALID[kind], field: value})


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("state", {"state": "running"}),
        ("output", {"type": "stream", "name": "stdout", "text": "x"}),
        ("update_display", {"display_id": "d", "data": {}, "metadata": {}, "files": []}),
        ("clear_output", {"wait": True}),
        ("gap", {"dropped_bytes": 5}),
        ("done", {"execution": VALID[Execution]}),
    ],
)
def test_the_data_of_an_event_is_that_of_its_kind(kind: Any, data: dict[str, Any]) -> None:
    adapter = TypeAdapter(EVENT_DATA[kind])

    adapter.validate_python(data)
    for field in data:
        with pytest.raises(ValidationError):
            adapter.validate_python({**data, field: None})
    with pytest.raises(ValidationError):
        adapter.validate_python({})


def test_a_gap_is_not_negative() -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(EVENT_DATA["gap"]).validate_python({"dropped_bytes": -1})


@pytest.mark.parametrize(
    "text", ["", "00", TRACEPARENT.upper(), TRACEPARENT + "-00", TRACEPARENT + "\n", f" {TRACEPARENT}"]
)
def test_a_trace_is_named_as_w3c_says(text: str) -> None:
    assert ExecuteRequest("x", "1", 1, TRACEPARENT).traceparent == TRACEPARENT
    with pytest.raises(InvalidRequest, match="traceparent"):
        ExecuteRequest("x", "1", 1, text)
