"""WebSockets of the Jupyter surface: a kernel's channels, in both framings, and events, of which there are none.

Whatever can be refused is refused with a status, before the upgrade: the kernel's channels are open by then, so no
frame that a client sends at once has to wait anywhere but in its own connection. Close codes after that: 1007 not a
frame, 1009 too large, 1011 the connection to the sandbox broke (come back), 1012 the gateway stops (come back), 4001 a
newer connection has this session_id, 4002 the session has ended, 4003 the token is good no more.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any, ClassVar

from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from kernelpool.api.auth import bearer_token
from kernelpool.api.edge import is_upgrade
from kernelpool.api.jupyter.handler import JupyterHandler
from kernelpool.api.jupyter.quirks import is_binary_safe
from kernelpool.api.jupyter.relay import Relay, legacy_encoder
from kernelpool.auth.principal import Role
from kernelpool.errors import CallerError, InvalidRequest
from kernelpool.protocol.framing import MAX_FRAME, V1

PING_SECONDS = 30.0
UNANSWERED_SECONDS = 60
"""What was sent and not acknowledged for so long, a ping at least, means that the client's machine is gone."""
CHECK_SECONDS = 30.0
"""Between two looks whether the client's token is still good."""
NO_LONGER_ALLOWED = 4003
MAX_ID = 256


class SocketHandler(JupyterHandler, WebSocketHandler):
    """A WebSocket that ends with the gateway's drain, and with the client's right to have it."""

    max_message_size = MAX_FRAME
    ping_interval = PING_SECONDS
    # No time-out of Tornado's: behind many megabytes on a slow line a pong comes late. See `_watch_line`.
    ping_timeout = 0.0

    async def accept(self) -> None:
        await super().accept()
        if not is_upgrade(self.request):
            raise InvalidRequest("This is a WebSocket: send Upgrade: websocket.")
        self.gateway.admit()
        self._token = bearer_token(self.request.headers.get_list("Authorization"))

    async def get(self, **named: str) -> None:
        await self.serve(self.run())

    async def run(self) -> None:
        checking = asyncio.create_task(self._check_token())
        try:
            await WebSocketHandler.get(self)
        finally:
            checking.cancel()

    def check_origin(self, origin: str) -> bool:
        """The edge has."""
        return True

    def open(self, *args: str, **named: str) -> None:
        assert self.ws_connection is not None
        stream = self.ws_connection.stream
        assert stream is not None
        stream.max_buffer_size = MAX_FRAME + (1 << 20)
        self._watch_line(stream.socket)
        # Tornado has turned Nagle's algorithm on again: of a cell's few small frames the second would wait 40 ms.
        self.set_nodelay(True)
        self.collaborators.sockets.add(self)

    def on_message(self, message: str | bytes) -> Any:
        return None

    def on_close(self) -> None:
        self.collaborators.sockets.discard(self)

    def on_connection_close(self) -> None:
        if self.ws_connection is None:
            super().on_connection_close()
        else:  # what is under way ends with the connection's own loop, in order
            WebSocketHandler.on_connection_close(self)

    @staticmethod
    def _watch_line(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNANSWERED_SECONDS * 1000)

    async def _check_token(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                self.principal = await self.collaborators.authenticator.authenticate(self._token)
                self.authorize()
            except CallerError as error:
                self.close(NO_LONGER_ALLOWED, error.message[:120])
                return


class EventsHandler(SocketHandler):
    """Jupyter's own log of events, which some clients cannot do without: nothing ever happens in it."""

    roles: ClassVar = {"GET": Role.VIEWER}


class ChannelsHandler(SocketHandler):
    """A client's way to a kernel."""

    async def accept(self) -> None:
        self.kernel = self.gateway.kernel(self.principal, self.path_kwargs["kernel"], self.scope)
        await super().accept()
        self._session_id = self._id("session_id") or ""
        self._last_msg_id = self._id("last_msg_id")

    async def run(self) -> None:
        began, outcome = time.monotonic(), "succeeded"
        async with self.kernel.connect(self._session_id, self._last_msg_id) as channels:
            self._relay = Relay(self, self.kernel, channels, self._session_id)
            self._down: asyncio.Task[None] | None = None
            try:
                await super().run()
            finally:
                if self._down is not None:
                    self._down.cancel()
                    await asyncio.gather(self._down, return_exceptions=True)
                await self._relay.aclose()
                self.kernel.watch.left(str(self.close_code or outcome), time.monotonic() - began)

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        if V1 in subprotocols:
            return V1
        self._relay.encode = legacy_encoder(binary=is_binary_safe(self.request.headers.get("User-Agent", "")))
        return None

    def open(self, *args: str, **named: str) -> None:
        super().open()
        self._down = asyncio.create_task(self._relay.down())

    async def on_message(self, message: str | bytes) -> None:
        await self._relay.up(message)

    def on_pong(self, data: bytes) -> None:
        if data:
            self.collaborators.works.start(self._relay.answered(data))

    async def deliver(self, frame: str | bytes) -> None:
        try:
            await self.write_message(frame, binary=isinstance(frame, bytes))
        except (WebSocketClosedError, StreamClosedError) as error:
            raise ConnectionError from error

    def ask(self, token: bytes) -> None:
        if self.ws_connection is not None and not self.ws_connection.is_closing():
            self.ping(token)

    def _id(self, name: str) -> str | None:
        text = self.query.text(name)
        if text is not None and len(text) > MAX_ID:
            raise InvalidRequest(f"query parameter {name} must have at most {MAX_ID} characters")
        return text
