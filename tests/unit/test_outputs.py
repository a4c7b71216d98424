"""Outputs made of what hostile code displays are always clean: right types, real MIME names, bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelpool.models import DisplayOutput, ErrorOutput, ResultOutput, StreamOutput
from kernelpool.protocol.messages import Message
from kernelpool.protocol.outputs import MAX_TRACEBACK, OUTPUTS, from_json, mime_bundle, output_of, size_of, to_json

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
KEYS = ["name", "text", "data", "metadata", "transient", "ename", "evalue", "traceback", "execution_count"]


@given(st.sampled_from(sorted(OUTPUTS)), st.dictionaries(st.sampled_from(KEYS), JSON_VALUES))
def test_any_content_makes_a_clean_output_or_none(msg_type: str, content: dict[str, Any]) -> None:
    output = output_of(Message(msg_type, "p", content))

    if output is not None:
        assert from_json(json.loads(json.dumps(to_json(output)))) == output


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        ({"text/plain": "x"}, {"text/plain": "x"}),
        ({"text/plain": ["a", "b"]}, {"text/plain": "ab"}),
        ({"text/plain": 5}, {}),
        ({"text/plain\r\nX: y": "x"}, {}),
        ({"text": "x", "": "y", "/": "z"}, {}),
        ({"image/png": "aGk=\n"}, {"image/png": "aGk=\n"}),
        ({"image/png": "<script>"}, {}),
        ({"image/svg+xml": "<svg/>"}, {"image/svg+xml": "<svg/>"}),
        ({"application/json": {"a": [1]}}, {"application/json": {"a": [1]}}),
        ({"application/vnd.plotly.v1+json": {"data": []}}, {"application/vnd.plotly.v1+json": {"data": []}}),
        ({"application/vnd.vegalite.v6.json": {}}, {"application/vnd.vegalite.v6.json": {}}),
        ("nonsense", {}),
    ],
)
def test_mime_bundle(data: object, kept: dict[str, Any]) -> None:
    assert mime_bundle(data) == kept


def test_tracebacks_lose_their_colours_and_their_excess() -> None:
    content = {"ename": "E", "evalue": "\x1b[31mred\x1b[0m", "traceback": ["\x1b[1mbold\x1b[0m"] * 10_000}

    output = output_of(Message("error", "p", content))

    assert isinstance(output, ErrorOutput)
    assert output.evalue == "red"
    assert len(output.traceback) == 201
    assert output.traceback[0] == "bold"


@pytest.mark.parametrize("lines", [["x" * 65_536] * 200, ["x" * 10**7], [{"a": ["x" * 10**6]}] * 3])
def test_a_traceback_is_bounded_in_sum_and_keeps_its_first_and_last_lines(lines: list[Any]) -> None:
    content = {"ename": "E", "evalue": "v", "traceback": ["first", *lines, "last"]}

    output = output_of(Message("error", "p", content))

    assert isinstance(output, ErrorOutput)
    assert (output.traceback[0], output.traceback[-1]) == ("first", "last")
    assert sum(map(len, output.traceback)) < MAX_TRACEBACK + 1000


def test_a_traceback_says_how_many_lines_are_missing() -> None:
    output = output_of(Message("error", "p", {"traceback": ["x" * 65_536] * 200}))

    assert isinstance(output, ErrorOutput)
    assert f"… {200 - (len(output.traceback) - 1)} lines left out …" in output.traceback


def test_two_huge_lines_are_cut_not_dropped() -> None:
    content = {"ename": "E", "evalue": "v", "traceback": ["a" * 10**7, "b" * 10**7]}

    output = output_of(Message("error", "p", content))

    assert isinstance(output, ErrorOutput)
    assert [line[0] + line[-1] for line in output.traceback] == ["aa", "bb"]
    assert sum(map(len, output.traceback)) < MAX_TRACEBACK + 10


@pytest.mark.parametrize(
    ("value", "least"),
    [
        ([{}] * 1000, 64_000),
        ([[]] * 1000, 64_000),
        ([0] * 1000, 32_000),
        ([""] * 1000, 64_000),
        ({str(n): None for n in range(1000)}, 64_000),
        ("x" * 1000, 1000),
        (10**3000, 1000),
    ],
)
def test_what_is_costly_to_read_is_charged_for(value: object, least: int) -> None:
    assert size_of(to_json(DisplayOutput({"application/json": value}))) >= least
    assert size_of(to_json(ResultOutput({}, {"m": value}))) >= least


def test_depth_is_no_limit_to_counting() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]

    assert size_of({"data": {"application/json": value}}) > 100_000


def test_outputs_survive_json() -> None:
    for output in (
        StreamOutput("stderr", "x"),
        DisplayOutput({"image/png": "aGk="}, {"m": 1}, "id", ("a.png",)),
        ResultOutput({"text/plain": "1"}, {}, 4),
        ErrorOutput("E", "v", ("a", "b")),
    ):
        assert from_json(json.loads(json.dumps(to_json(output)))) == output
