"""Jupyter messages ↔ ZMQ frames: signing, strict decoding. A kernel is hostile: anything odd is a ProtocolError.

Source of the rules: jupyter_client, docs/messaging.rst ("The Wire Protocol").
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DELIMITER = b"<IDS|MSG>"
PROTOCOL_VERSION = "5.4"
MAX_FRAMES = 1040
"""More than the buffers that a message may have: see `framing.MAX_BUFFERS`."""
MAX_HEADER = 64 << 10
MAX_DEPTH = 200
"""Nesting of JSON that is let through. Deeper than real output, shallower than what makes encoders recurse to death."""
MAX_CONTENT = 64 << 20
"""Bytes of content that are read, which takes five times that in memory: code that shows more must not get the agent
killed for want of it, and with it the session's files. No output of this size is kept anyway."""
MAX_ITEMS = 1_000_000
"""Things of a content that is read: lists, objects and what is in them. The shortest take two bytes there, and a
hundred once they are read."""


class ProtocolError(Exception):
    """A message that no honest kernel sends. It is dropped, whoever it was for."""


@dataclass(frozen=True, slots=True)
class Message:
    """What the execution machine and the routing want to know of a message, checked to be of its type."""

    msg_type: str
    parent_id: str
    """msg_id of the request that caused it, "" when none is named."""
    content: dict[str, Any]
    unread: int = 0
    """Bytes of a content that was too large to be read; a note stands in its place."""
    is_proper: bool = True
    """Whether every reader of JSON can read the content as it came."""
    msg_id: str = ""
    session: str = ""
    """Of its header: the same for all that a kernel says, another after a restart."""
    parts: tuple[bytes, ...] = ()
    """Header, parent header, metadata and content as they came."""
    buffers: tuple[bytes, ...] = ()

    def relayed(self) -> tuple[bytes, bytes, bytes, bytes]:
        """Its parts for clients, who are to see JSON whatever the kernel sent."""
        header, parent, metadata, content = self.parts
        return _proper(header), _proper(parent), _proper(metadata), self._content_for_clients(content)

    def _content_for_clients(self, raw: bytes) -> bytes:
        return raw if raw and self.is_proper else _dumps(self.content)


class Codec:
    """Signs and checks the messages of one kernel. Holds no socket, reads no clock."""

    def __init__(self, key: bytes, session: str) -> None:
        self._mac = hmac.new(key, digestmod=hashlib.sha256)
        self._session = session

    def encode(
        self,
        msg_type: str,
        content: dict[str, Any],
        *,
        msg_id: str,
        date: str,
        metadata: dict[str, Any] | None = None,
    ) -> list[bytes]:
        """Frames of a request. `date` is ISO 8601."""
        header = {
            "msg_id": msg_id,
            "msg_type": msg_type,
            "username": "kernelpool",
            "session": self._session,
            "date": date,
            "version": PROTOCOL_VERSION,
        }
        parts = [_dumps(header), b"{}", _dumps(metadata or {}), _dumps(content)]
        return [DELIMITER, self._sign(parts), *parts]

    def sign(self, parts: Sequence[bytes], buffers: Sequence[bytes] = ()) -> list[bytes]:
        """Frames of a message of somebody else, every byte of it unchanged."""
        return [DELIMITER, self._sign(parts), *parts, *buffers]

    def decode(self, frames: Sequence[bytes]) -> Message:
        """Raises `ProtocolError` for whatever is not a signed, well-formed message of sane depth."""
        if len(frames) > MAX_FRAMES:
            raise ProtocolError(f"{len(frames)} frames")
        try:
            start = frames.index(DELIMITER) + 1
            signature, *parts = frames[start : start + 5]
            raw_header, raw_parent, _raw_metadata, raw_content = parts
        except ValueError:
            raise ProtocolError("frames are missing") from None
        if not hmac.compare_digest(signature, self._sign(parts)):
            raise ProtocolError("wrong signature")
        if len(raw_header) > MAX_HEADER or len(raw_parent) > MAX_HEADER:
            raise ProtocolError(f"a header of more than {MAX_HEADER} bytes")
        header, parent = _loads(raw_header), _loads(raw_parent)
        too_much = _too_much(raw_content)
        content, is_proper = (_left_out(len(raw_content), too_much), False) if too_much else _read(raw_content)
        return Message(
            msg_type=_text(header, "msg_type"),
            parent_id=_text(parent, "msg_id") if parent else "",
            content=content,
            unread=len(raw_content) if too_much else 0,
            is_proper=is_proper,
            msg_id=_text(header, "msg_id"),
            session=session if isinstance(session := header.get("session"), str) else "",
            parts=tuple(parts),
            buffers=tuple(frames[start + 5 :]),
        )

    def _sign(self, parts: Sequence[bytes]) -> bytes:
        mac = self._mac.copy()
        for part in parts:
            mac.update(part)
        return mac.hexdigest().encode()


