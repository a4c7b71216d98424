"""Answers that come bit by bit, over as many connections as it takes: an execution's events, a file's bytes. No I/O.

A transport asks for the `call`, feeds what comes to `receive`, and tells the `end`. When a connection breaks it comes
back for another call, which goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from kernelpool.client.calls import EVENT_STREAM, Call, read
from kernelpool.client.errors import ConnectionBroken, UnexpectedAnswer, error_in
from kernelpool.client.frames import Frame, FrameReader
from kernelpool.client.results import Done, Event, event_of

T_co = TypeVar("T_co", covariant=True)


class Stream(Protocol[T_co]):
    @property
    def is_done(self) -> bool:
        """Nothing is missing, whatever happens to the connection now."""

    @property
    def repeatable(self) -> bool:
        """Another `call` would go on where this one broke."""

    def call(self) -> Call[Any]:
        """What to send now."""

    def receive(self, chunk: bytes) -> Iterable[T_co]:
        """Bytes of its answer. Raises `ClientError` when that is what they say."""

    def end(self) -> None:
        """The answer is complete. Raises `ConnectionBroken` when what it was about is not."""


class Watch:
    """One execution, as it happens. Code is submitted until the gateway has answered; from then on it is only asked
    about, with the id of the last event that was seen: it never runs twice, and no event is missed or told twice."""

    repeatable = True

    def __init__(self, submit: Call[Any] | None, look: Callable[[], Call[Any]], limit: int, after: int = -1) -> None:
        """`submit` is None for an execution that is there already; events up to `after` are known."""
        self._submit = submit
        self._look = look
        self._limit = limit
        self._last = after
        self._frames = FrameReader(limit)
        self.is_done = False

    def call(self) -> Call[Any]:
        self._frames = FrameReader(self._limit)
        call = self._look() if self._submit is None else self._submit
        return call if self._last < 0 else call.with_headers(Last_Event_ID=str(self._last))

    def receive(self, chunk: bytes) -> Iterator[Event]:
        self._submit = None
        for frame in self._frames.feed(chunk):
            event = self._read(frame)
            if event is not None and not self.is_done:
                self.is_done = isinstance(event, Done)
                yield event

    def end(self) -> None:
        if not self.is_done:
            raise ConnectionBroken("the stream of events ended before the execution did")

    def _read(self, frame: Frame) -> Event | None:
        if frame.kind == "error":
            raise read(lambda body: error_in(body, None), frame.data)
        if frame.id is not None:
            if not (frame.id.isascii() and frame.id.isdigit() and len(frame.id) <= 18):
                raise UnexpectedAnswer(f"an event has the id {frame.id[:40]!r}")
            self._last = int(frame.id)
        return read(lambda data: event_of(frame.kind, self._last, data), frame.data)


class Download:
    """The bytes of a file. One that broke off is not gone on with: the file may be another by now."""

    is_done = False

    def __init__(self, call: Call[Any]) -> None:
        self._call = call
        self.repeatable = True

    def call(self) -> Call[Any]:
        return self._call

    def receive(self, chunk: bytes) -> Iterator[bytes]:
        self.repeatable = False
        yield chunk

    def end(self) -> None:
        """That all announced bytes came, HTTP itself checks."""


def is_wanted(call: Call[Any], status: int, content_type: str) -> bool:
    """Whether an answer is the stream that was asked for. Another page would be read as no events at all."""
    is_events = content_type.startswith(EVENT_STREAM)
    return 200 <= status < 300 and (is_events or call.headers.get("Accept") != EVENT_STREAM)
