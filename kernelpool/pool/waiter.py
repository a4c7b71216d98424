"""A caller in the queue of a pool, who may have left when it is his turn."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Waiter(Generic[T]):
    """Giving and failing say whether the waiter accepted, so that nothing is given to somebody who has left."""

    def __init__(self) -> None:
        self._future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    async def wait(self) -> T:
        return await self._future

    def give(self, item: T) -> bool:
        if self._future.done():
            return False
        self._future.set_result(item)
        return True

    def fail(self, error: Exception) -> bool:
        if self._future.done():
            return False
        self._future.set_exception(error)
        return True

    def leave(self) -> T | None:
        """For a cancelled caller: what was given in the very tick in which he left, and is now somebody else's."""
        if self._future.cancel() or self._future.cancelled() or self._future.exception() is not None:
            return None
        return self._future.result()
