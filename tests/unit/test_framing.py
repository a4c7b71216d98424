"""Both framings of the Jupyter WebSocket: what is put in comes out, and anything odd is refused."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kernelpool.protocol import framing
from kernelpool.protocol.framing import (
    CHANNELS,
    WireMessage,
    decode_legacy,
    decode_v1,
    encode_legacy,
    encode_v1,
    parse_legacy,
    read_head,
    wire_of,
)
from kernelpool.protocol.messages import ProtocolError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
objects = st.dictionaries(st.text(), json_values, max_size=4).map(lambda value: json.dumps(value).encode())
headers = st.builds(
    lambda id, kind: json.dumps({"msg_id": id, "msg_type": kind, "session": "s"}).encode(),
    st.text(min_size=1, max_size=50),
    st.sampled_from(["stream", "comm_msg"]),
)
messages = st.builds(
    WireMessage,
    st.sampled_from(CHANNELS),
    headers,
    objects,
    objects,
    objects,
    st.lists(st.binary(max_size=20), max_size=4).map(tuple),
)


def meaning(message: WireMessage) -> tuple[Any, ...]:
    parts = (message.header, message.parent_header, message.metadata, message.content)
    return (message.channel, *map(json.loads, parts), message.buffers)


@given(messages)
def test_v1_brings_back_every_byte(message: WireMessage) -> None:
    assert decode_v1(encode_v1(message)) == message


@given(messages)
def test_legacy_brings_back_what_was_meant(message: WireMessage) -> None:
    frame = encode_legacy(message)

    assert isinstance(frame, str) is not bool(message.buffers)
    assert meaning(decode_legacy(frame)) == meaning(message)


@given(messages)
def test_legacy_repeats_what_clients_look_for_at_the_top(message: WireMessage) -> None:
    fields, _ = parse_legacy(encode_legacy(message))

    head = read_head(message.header)
    assert (fields["msg_id"], fields["msg_type"], fields["buffers"]) == (head.msg_id, head.msg_type, [])


@given(messages)
def test_clients_that_break_at_binary_get_text(message: WireMessage) -> None:
    frame = encode_legacy(message, binary=False)

    assert isinstance(frame, str)
    assert decode_legacy(frame).buffers == ()


def test_v1_is_as_jupyter_server_writes_it() -> None:
    message = WireMessage("shell", b"{1}", b"{2}", b"{3}", b"{4}", (b"buffer",))

    frame = encode_v1(message)

    # jupyter_server: serialize_msg_to_ws_v1
    offsets = [8 * (7 + 1), 69, 72, 75, 78, 81, 87]
    assert frame == struct.pack("<8Q", 7, *offsets) + b"shell{1}{2}{3}{4}buffer"


@given(st.binary(max_size=200))
@example(b"")
@example(struct.pack("<Q", 2**63))
@example(struct.pack("<3Q", 2, 24, 24))
@example(struct.pack(">2I", 1, 2**31))
def test_arbitrary_bytes_are_a_protocol_error_or_a_message(frame: bytes) -> None:
    for decode in (decode_v1, decode_legacy):
        with suppress(ProtocolError):
            assert decode(frame).channel in CHANNELS


@given(messages, st.data())
def test_a_damaged_frame_never_reads_beyond_itself(message: WireMessage, data: st.DataObject) -> None:
    frame = bytearray(encode_v1(message))
    frame[data.draw(st.integers(0, 8 * (7 + len(message.buffers)) - 1))] ^= data.draw(st.integers(1, 255))

    try:
        damaged = decode_v1(bytes(frame))
    except ProtocolError:
        return
    assert damaged.size + len(damaged.channel) <= len(frame)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"channel": "hb"},
        {"channel": ["shell"]},
        {"channel": "shell", "header": []},
        {"channel": "shell", "header": {"x": float("nan")}},
    ],
)
def test_what_is_no_message_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        wire_of(fields)


@pytest.mark.parametrize("text", ["", "[]", "nul", "{" * 10**6, '{"channel": 1}'])
def test_text_that_is_no_message_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        decode_legacy(text)


@pytest.mark.parametrize(
    "header",
    [b"", b"{}", b"[]", b'{"msg_id":1,"msg_type":"x"}', b'{"msg_id":"","msg_type":"x"}', b'{"msg_id":"' + b"x" * 300],
)
def test_a_header_without_its_names_is_refused(header: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_head(header)


def test_too_many_buffers_and_too_many_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    many = WireMessage("shell", b"{}", b"{}", b"{}", b"{}", (b"",) * (framing.MAX_BUFFERS + 1))
    with pytest.raises(ProtocolError):
        decode_v1(encode_v1(many))

    monkeypatch.setattr(framing, "MAX_FRAME", 100)
    large = encode_v1(WireMessage("shell", b"{}", b"{}", b"{}", b'"' + b"x" * 100 + b'"'))
    with pytest.raises(ProtocolError):
        decode_v1(large)
