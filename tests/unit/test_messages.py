"""Frames ↔ messages: what honest kernels send is read, what others send is refused."""

from __future__ import annotations

import hashlib
import hmac
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.session import Session

from kernelpool.protocol.messages import DELIMITER, MAX_CONTENT, MAX_HEADER, MAX_ITEMS, Codec, Message, ProtocolError

KEY = b"key"


def frames_of(*parts: bytes, key: bytes = KEY) -> list[bytes]:
    """Signed as a kernel would."""
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts[:4]:
        mac.update(part)
    return [b"topic", DELIMITER, mac.hexdigest().encode(), *parts]


def header(**fields: object) -> bytes:
    return json.dumps({"msg_id": "m", "msg_type": "stream", **fields}).encode()


def decode_content(content: bytes) -> Message:
    return Codec(KEY, "s").decode(frames_of(header(), b"{}", b"{}", content))


def test_jupyter_client_reads_our_requests() -> None:
    session = Session(key=KEY, check_pid=False)
    frames = Codec(KEY, "s").encode("execute_request", {"code": "é"}, msg_id="m1", date="2026-01-01T00:00:00+00:00")

    _, parts = session.feed_identities(frames)
    message = session.deserialize(parts)

    assert (message["msg_type"], message["content"]["code"]) == ("execute_request", "é")


def test_we_read_what_jupyter_client_writes() -> None:
    session = Session(key=KEY, check_pid=False)
    request = session.msg("execute_request")
    message = session.msg("stream", {"name": "stdout", "text": "hé\x00"}, parent=request)

    decoded = Codec(KEY, "s").decode([b"t", *session.serialize(message), b"buffer"])

    assert decoded.content == {"name": "stdout", "text": "hé\x00"}
    assert decoded.parent_id == request["header"]["msg_id"]


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [DELIMITER],
        [DELIMITER, b"sig", b"{}"],
        [b"x"] * 100,
        frames_of(header(), b"{}", b"{}", b"{}", key=b"other"),
        frames_of(b"[]", b"{}", b"{}", b"{}"),
        frames_of(b"nonsense", b"{}", b"{}", b"{}"),
        frames_of(b'{"msg_id": "m"}', b"{}", b"{}", b"{}"),
        frames_of(header(msg_type=5), b"{}", b"{}", b"{}"),
        frames_of(header(msg_type="x" * 300), b"{}", b"{}", b"{}"),
        frames_of(header(), b'{"msg_id": []}', b"{}", b"{}"),
        frames_of(header(), b"{}", b"{}", b"[" * 200_000 + b"]" * 200_000),
        frames_of(header(), b"{}", b"{}", b'{"a":' * 5000 + b"1" + b"}" * 5000),
        frames_of(header(), b"{}", b"{}", b'{"a":' * 300 + b"1" + b"}" * 300),
        frames_of(header(), b"{}", b"{}", b'{"a": ' + b"9" * 5000 + b"}"),
    ],
)
def test_anything_odd_is_a_protocol_error(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        Codec(KEY, "s").decode(frames)


def test_what_json_cannot_say_becomes_null() -> None:
    decoded = decode_content(b'{"a": NaN, "b": Infinity, "c": 1e999, "d": -1e999, "e": 1.5}')

    assert decoded.content == {"a": None, "b": None, "c": None, "d": None, "e": 1.5}


def test_lone_surrogates_and_bad_utf8_are_replaced() -> None:
    decoded = decode_content(b'{"a": "x\\ud800y", "b": "\\ud83d\\ude00", "c": "\xff"}')

    assert decoded.content == {"a": "x\ufffdy", "b": "😀", "c": "\ufffd"}
    json.dumps(decoded.content, ensure_ascii=False).encode()


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_no_bytes_make_it_raise_anything_else(parts: list[bytes]) -> None:
    padded = [*parts, b"{}", b"{}", b"{}", b"{}"][:6]
    for frames in (parts, frames_of(*padded)):
        try:
            message = Codec(KEY, "s").decode(frames)
        except ProtocolError:
            continue
        assert isinstance(message.content, dict)


def test_a_content_too_large_to_be_read_is_replaced_by_a_note() -> None:
    content = b'{"data": {"text/html": "' + b"x" * MAX_CONTENT + b'"}}'

    message = decode_content(content)

    assert message.unread == len(content)
    assert "was left out" in message.content["data"]["text/plain"]


@pytest.mark.parametrize("part", [0, 1])
def test_no_header_is_large(part: int) -> None:
    parts = [header(), b"{}", b"{}", b"{}"]
    parts[part] = b'{"msg_id": "m", "msg_type": "stream", "x": "' + b"x" * MAX_HEADER + b'"}'

    with pytest.raises(ProtocolError, match="header of more than"):
        Codec(KEY, "s").decode(frames_of(*parts))


@pytest.mark.parametrize("item", [b"{}", b"[]", b"0", b'{"a":1}', b'""', rb'"\""'])
def test_a_content_of_too_many_things_is_replaced_by_a_note(item: bytes) -> None:
    content = b'{"data": {"application/json": [' + b",".join([item] * MAX_ITEMS) + b"]}}"

    message = decode_content(content)

    assert message.unread == len(content)
    assert f"the limit is {MAX_ITEMS} items" in message.content["data"]["text/plain"]


@pytest.mark.parametrize("text", [",", "[", r"\",", r"\\,"])
def test_what_stands_in_text_is_no_thing(text: str) -> None:
    content = f'{{"name": "stdout", "text": "{text * (MAX_ITEMS + 1)}", "more": [1]}}'.encode()

    message = decode_content(content)

    assert (message.unread, message.content) == (0, json.loads(content))


@pytest.mark.parametrize("end", [b"", b'"', b"\\", rb"\""])
def test_text_that_does_not_end_takes_no_longer_than_text_that_does(end: bytes) -> None:
    content = b'{"a": "' + rb"\"," * (4 * MAX_ITEMS) + end

    began = time.monotonic()
    with pytest.raises(ProtocolError):
        decode_content(content)

    assert time.monotonic() - began < 10  # what is quadratic takes an hour


def test_metadata_of_a_request_reaches_the_kernel() -> None:
    session = Session(key=KEY, check_pid=False)
    frames = Codec(KEY, "s").encode("execute_request", {}, msg_id="m", date="2026-01-01", metadata={"traceparent": "t"})

    message = session.deserialize(session.feed_identities(frames)[1])

    assert message["metadata"] == {"traceparent": "t"}
