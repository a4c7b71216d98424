"""What real Jupyter clients send, as recorded, and what some of them cannot take."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelpool.api.jupyter.paths import is_jupyter
from kernelpool.api.jupyter.quirks import fitting, is_binary_safe, received
from kernelpool.protocol.framing import CHANNELS, WireMessage, encode_legacy, parse_legacy, read_head, read_object
from kernelpool.protocol.messages import ProtocolError

_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
NOW = 1_795_383_002.5
ISO = "2026-11-22T21:30:02.500000Z"


def frame(**changes: Any) -> str:
    header = {
        "msg_id": "m",
        "msg_type": "execute_request",
        "session": "s",
        "username": "",
        "version": "5.3",
        "date": "d",
    }
    fields: dict[str, Any] = {"parent_header": {}, "metadata": {}, "content": {}, "channel": "shell", "buffers": []}
    fields["header"] = {**header, **changes.pop("header", {})}
    fields.update(changes)
    return json.dumps({name: value for name, value in fields.items() if value is not ...})


@pytest.mark.parametrize(
    ("kind", "channel"),
    [
        ("execute_request", "shell"),
        ("complete_request", "shell"),
        ("comm_msg", "shell"),
        ("input_reply", "stdin"),
        ("interrupt_request", "control"),
        ("shutdown_request", "control"),
        ("debug_request", "control"),
        ("create_subshell_request", "control"),
    ],
)
@pytest.mark.parametrize("named", [..., None, "", "nonsense"])
def test_a_message_without_a_channel_goes_where_its_type_belongs(kind: str, channel: str, named: Any) -> None:
    assert received(frame(header={"msg_type": kind}, channel=named), NOW).channel == channel


def test_a_channel_that_is_named_is_believed() -> None:
    assert received(frame(channel="control"), NOW).channel == "control"


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        (NOW, ISO),  # GatewayKernelClient
        (None, ISO),  # smolagents
        (-1, ISO),
        (1e300, ISO),
        ({}, ISO),
        (True, "1970-01-01T00:00:01Z"),
    ],
)
def test_a_date_is_one(date: Any, expected: str) -> None:
    assert read_object(received(frame(header={"date": date}), NOW).header)["date"] == expected


def test_all_else_in_a_header_stays_as_it_is() -> None:
    message = received(frame(header={"subshell_id": "sub", "session": "", "version": "5.0", "more": [1]}), NOW)

    header = read_object(message.header)
    assert (header["subshell_id"], header["session"], header["version"], header["more"]) == ("sub", "", "5.0", [1])
    assert header["date"] == "d"


@pytest.mark.parametrize("buffers", [[], {}, None, ...])
def test_buffers_that_are_none_are_none(buffers: Any) -> None:
    assert received(frame(buffers=buffers), NOW).buffers == ()


def test_parts_may_be_missing_and_the_id_may_stand_beside_the_header() -> None:
    text = json.dumps({"header": {}, "msg_id": "m", "msg_type": "kernel_info_request"})

    message = received(text, NOW)

    assert read_head(message.header).msg_id == "m"
    assert (message.channel, message.parent_header, message.metadata, message.content) == ("shell", b"{}", b"{}", b"{}")


def test_buffers_of_a_binary_frame_are_kept() -> None:
    made = WireMessage(
        "shell", b'{"msg_id":"m","msg_type":"comm_msg","date":"d"}', b"{}", b"{}", b"{}", (b"\0\xff", b"")
    )

    assert received(encode_legacy(made), NOW).buffers == (b"\0\xff", b"")


@given(st.text() | st.binary())
def test_whatever_comes_is_a_message_or_a_protocol_error(text: str | bytes) -> None:
    with suppress(ProtocolError):
        assert received(text, NOW).channel in CHANNELS


@given(
    st.dictionaries(
        st.sampled_from(["header", "channel", "content", "metadata", "msg_id", "msg_type", "buffers"]), _json
    )
)
def test_whatever_json_comes_likewise(fields: dict[str, Any]) -> None:
    with suppress(ProtocolError):
        assert received(json.dumps(fields), NOW).channel in CHANNELS


def test_jupyter_server_as_a_client_gets_no_binary_frame() -> None:
    assert not is_binary_safe("Tornado/6.6.1")
    assert is_binary_safe("")
    assert is_binary_safe("node")


def output(content: Any, *buffers: bytes) -> WireMessage:
    header = b'{"msg_id":"m","msg_type":"display_data"}'
    return WireMessage("iopub", header, b'{"msg_id":"p"}', b'{"a":1}', json.dumps(content).encode(), buffers)


def test_what_fits_is_not_touched() -> None:
    message = output({"data": {"text/plain": "x"}}, b"y" * 2000)

    assert fitting(message, 1000) is message


@pytest.mark.parametrize(
    "content",
    [
        {"data": {"image/png": "x" * 2000, "text/plain": "y"}, "metadata": {"image/png": {}}, "transient": {}},
        {"data": {"text/plain": "\0" * 2000}, "execution_count": 3},
        {"name": "stdout", "text": "\u2603" * 2000},
        {"name": "stdout", "text": "\0" * 2000},
        {"status": "ok", "payload": ["x" * 2000]},
        {"anything": "x" * 2000},
    ],
)
def test_what_does_not_is_replaced_by_less(content: dict[str, Any]) -> None:
    short = fitting(output(content), 1000)

    assert len(encode_legacy(short)) < 2000
    fields, _ = parse_legacy(encode_legacy(short))
    assert fields["parent_header"] == {"msg_id": "p"}
    for name in ("name", "status", "execution_count"):
        assert fields["content"].get(name) == content.get(name)
    if "data" in content or "text" in content:
        assert "bytes of output left out: this client takes 1000 at once" in json.dumps(fields["content"])


@pytest.mark.parametrize(
    ("path", "is_ours"),
    [
        ("/", True),
        ("/api", True),
        ("/api/kernels/x/channels", True),
        ("/kernelspecs/a/b", True),
        ("/tree", True),
        ("/pools/a/jupyter", True),
        ("/pools/a/jupyter/", True),
        ("/pools/a/jupyter/api/kernels", True),
        ("/pools/a/jupyterx/api", False),
        ("/pools/a/executions", False),
        ("/pools", False),
        ("/apis", False),
        ("/metrics", False),
        ("", False),
    ],
)
def test_tokens_in_urls_count_on_this_surface_only(path: str, is_ours: bool) -> None:
    assert is_jupyter(path) is is_ours
