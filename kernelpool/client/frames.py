"""Server-Sent Events as they come in: chunks of bytes → frames. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kernelpool.client.errors import UnexpectedAnswer


@dataclass(frozen=True, slots=True)
class Frame:
    kind: str
    data: bytes
    id: str | None


class FrameReader:
    """Feed it what arrives; it gives what is complete. One frame may have `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """Raises `UnexpectedAnswer` when the other side sends one without an end."""
        self._buffer += chunk
        while (end := self._buffer.find(b"\n\n", self._searched)) >= 0:
            frame = _frame(bytes(self._buffer[:end]))
            del self._buffer[: end + 2]
            self._searched = 0
            if frame is not None:
                yield frame
        self._searched = max(0, len(self._buffer) - 1)
        if len(self._buffer) > self._limit:
            raise UnexpectedAnswer(f"an event is larger than {self._limit} bytes")


def _frame(text: bytes) -> Frame | None:
    """None for a comment, which only keeps the connection alive. The gateway ends lines with \\n alone."""
    kind, id, data = "message", None, []
    for line in text.split(b"\n"):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            kind = value.decode(errors="replace")
        elif name == b"id":
            id = value.decode(errors="replace")
        elif name == b"data":
            data.append(value)
    return Frame(kind, b"\n".join(data), id) if data else None
