"""A small Jupyter client over `Agent.channels`, for tests: sends requests, collects what comes of them."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from kernelpool.agents import Agent, Channels
from kernelpool.protocol.framing import WireMessage, decode_v1, encode_v1


@dataclass
class Told:
    """A message as a client reads it."""

    channel: str
    header: dict[str, Any]
    parent: dict[str, Any]
    metadata: dict[str, Any]
    content: dict[str, Any]
    buffers: tuple[bytes, ...] = ()

    @classmethod
    def read(cls, frame: bytes) -> Self:
        wire = decode_v1(frame)
        header, parent, metadata, content = map(
            json.loads, (wire.header, wire.parent_header, wire.metadata, wire.content)
        )
        return cls(wire.channel, header, parent, metadata, content, wire.buffers)

    @property
    def kind(self) -> str:
        return str(self.header["msg_type"])

    @property
    def speaker(self) -> str:
        return str(self.header["session"])

    @property
    def state(self) -> str | None:
        return self.content.get("execution_state")


@dataclass
class JupyterClient:
    channels: Channels
    session: str
    heard: list[Told] = field(default_factory=list)
    ended: bool = False
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, *, confirm: bool = True) -> None:
        async for frame in self.channels:
            self.heard.append(Told.read(frame))
            self._news.set()
            if confirm:
                await self.channels.confirm(len(self.heard))
        self.ended = True
        self._news.set()

    async def send(
        self,
        kind: str,
        content: dict[str, Any],
        *,
        channel: str = "shell",
        buffers: tuple[bytes, ...] = (),
        **header: Any,
    ) -> str:
        """Returns the message's id."""
        id = str(header.pop("msg_id", uuid.uuid4().hex))
        head = {"msg_id": id, "msg_type": kind, "username": "me", "session": self.session, "version": "5.4", "date": ""}
        parent = header.pop("parent_header", {})
        parts = [json.dumps(part).encode() for part in (head | header, parent, {}, content)]
        await self.channels.send(encode_v1(WireMessage(channel, parts[0], parts[1], parts[2], parts[3], buffers)))
        return id

    async def execute(self, code: str, **options: Any) -> str:
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        return await self.send("execute_request", {**content, "stop_on_error": True, **options})

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not holds():
                self._news.clear()
                await self._news.wait()

    def of(self, id: str, kind: str | None = None) -> list[Told]:
        """What came of a request."""
        return [m for m in self.heard if m.parent.get("msg_id") == id and kind in (None, m.kind)]

    def is_over(self, id: str) -> bool:
        found = self.of(id)
        return any(m.kind.endswith("_reply") for m in found) and any(m.state == "idle" for m in found)

    async def result(self, id: str) -> Told:
        """The reply, when the request is over."""
        await self.until(lambda: self.is_over(id))
        return next(m for m in self.of(id) if m.kind.endswith("_reply"))

    async def ask(self, kind: str, content: dict[str, Any], **options: Any) -> Told:
        return await self.result(await self.send(kind, content, **options))

    async def run(self, code: str, **options: Any) -> Told:
        return await self.result(await self.execute(code, **options))

    def text(self, id: str, name: str = "stdout") -> str:
        return "".join(m.content["text"] for m in self.of(id, "stream") if m.content["name"] == name)


@asynccontextmanager
async def jupyter(
    agent: Agent, session: str = "s1", last_msg_id: str | None = None, *, confirm: bool = True
) -> AsyncIterator[JupyterClient]:
    async with agent.channels(session, last_msg_id) as channels:
        client = JupyterClient(channels, session)
        reading = asyncio.create_task(client.read(confirm=confirm))
        try:
            yield client
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
