"""Both faces of the client behind one: the blocking one is used from threads, so that one suite is for both."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

from kernelpool.client import Client, Execution, Files, Pool, Session

_HANDLES = (Client, Execution, Files, Pool, Session)
_ASK_NOTHING = {"pool", "session", "execution"}


class Threaded:
    """A handle of the blocking face that looks like its twin on an event loop."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._handle, name)
        if not callable(value):
            return _wrapped(value)
        if name in _ASK_NOTHING:
            return lambda *args, **named: Threaded(value(*args, **named))
        if inspect.isgeneratorfunction(value) or name in ("stream", "stream_shell", "events"):
            return lambda *args, **named: _stepped(value(*args, **named))

        async def call(*args: Any, **named: Any) -> Any:
            return _wrapped(await asyncio.to_thread(value, *args, **named))

        return call

    async def __aenter__(self) -> Threaded:
        await asyncio.to_thread(self._handle.__enter__)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await asyncio.to_thread(self._handle.__exit__, *error)

    def __repr__(self) -> str:
        return repr(self._handle)


def _wrapped(value: Any) -> Any:
    return Threaded(value) if isinstance(value, _HANDLES) else value


async def _stepped(steps: Iterator[Any]) -> AsyncIterator[Any]:
    end = object()
    while (item := await asyncio.to_thread(next, steps, end)) is not end:
        yield item
