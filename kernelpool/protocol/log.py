"""The events of one execution within a budget: the head stays, the tail rolls, what falls between is counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kernelpool.models import Event, EventKind
from kernelpool.protocol.outputs import left_out, size_of

PIECE = 64 << 10
"""Longer text is logged in pieces (smaller ones under a small budget), so that the tail can roll in small steps."""
ENTRY = 500
"""Bytes of memory that an event takes besides what is in it."""


@dataclass(frozen=True, slots=True)
class _Entry:
    event: Event
    size: int


class EventLog:
    """Append-only from outside; every reader keeps its own position (a seq), so readers cost no queue.

    Two kinds of entry make earlier ones void, and those are forgotten at once, which is what keeps animations and
    progress bars small: an update replaces the last update of the same display, a clear takes all outputs before it.
    A reader that was behind simply never sees them.
    """

    def __init__(self, max_bytes: int, max_events: int = 20_000) -> None:
        self._half_bytes = max_bytes // 2
        self._half_events = max_events // 2
        self._piece = max(1, min(PIECE, self._half_bytes // 16))
        self._head: list[_Entry] = []
        self._tail: deque[_Entry] = deque()
        self._head_bytes = 0
        self._tail_bytes = 0
        self._head_full = False
        self._clear_pending = False
        self._updated: set[str] = set()
        self.next_seq = 0
        self.dropped_bytes = 0
        self._gap_seq = -1  # last seq that was dropped from the tail

    @property
    def size(self) -> int:
        """Of the budget."""
        return self._head_bytes + self._tail_bytes

    @property
    def memory(self) -> int:
        """About the bytes that it takes: a log of many small events takes more than its size."""
        return self.size + ENTRY * (len(self._head) + len(self._tail))

    def state(self, state: str) -> None:
        self._append("state", {"state": state}, 16)

    def output(self, output: dict[str, Any]) -> None:
        """`output` as made by `outputs.to_json`."""
        if self._clear_pending:
            # Said again, and without `wait`: a reader may have taken what was shown before, and will find no event
            # between that and this output.
            self.clear_output(wait=False)
        text = output.get("text")
        if isinstance(text, str) and len(text) > self._piece:
            self._long_text(output, text)
        else:
            self._append("output", *self._fitting(output))

    def _long_text(self, output: dict[str, Any], text: str) -> None:
        room = 0 if self._head_full else self._half_bytes - self._head_bytes
        middle = len(text) - room - self._half_bytes
        if middle > 0:  # neither fits the head nor would survive in the tail: never cut into pieces
            self._pieces(output, text[:room])
            self._skip(middle)
            text = text[-self._half_bytes :]
        self._pieces(output, text)

    def _pieces(self, output: dict[str, Any], text: str) -> None:
        for start in range(0, len(text), self._piece):
            piece = text[start : start + self._piece]
            self._append("output", {**output, "text": piece}, len(piece))

    def _skip(self, size: int) -> None:
        self._head_full = True
        self.dropped_bytes += size
        self._gap_seq = self.next_seq
        self.next_seq += 1

    def update_display(self, display_id: str, data: dict[str, Any], metadata: dict[str, Any], files: list[str]) -> None:
        if display_id in self._updated or len(self._updated) >= self._half_events:
            self._forget(lambda event: event.kind == "update_display" and event.data["display_id"] == display_id)
        if len(self._updated) < self._half_events:
            self._updated.add(display_id)
        body = {"display_id": display_id, "data": data, "metadata": metadata, "files": files}
        self._append("update_display", *self._fitting(body))

    def clear_output(self, wait: bool) -> None:
        if wait:
            if self._clear_pending:
                return
            self._clear_pending = True
        else:
            self._clear_pending = False
            self._forget_outputs()
        self._append("clear_output", {"wait": wait}, 16)

    def after(self, seq: int) -> Iterator[Event]:
        """Retained events with a greater seq; one `gap` stands where some were dropped for want of budget."""
        for entry in self._head:
            if entry.event.seq > seq:
                yield entry.event
        if self._gap_seq > seq:
            yield Event(self._gap_seq, "gap", {"dropped_bytes": self.dropped_bytes})
        for entry in self._tail:
            if entry.event.seq > seq:
                yield entry.event

    def _fitting(self, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """The body, or a note in its place when it is too large, and what that takes of the budget. The only place
        that decides what is too large."""
        size = size_of(body)
        if size <= self._half_bytes:
            return body, size
        self.dropped_bytes += size
        body = left_out(body, f"[an output of {size} bytes was left out: the limit is {self._half_bytes}]")
        return body, size_of(body)

    def _append(self, kind: EventKind, data: dict[str, Any], size: int) -> None:
        entry = _Entry(Event(self.next_seq, kind, data), size)
        self.next_seq += 1
        if not self._head_full:
            if self._head_bytes + size <= self._half_bytes and len(self._head) < self._half_events:
                self._head.append(entry)
                self._head_bytes += size
                return
            self._head_full = True
        self._tail.append(entry)
        self._tail_bytes += size
        while self._tail and (self._tail_bytes > self._half_bytes or len(self._tail) > self._half_events):
            gone = self._tail.popleft()
            self._tail_bytes -= gone.size
            self.dropped_bytes += gone.size
            self._gap_seq = gone.event.seq
            if gone.event.kind == "update_display":
                self._updated.discard(gone.event.data["display_id"])

    def _forget_outputs(self) -> None:
        self._forget(lambda event: event.kind in ("output", "update_display", "clear_output"))
        self._updated.clear()
        self.dropped_bytes = 0
        self._gap_seq = -1
        self._head_full = bool(self._tail)

    def _forget(self, void: Callable[[Event], bool]) -> None:
        self._head = [entry for entry in self._head if not void(entry.event)]
        self._tail = deque(entry for entry in self._tail if not void(entry.event))
        self._head_bytes = sum(entry.size for entry in self._head)
        self._tail_bytes = sum(entry.size for entry in self._tail)
