"""Subshells (JEP 91) without a price for those who use none: threads, made when somebody asks for one.

ipykernel has a thread that reads the shell socket and hands each request on, which costs every one of them two hops.
Here requests to a subshell come on the control socket, whose thread is never busy, and their replies go back there.
The agent, our only client, knows that by `ON_CONTROL` among the supported features; its clients see JEP 91.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

ON_CONTROL = "kernelpool: subshells on control"
MOST = 16

Handle = Callable[[Any], Awaitable[None]]
_main = threading.main_thread().ident


def in_main_thread() -> bool:
    return threading.get_ident() == _main


class Subshell(threading.Thread):
    """Handles its requests one after the other, on an event loop of its own."""

    def __init__(self, id: str, handle: Handle) -> None:
        super().__init__(name=f"subshell-{id}", daemon=True)
        self._handle = handle
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def put(self, message: Any) -> None:
        self._messages.put(message)

    def stop(self) -> None:
        self._messages.put(None)

    def run(self) -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        while (message := self._messages.get()) is not None:
            loop.run_until_complete(self._handle(message))
        loop.close()


class Subshells:
    """Used in the control thread only."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._by_id: dict[str, Subshell] = {}

    def find(self, id: str) -> Subshell | None:
        return self._by_id.get(id)

    def create(self) -> dict[str, Any]:
        if len(self._by_id) >= MOST:
            return _error(f"there are {MOST} subshells already")
        id = str(uuid.uuid4())
        self._by_id[id] = subshell = Subshell(id, self._handle)
        subshell.start()
        return {"status": "ok", "subshell_id": id}

    def delete(self, id: str) -> dict[str, Any]:
        subshell = self._by_id.pop(id, None)
        if subshell is None:
            return _error(f"there is no subshell {id!r}")
        subshell.stop()
        return {"status": "ok"}

    def list(self) -> dict[str, Any]:
        return {"status": "ok", "subshell_id": list(self._by_id)}


class Replies:
    """The stream that a subshell answers on: it belongs to the control thread, which does the sending."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def send_multipart(self, parts: list[Any], copy: bool = True, **_options: Any) -> None:
        self._stream.io_loop.add_callback(self._stream.send_multipart, parts, copy=copy)


def _error(why: str) -> dict[str, Any]:
    return {"status": "error", "ename": "SubshellError", "evalue": why, "traceback": []}
