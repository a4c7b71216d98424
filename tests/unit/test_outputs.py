"""Outputs made of what hostile code displays are always clean: right types, real MIME names, bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelpool.models import DisplayOutput, ErrorOutput, ResultOutput, StreamOutput
from kernelpool.protocol.messages import Message
from kernelpool.protocol.outputs import OUTPUTS, from_json, mime_bundle, output_of, to_json

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
KEYS = ["name", "text", "data", "metadata", "transient", "ename", "evalue", "traceback", "execution_count"]


@given(st.sampled_from(sorted(OUTPUTS)), st.dictionaries(st.sampled_from(KEYS), JSON_VALUES))
def test_any_content_makes_a_clean_output_or_none(msg_type: str, content: dict[str, Any]) -> None:
    output = output_of(Message("id", msg_type, "p", {}, {}, content))

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

    output = output_of(Message("id", "error", "p", {}, {}, content))

    assert isinstance(output, ErrorOutput)
    assert output.evalue == "red"
    assert len(output.traceback) == 201
    assert output.traceback[0] == "bold"


def test_outputs_survive_json() -> None:
    for output in (
        StreamOutput("stderr", "x"),
        DisplayOutput({"image/png": "aGk="}, {"m": 1}, "id", ("a.png",)),
        ResultOutput({"text/plain": "1"}, {}, 4),
        ErrorOutput("E", "v", ("a", "b")),
    ):
        assert from_json(json.loads(json.dumps(to_json(output)))) == output
