"""Host users for sandboxes: a distinct one each, and none used again before all others have been."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable

from kernelpool.errors import StartFailed


class Uids:
    """`first` to `last`, inclusive. In any order, so that a restart does not bring the last ones back, and another
    gateway with the same range is hardly in the way."""

    def __init__(self, first: int, last: int) -> None:
        ids = range(first, last + 1)
        self._free = deque(random.sample(ids, len(ids)))
        self._taken: set[int] = set()

    def __repr__(self) -> str:
        return f"<Uids [{len(self._free)} free, {len(self._taken)} taken]>"

    def take(self) -> int:
        """Raises `StartFailed` when there is none left."""
        if not self._free:
            raise StartFailed(f"all {len(self._taken)} user ids for sandboxes are taken")
        uid = self._free.popleft()
        self._taken.add(uid)
        return uid

    def claim(self, uids: Iterable[int]) -> None:
        """Takes those of adopted sandboxes."""
        claimed = set(uids)
        self._taken |= claimed
        self._free = deque(uid for uid in self._free if uid not in claimed)

    def give_back(self, uid: int) -> None:
        if uid in self._taken:
            self._taken.remove(uid)
            self._free.append(uid)