def _dumps(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _loads(raw: bytes) -> dict[str, Any]:
    return _read(raw)[0]


def _read(raw: bytes) -> tuple[dict[str, Any], bool]:
    """And whether every reader of JSON can read it as it is. Raises `ProtocolError`."""
    if raw == b"{}":
        return {}, True
    text, is_proper = _decode(raw)
    try:
        try:
            value = _STRICT.decode(text)
        except _OddNumberError:
            value, is_proper = _LENIENT.decode(text), False
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {type(error).__name__}") from None
    if not isinstance(value, dict):
        raise ProtocolError("not a JSON object")
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth_exceeds(value, MAX_DEPTH):
        raise ProtocolError(f"nested deeper than {MAX_DEPTH}")
    if "\\u" in text:
        return _without_surrogates(value), is_proper and _SURROGATE.search(text) is None
    return value, is_proper


def _decode(raw: bytes) -> tuple[str, bool]:
    try:
        return raw.decode(), True
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace"), False


def _proper(raw: bytes) -> bytes:
    """As it is if every reader of JSON can read it, else written anew."""
    if not raw:
        return b"{}"
    try:
        value, is_proper = _read(raw)
    except ProtocolError:
        return b"{}"
    return raw if is_proper else _dumps(value)


def _too_much(raw: bytes) -> str:
    """The limit that it exceeds, in words, or nothing."""
    if len(raw) > MAX_CONTENT:
        return f"{MAX_CONTENT} bytes"
    # Counting is quick, and few messages are long enough to need it. Text may be full of commas, though.
    if len(raw) > MAX_ITEMS and _items(raw) > MAX_ITEMS and _items(_STRINGS.sub(b"", raw)) > MAX_ITEMS:
        return f"{MAX_ITEMS} items"
    return ""


def _items(raw: bytes) -> int:
    return raw.count(b",") + raw.count(b"[") + raw.count(b"{")


def _left_out(size: int, limit: str) -> dict[str, Any]:
    """A content that says so in whatever type of message it stands. Of replies, only those on errors grow like this."""
    note = f"[an output of {size} bytes was left out: the limit is {limit}]"
    shown = {"data": {"text/plain": note}, "name": "stdout", "text": note}
    return {**shown, "status": "error", "ename": "Error", "evalue": note, "traceback": [note]}


class _OddNumberError(Exception):
    """NaN or an infinity, which are no JSON: clients would refuse the whole answer."""


def _no_constant(name: str) -> None:
    raise _OddNumberError(name)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _OddNumberError(text)
    return value


def _finite_or_none(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


# One that is not closed counts too: to fail there and try again from the next quote would take for ever.
_STRINGS = re.compile(rb'"(?>[^"\\]*(?:\\.[^"\\]*)*)"?', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_STRICT = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)
_LENIENT = json.JSONDecoder(parse_constant=lambda _name: None, parse_float=_finite_or_none)


def _depth_exceeds(value: Any, limit: int) -> bool:
    """Level by level: recursion here would be the attack."""
    level = [value]
    for _ in range(limit):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _without_surrogates(value: Any) -> Any:
    """Lone surrogates cannot be encoded as UTF-8: one would turn a whole answer into an error."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if not value.isascii() else value
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    return value


def _text(header: dict[str, Any], name: str) -> str:
    value = header.get(name)
    if not isinstance(value, str) or len(value) > 256:
        raise ProtocolError(f"{name} is no short string")
    return value
