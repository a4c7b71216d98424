"""Jupyter messages ↔ WebSocket frames, in both framings, without I/O. Whoever sends a frame may be hostile.

Sources: jupyter_server, docs/source/developers/websocket-protocols.rst; its `services/kernels/connection/base.py`.
The parts of a message stay JSON bytes as they came: a relay reads headers only.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from kernelpool.protocol.messages import MAX_HEADER, ProtocolError

V1: Final = "v1.kernel.websocket.jupyter.org"
"""The subprotocol of the binary framing."""
CHANNELS: Final = ("shell", "iopub", "stdin", "control")
MAX_FRAME: Final = 64 << 20
"""Bytes of one frame, either way."""
MAX_BUFFERS: Final = 1024
_NAMES: Final = ("header", "parent_header", "metadata", "content")


@dataclass(frozen=True, slots=True)
class WireMessage:
    """A message on its channel. All parts but the buffers are JSON objects."""

    channel: str
    header: bytes
    parent_header: bytes
    metadata: bytes
    content: bytes
    buffers: tuple[bytes, ...] = ()

    @property
    def size(self) -> int:
        parts = (self.header, self.parent_header, self.metadata, self.content, *self.buffers)
        return sum(map(len, parts))


@dataclass(frozen=True, slots=True)
class Head:
    """What a relay wants to know of a header."""

    msg_id: str
    msg_type: str
    session: str
    subshell_id: str | None = None


def read_head(raw: bytes) -> Head:
    """Raises `ProtocolError` for what is no header."""
    header = read_object(raw, MAX_HEADER)
    subshell = header.get("subshell_id")
    return Head(
        _text(header, "msg_id"),
        _text(header, "msg_type"),
        _text(header, "session", optional=True),
        subshell if isinstance(subshell, str) and subshell else None,
    )


def read_object(raw: bytes, limit: int = MAX_FRAME) -> dict[str, Any]:
    """Raises `ProtocolError` for what is no JSON object of at most `limit` bytes."""
    if len(raw) > limit:
        raise ProtocolError(f"a part of more than {limit} bytes")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise ProtocolError("a part is not JSON") from None
    if not isinstance(value, dict):
        raise ProtocolError("a part is not a JSON object")
    return value


# --- v1: little-endian u64 count of offsets, the offsets, then channel, header, parent, metadata, content, buffers


def encode_v1(message: WireMessage) -> bytes:
    parts = (
        message.channel.encode(),
        message.header,
        message.parent_header,
        message.metadata,
        message.content,
        *message.buffers,
    )
    offset = 8 * (len(parts) + 2)
    offsets = [offset]
    for part in parts:
        offset += len(part)
        offsets.append(offset)
    return b"".join([struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets), *parts])


def decode_v1(frame: bytes) -> WireMessage:
    """Raises `ProtocolError` for whatever is no such frame. That its parts are JSON is for their readers to see."""
    parts = _split(frame, "<", "Q")
    if len(parts) < 1 + len(_NAMES):
        raise ProtocolError(f"a frame of {len(parts)} parts")
    channel = bytes(parts[0])
    if channel not in _CHANNELS:
        raise ProtocolError("a channel that is none")
    _, header, parent, metadata, content, *buffers = parts
    return WireMessage(_CHANNELS[channel], header, parent, metadata, content, tuple(buffers))


# --- legacy: JSON text; with buffers, big-endian u32 count of parts, their offsets, the JSON, the buffers


def encode_legacy(message: WireMessage, *, binary: bool = True) -> str | bytes:
    """`binary=False` leaves buffers out, for clients that break at a binary frame. Raises `ProtocolError`."""
    head = read_head(message.header)
    names = {"channel": message.channel, "msg_id": head.msg_id, "msg_type": head.msg_type, "buffers": []}
    # The kernel's own bytes between ours: what it wrote is neither read nor written again.
    text = b"".join(
        [
            b'{"header":',
            message.header,
            b',"parent_header":',
            message.parent_header or b"{}",
            b',"metadata":',
            message.metadata or b"{}",
            b',"content":',
            message.content or b"{}",
            b",",
            json.dumps(names).encode()[1:],
        ]
    )
    if not message.buffers or not binary:
        return text.decode("utf-8", "replace")
    parts = (text, *message.buffers)
    offset = 4 * (len(parts) + 1)
    if offset + sum(map(len, parts)) > 0xFFFFFFFF:
        raise ProtocolError("a message too large for its framing")
    offsets = []
    for part in parts:
        offsets.append(offset)
        offset += len(part)
    return b"".join([struct.pack(f">{len(parts) + 1}I", len(parts), *offsets), *parts])


def decode_legacy(frame: str | bytes) -> WireMessage:
    """Raises `ProtocolError` for whatever is no such frame, as strict as `decode_v1`."""
    return wire_of(*parse_legacy(frame))


def parse_legacy(frame: str | bytes) -> tuple[dict[str, Any], tuple[bytes, ...]]:
    """The JSON object and the buffers, for whoever mends what clients send before `wire_of`. Raises `ProtocolError`."""
    if isinstance(frame, str):
        return read_object(frame.encode("utf-8", "replace")), ()
    text, *buffers = _split(frame, ">", "I")
    return read_object(text), tuple(buffers)


def wire_of(fields: dict[str, Any], buffers: Sequence[bytes] = ()) -> WireMessage:
    """Raises `ProtocolError` when a part is missing or is none."""
    if fields.get("channel") not in CHANNELS:
        raise ProtocolError("a channel that is none")
    header, parent, metadata, content = (_dump(fields.get(name)) for name in _NAMES)
    return WireMessage(fields["channel"], header, parent, metadata, content, tuple(buffers))


def _dump(part: object) -> bytes:
    if part is None:
        return b"{}"
    if not isinstance(part, dict):
        raise ProtocolError("a part is not a JSON object")
    try:
        return json.dumps(part, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise ProtocolError("a part is not JSON") from None


def _split(frame: bytes, order: str, number: str) -> list[bytes]:
    """The parts of a binary frame. Raises `ProtocolError` unless its offsets rise and its last part ends it."""
    if len(frame) > MAX_FRAME:
        raise ProtocolError(f"a frame of more than {MAX_FRAME} bytes")
    width = struct.calcsize(order + number)
    if len(frame) < width:
        raise ProtocolError("a frame without its count")
    (count,) = struct.unpack_from(order + number, frame)
    start = width * (count + 1)
    if not 1 <= count <= MAX_BUFFERS + len(_NAMES) + 2 or start > len(frame):
        raise ProtocolError("a frame with an impossible count")
    offsets = list(struct.unpack_from(f"{order}{count}{number}", frame, width))
    if number == "I":  # the legacy framing names starts only
        offsets.append(len(frame))
    if offsets[0] != start or offsets[-1] != len(frame) or any(a > b for a, b in pairwise(offsets)):
        raise ProtocolError("a frame with impossible offsets")
    return [frame[a:b] for a, b in pairwise(offsets)]


def _text(header: dict[str, Any], name: str, *, optional: bool = False) -> str:
    value = header.get(name)
    if value is None and optional:
        return ""
    if not isinstance(value, str) or len(value) > 256 or not (value or optional):
        raise ProtocolError(f"{name} is no short string")
    return value


_CHANNELS: Final = {name.encode(): name for name in CHANNELS}
