"""The agent's routes for Jupyter clients: the kernel's state, interrupt, restart, and its channels."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from kernelpool.agent.base import ActivatedHandler, Sandbox, encode, is_authorized
from kernelpool.agent.client import Client
from kernelpool.agent.clients import Clients
from kernelpool.agent.relay import Relay
from kernelpool.errors import InvalidRequest, TooManyConnections
from kernelpool.protocol.framing import V1

KEEP_ALIVE = 5.0
REPLACED = 4001
"""The code that a connection is closed with when a newer one has taken its place."""


@dataclass(frozen=True, slots=True)
class Jupyter:
    """What the channels share besides the sandbox."""

    clients: Clients
    relay: Relay


class KernelHandler(ActivatedHandler):
    def get(self) -> None:
        self.finish(encode(self.sandbox.executions.state))


class InterruptHandler(ActivatedHandler):
    def post(self) -> None:
        self.sandbox.executions.interrupt()
        self.set_status(204)


class RestartHandler(ActivatedHandler):
    async def post(self) -> None:
        """White space before the JSON says that we live."""
        restart = asyncio.create_task(self.sandbox.executions.restart())
        while not (await asyncio.wait({restart}, timeout=KEEP_ALIVE))[0]:
            self.write(b"\n")
            await self.flush()
        await restart
        await self.finish(encode(self.sandbox.executions.state))


class ChannelsHandler(WebSocketHandler):
    """One Jupyter client. Frames are binary; text is the number of frames that have arrived, as `Channels.confirm`."""

    def initialize(self, sandbox: Sandbox, jupyter: Jupyter) -> None:
        self.sandbox = sandbox
        self._jupyter = jupyter
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None

    def prepare(self) -> None:
        if not is_authorized(self.request, self.sandbox):
            raise HTTPError(401)
        self.sandbox.lease.heard()
        if self.sandbox.lease.activation is None:
            raise HTTPError(409)
        session_id = self.get_query_argument("session_id", "", strip=False)
        last_msg_id = self.get_query_argument("last_msg_id", None, strip=False)
        try:
            self._client = self._jupyter.clients.connect(session_id, last_msg_id)
        except InvalidRequest:
            raise HTTPError(400) from None
        except TooManyConnections:
            raise HTTPError(503) from None

    def check_origin(self, origin: str) -> bool:
        """It has no cookies; whoever knows the secret may come from anywhere."""
        return True

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return V1 if V1 in subprotocols else None

    def open(self, *args: Any, **kwargs: Any) -> None:
        assert self._client is not None
        self.set_nodelay(True)  # or the second of two small frames waits 40 ms, where it goes over TCP
        self._task = asyncio.create_task(self._hand_over(self._client))

    def on_message(self, message: str | bytes) -> None:
        assert self._client is not None
        self.sandbox.lease.heard()
        if isinstance(message, bytes):
            self._jupyter.relay.receive(self._client, message)
        elif message.isdecimal() and len(message) < 20:
            self._client.confirm(int(message))

    def on_close(self) -> None:
        # So that a session whose gateway was killed lives long enough for its clients to come back by the next one.
        self.sandbox.executions.touch()
        self._leave()

    def on_finish(self) -> None:
        if self.get_status() != 101:  # the upgrade was refused
            self._leave()

    def _leave(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._client is not None:
            self._jupyter.clients.disconnect(self._client)

    async def _hand_over(self, client: Client) -> None:
        with suppress(WebSocketClosedError):
            async for frame in client.frames():
                await self.write_message(frame, binary=True)
        self.close(REPLACED, "a newer connection has this session id")
