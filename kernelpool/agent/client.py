"""One connection of a Jupyter client: a position in the ring, and one up to which all has arrived."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from kernelpool.agent.frames import own_frame
from kernelpool.protocol.framing import decode_v1, read_head
from kernelpool.protocol.ring import Entry, Ring

A_TURN = 50
"""Frames handed over before others on the loop get a turn."""


class Client:
    """One connection. `key` is its session id, or something random where it has none: then it cannot come back."""

    def __init__(self, key: str, ring: Ring, position: int, handed: int, *, can_return: bool) -> None:
        self.key = key
        self.can_return = can_return
        self.replaced = False
        """A newer connection has taken its place."""
        self._ring = ring
        # The mutable state: the next entry to hand over, the next one that is not known to have arrived, and what was
        # handed over in between. An entry below `_handed_before` was handed to an earlier connection.
        self._position = self.confirmed = position
        self._handed_before = handed
        self._unconfirmed: deque[int] = deque(maxlen=10_000)
        self._handed_count = 0
        self._missed = 0
        self._news = asyncio.Event()

    @property
    def handed(self) -> int:
        return max(self._position, self._handed_before)

    def tell(self) -> None:
        """There is something new."""
        self._news.set()

    def replace(self) -> None:
        self.replaced = True
        self._news.set()

    def confirm(self, count: int) -> None:
        """The first `count` frames of this connection have arrived. Nonsense changes nothing."""
        first = self._handed_count - len(self._unconfirmed)
        for _ in range(min(count, self._handed_count) - first):
            self.confirmed = self._unconfirmed.popleft()

    async def frames(self) -> AsyncIterator[bytes]:
        """All that it is to be told, until it is replaced."""
        turn = 0
        while not self.replaced:
            self._news.clear()
            while self._position < self._ring.stop and not self.replaced:
                if (frame := self._next()) is None:
                    continue
                self._unconfirmed.append(self._position)
                self._handed_count += 1
                yield frame
                if (turn := turn + 1) % A_TURN == 0:
                    await asyncio.sleep(0)
            if not self.replaced and self._position >= self._ring.stop:
                await self._news.wait()

    def _next(self) -> bytes | None:
        """The next frame for it, or None if what is next is for somebody else or gone."""
        first = self._ring.first(self._position)
        self._missed += first - self._position
        self._position = first
        if first == self._ring.stop:
            return None
        entry = self._ring.get(first)
        if self._missed and entry.target in (None, self.key):
            missed, self._missed = self._missed, 0
            return _loss_note(missed, entry)
        self._position += 1
        if entry.target not in (None, self.key) or (entry.once and self._position <= self._handed_before):
            return None
        return entry.frame


def _loss_note(missed: int, after: Entry) -> bytes:
    """Said where the messages are missing, as output of what is told next: that is where somebody may see it."""
    told = decode_v1(after.frame)
    text = f"\n[{missed} messages of the kernel were left out: this client read more slowly than they came]\n"
    content, session = {"name": "stderr", "text": text}, read_head(told.header).session
    return own_frame("iopub", "stream", content, told.parent_header, session)[1]
