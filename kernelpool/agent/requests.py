"""Requests of Jupyter clients that have no answer yet: whose each is, and how much of them there may be."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from kernelpool.protocol.framing import Head

MAX_OPEN = 2000
MAX_OPEN_BYTES = 128 << 20
"""Of the messages: the kernel holds what it has not come to, in memory that is the session's."""


@dataclass(frozen=True, slots=True)
class Request:
    """A message of a client, as long as it has no answer."""

    client: str
    channel: str
    head: Head
    header: bytes
    """As it came: the parent of what we say about it ourselves."""
    size: int = 0
    """Of the whole message, in bytes."""

    @property
    def is_answered(self) -> bool:
        """Whether a reply is its end; of the others (comms) it is the idle status."""
        return self.head.msg_type.endswith("_request")


class Requests:
    """By their ids, oldest first."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, Request] = OrderedDict()
        self._unanswered: OrderedDict[str, None] = OrderedDict()  # of those the ones that the kernel is done with
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._open.values()))

    def get(self, msg_id: str) -> Request | None:
        return self._open.get(msg_id)

    def add(self, request: Request) -> bool:
        """False when there are too many."""
        if len(self._open) >= MAX_OPEN and self._unanswered:
            # A reply comes a moment after the idle status at most: to this one none will.
            self.close(self._open[next(iter(self._unanswered))])
        if len(self._open) >= MAX_OPEN or (self._open and self._bytes + request.size > MAX_OPEN_BYTES):
            return False
        self._open[request.head.msg_id] = request
        self._bytes += request.size
        return True

    def idle(self, request: Request) -> None:
        """The kernel is done with it; a reply may still be on its way."""
        if request.is_answered:
            self._unanswered[request.head.msg_id] = None
        else:
            self.close(request)

    def close(self, request: Request) -> bool:
        """False when it was closed before."""
        if self._open.get(request.head.msg_id) is not request:
            return False
        del self._open[request.head.msg_id]
        self._unanswered.pop(request.head.msg_id, None)
        self._bytes -= request.size
        return True

    def forget(self, client: str) -> None:
        """It will not come back for its answers."""
        for request in self:
            if request.client == client:
                self.close(request)
