"""What Jupyter clients are told, in order, within a budget. Readers keep positions: a slow one holds up nobody.

Outputs make room first: a client that lost some goes on, one that never hears of an end waits for ever.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

ENTRY = 400
"""Bytes of memory that an entry takes besides its frame."""
VITAL_BYTES = 64 << 10
"""What is longer is no vital message, whatever it says of itself."""


@dataclass(frozen=True, slots=True)
class Entry:
    frame: bytes
    msg_id: str
    target: str | None = None
    """The client that it is for; None for all."""
    vital: bool = False
    """A client that never hears of it waits for ever: replies, states."""
    once: bool = False
    """Not told again to a client that it was handed to, though it may not have arrived: told twice it would do harm."""

    @property
    def memory(self) -> int:
        return len(self.frame) + ENTRY


@dataclass(slots=True)
class _Line:
    """Numbers of entries that share a budget, oldest first. The newest always stays, whatever its size."""

    max_bytes: int
    max_entries: int
    memory: int = 0
    numbers: deque[int] = field(default_factory=deque)

    @property
    def is_over(self) -> bool:
        return len(self.numbers) > 1 and (self.memory > self.max_bytes or len(self.numbers) > self.max_entries)


class Ring:
    """The newest entries, numbered from 0 on. Vital ones have a quarter of the bytes for themselves."""

    def __init__(self, max_bytes: int, max_entries: int) -> None:
        self._outputs = _Line(max_bytes - max_bytes // 4, max_entries)
        self._vital = _Line(max_bytes // 4, max_entries)
        self._entries: dict[int, Entry] = {}
        self.stop = 0
        """The number that the next entry gets."""

    def __repr__(self) -> str:
        return f"<Ring [{len(self._entries)} entries before {self.stop}, {self.memory} bytes]>"

    @property
    def memory(self) -> int:
        return self._outputs.memory + self._vital.memory

    def append(self, entry: Entry) -> None:
        line = self._vital if entry.vital and len(entry.frame) <= VITAL_BYTES else self._outputs
        self._entries[self.stop] = entry
        line.numbers.append(self.stop)
        line.memory += entry.memory
        self.stop += 1
        while line.is_over:
            line.memory -= self._entries.pop(line.numbers.popleft()).memory

    def clear(self) -> None:
        """Nobody reads it any more."""
        self._entries.clear()
        for line in (self._outputs, self._vital):
            line.numbers.clear()
            line.memory = 0

    def first(self, number: int) -> int:
        """Of the entries that are here the first from `number` on; `stop` when there is none."""
        found = self.stop
        for line in (self._outputs, self._vital):
            if (place := bisect_left(line.numbers, number)) < len(line.numbers):
                found = min(found, line.numbers[place])
        return found

    def get(self, number: int) -> Entry:
        """One that is here."""
        return self._entries[number]

    def find(self, msg_id: str) -> int | None:
        """The number of the newest message with this id."""
        for number, entry in reversed(self._entries.items()):
            if entry.msg_id == msg_id:
                return number
        return None
