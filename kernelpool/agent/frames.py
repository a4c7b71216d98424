"""Frames for Jupyter clients: what the kernel said, and what the agent says itself."""

from __future__ import annotations

import json
import secrets
import time
from datetime import UTC, datetime
from typing import Any

from kernelpool.protocol.framing import MAX_FRAME, WireMessage, encode_v1
from kernelpool.protocol.messages import PROTOCOL_VERSION, Message

MOST = MAX_FRAME - (1 << 20)
"""Bytes of content and buffers: the rest of a frame needs room as well."""


def frame_of(channel: str, message: Message) -> bytes:
    header, parent, metadata, content = message.relayed()
    buffers = message.buffers
    size = len(content) + sum(map(len, buffers))
    if size > MOST:
        note = f"[a message of {size} bytes was left out: the limit is {MOST}]"
        content, buffers = json.dumps(_note(note)).encode(), ()
    return encode_v1(WireMessage(channel, header, parent, metadata, content, buffers))


def own_frame(channel: str, msg_type: str, content: dict[str, Any], parent: bytes, session: str) -> tuple[str, bytes]:
    """`session` is the kernel's. Clients take another one for a restart, and drop what they have not handled yet."""
    msg_id = secrets.token_hex(16)
    header = {
        "msg_id": msg_id,
        "msg_type": msg_type,
        "username": "kernelpool",
        "session": session,
        "date": datetime.fromtimestamp(time.time(), UTC).isoformat(),
        "version": PROTOCOL_VERSION,
    }
    parts = (json.dumps(part, separators=(",", ":")).encode() for part in (header, content))
    head, body = parts
    return msg_id, encode_v1(WireMessage(channel, head, parent, b"{}", body))


def error(why: str, ename: str) -> dict[str, Any]:
    """The content of a reply that is an error."""
    return {"status": "error", "ename": ename, "evalue": why, "traceback": [f"{ename}: {why}"]}


def _note(text: str) -> dict[str, Any]:
    """A content that says so in whatever type of message it stands."""
    shown = {"data": {"text/plain": text}, "metadata": {}, "name": "stderr", "text": text}
    return {**shown, "status": "error", "ename": "Error", "evalue": text, "traceback": [text]}
