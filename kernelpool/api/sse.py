"""Server-Sent Events: how one is written, and how a client says where it left off."""

from __future__ import annotations

from kernelpool.errors import InvalidRequest

CONTENT_TYPE = "text/event-stream"
KEEP_ALIVE = b": keep-alive\n\n"


def frame(kind: str, data: bytes, seq: int | None = None) -> bytes:
    """One event. `data` is JSON, so it has no line breaks."""
    head = f"id: {seq}\n" if seq is not None else ""
    return f"{head}event: {kind}\n".encode() + b"data: " + data + b"\n\n"


def is_wanted(accept: str) -> bool:
    return any(part.partition(";")[0].strip().lower() == CONTENT_TYPE for part in accept.split(","))


def last_event_id(header: str | None) -> int:
    """The `seq` that a client has seen last; -1 for none. Raises `InvalidRequest`."""
    if header is None or not header.strip():
        return -1
    text = header.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise InvalidRequest("Last-Event-ID must be the id of an event that this execution sent")
    return int(text)
