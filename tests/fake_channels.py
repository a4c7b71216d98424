"""The Jupyter side of the fake agent: what was told to clients, and their connections. One list, a position each."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from kernelpool.errors import KernelpoolError, SandboxLost
from kernelpool.models import Execution, ExecutionState
from kernelpool.protocol.framing import WireMessage, decode_v1, encode_v1, read_head, read_object
from kernelpool.protocol.messages import ProtocolError

KERNEL_INFO = {
    "status": "ok",
    "protocol_version": "5.4",
    "implementation": "fake",
    "implementation_version": "1",
    "language_info": {"name": "python", "version": "3.11", "mimetype": "text/x-python", "file_extension": ".py"},
    "banner": "",
    "help_links": [],
    "supported_features": [],
}


class Owner(Protocol):
    """What of the fake process a connection uses."""

    dead: asyncio.Future[str]

    def receive(self, client: str, header: dict[str, Any], content: dict[str, Any]) -> None: ...

    def interrupt(self) -> None: ...

    def touch(self) -> None: ...


class FakeHub:
    """Frames in order, each for one client (its session id) or for all."""

    def __init__(self) -> None:
        self.frames: list[tuple[str | None, str, bytes]] = []
        self.clients: dict[str, FakeChannels] = {}
        self.confirmed: dict[str, int] = {}
        """Positions of sessions, connected or not."""

    def publish(self, msg_type: str, content: dict[str, Any], parent: dict[str, Any] | None = None) -> None:
        self.put("iopub", None, msg_type, content, parent)

    def put(
        self, channel: str, target: str | None, msg_type: str, content: dict[str, Any], parent: dict[str, Any] | None
    ) -> None:
        id = uuid.uuid4().hex
        header = {"msg_id": id, "msg_type": msg_type, "username": "fake", "session": "kernel", "version": "5.4"}
        header["date"] = datetime.fromtimestamp(time.time(), UTC).isoformat()
        parts = [json.dumps(part, default=str).encode() for part in (header, parent or {}, content)]
        message = WireMessage(channel, parts[0], parts[1], b"{}", parts[2])
        self.frames.append((target, id, encode_v1(message)))
        for client in self.clients.values():
            client.news.set()

    def begin(self, parent: dict[str, Any], code: str, count: int) -> None:
        self.publish("status", {"execution_state": "busy"}, parent)
        self.publish("execute_input", {"code": code, "execution_count": count}, parent)

    def output(self, parent: dict[str, Any], output: dict[str, Any]) -> None:
        self.publish(output.pop("type"), output, parent)

    def end(self, parent: dict[str, Any], client: str | None, execution: Execution) -> None:
        if client is not None:
            status = "ok" if execution.state is ExecutionState.SUCCEEDED else "error"
            content: dict[str, Any] = {"status": status, "execution_count": execution.execution_count}
            if status == "error":
                content |= {"ename": "Error", "evalue": str(execution.cause), "traceback": []}
            self.put("shell", client, "execute_reply", content, parent)
        self.publish("status", {"execution_state": "idle"}, parent)


class FakeChannels:
    def __init__(
        self,
        hub: FakeHub,
        session_id: str,
        last_msg_id: str | None,
        owner: Owner,
        reach: Callable[[], Awaitable[None]],
    ) -> None:
        self._hub = hub
        self._owner = owner
        self._reach = reach
        self._key = session_id or uuid.uuid4().hex
        self.news = asyncio.Event()
        self.replaced = False
        if (older := hub.clients.get(self._key)) is not None:
            older.replaced = True
            older.news.set()
        self._position = hub.confirmed.get(self._key, len(hub.frames))
        for number, (_, id, _frame) in enumerate(hub.frames):
            if id == last_msg_id:
                self._position = number + 1
        hub.confirmed[self._key] = self._position
        hub.clients[self._key] = self
        self._sent: list[int] = []

    async def send(self, frame: bytes) -> None:
        await self._reach()
        try:
            message = decode_v1(frame)
            head = read_head(message.header)
            header, content = read_object(message.header), read_object(message.content)
        except ProtocolError:
            return
        self._owner.touch()
        if head.msg_type == "execute_request":
            try:
                self._owner.receive(self._key, header, content)
            except KernelpoolError as error:
                self._answer(message.channel, header, {"status": "error", "ename": error.code, "evalue": str(error)})
            return
        if head.msg_type == "interrupt_request":
            self._owner.interrupt()
        self._answer(
            message.channel, header, KERNEL_INFO if head.msg_type == "kernel_info_request" else {"status": "ok"}
        )

    async def confirm(self, count: int) -> None:
        await self._reach()
        if 0 < count <= len(self._sent) and not self.replaced:
            self._hub.confirmed[self._key] = self._sent[count - 1] + 1

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await self._reach()
            self.news.clear()
            if self.replaced:
                return
            while self._position < len(self._hub.frames):
                target, _, frame = self._hub.frames[self._position]
                self._position += 1
                if target in (None, self._key):
                    self._sent.append(self._position - 1)
                    yield frame
            news = asyncio.ensure_future(self.news.wait())
            try:
                await asyncio.wait((news, self._owner.dead), return_when=asyncio.FIRST_COMPLETED)
            finally:
                news.cancel()
            if self._owner.dead.done():
                raise SandboxLost("the connection to the agent broke")

    def close(self) -> None:
        if self._hub.clients.get(self._key) is self:
            del self._hub.clients[self._key]

    def _answer(self, channel: str, header: dict[str, Any], content: dict[str, Any]) -> None:
        self._hub.publish("status", {"execution_state": "busy"}, header)
        self._hub.put(channel, self._key, header["msg_type"].replace("_request", "_reply"), content, header)
        self._hub.publish("status", {"execution_state": "idle"}, header)
