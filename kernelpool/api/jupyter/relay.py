"""Relay: one client's WebSocket and its channels to the kernel. Both ways wait for whoever takes their frames slowly.

It holds no frame but the one in hand. What the client has certainly got is found out by pings, which it answers after
all that was sent before, and confirmed to the agent: the rest is told again when the client comes back.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol

from kernelpool.agents import Channels
from kernelpool.api.jupyter import quirks
from kernelpool.api.jupyter.ledger import Ledger, made, refusal
from kernelpool.api.sockets import RESTARTS
from kernelpool.errors import GatewayDraining, KernelpoolError, SandboxLost
from kernelpool.kernel import Kernel
from kernelpool.protocol.framing import WireMessage, decode_v1, encode_legacy, encode_v1, read_head
from kernelpool.protocol.messages import ProtocolError

log = logging.getLogger(__name__)

REPLACED = 4001
ENDED = 4002
NOT_A_FRAME = 1007
BROKEN = 1011
CONFIRM_SECONDS = 0.02
"""Between a frame and the question whether it has arrived; one question at a time."""


class Socket(Protocol):
    """The client's side."""

    async def deliver(self, frame: str | bytes) -> None:
        """Returns when the client takes it. Raises `ConnectionError` when it has gone."""

    def ask(self, token: bytes) -> None:
        """A ping; the answer comes to `Relay.answered`."""

    def close(self, code: int | None = None, reason: str | None = None) -> None: ...


Encode = Callable[[bytes], str | bytes]


def legacy_encoder(*, binary: bool) -> Encode:
    """From a frame of the kernel's to one of the JSON framing."""
    return lambda frame: encode_legacy(quirks.fitting(decode_v1(frame)), binary=binary)


class Relay:
    def __init__(self, socket: Socket, kernel: Kernel, channels: Channels, session_id: str) -> None:
        self._socket = socket
        self._kernel = kernel
        self._channels = channels
        self._session_id = session_id
        self._ledger = Ledger(kernel)
        self.encode: Encode | None = None
        """For clients of the JSON framing."""
        # The mutable state: frames that were delivered, the number that was asked about last, and whether an answer or
        # the asking is due.
        self._delivered = 0
        self._asked = 0
        self._asking: asyncio.TimerHandle | None = None
        self._speaker = "kernelpool"
        """The session of the kernel's messages, and of ours among them: clients take another one for a restart."""

    async def aclose(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        await self._ledger.aclose()

    async def up(self, frame: str | bytes) -> None:
        """A frame of the client's."""
        try:
            message = self._read(frame)
            head = read_head(message.header)
            if head.msg_type == "execute_request":
                self._ledger.submit(head, message)
        except ProtocolError as error:
            self._socket.close(NOT_A_FRAME, f"not a frame: {error}"[:120])
            return
        except KernelpoolError as error:
            for each in refusal(message, error, self._speaker, time.time()):
                await self._deliver(encode_v1(each))
            return
        self._kernel.touch()
        try:
            await self._channels.send(frame if isinstance(frame, bytes) and self.encode is None else encode_v1(message))
        except KernelpoolError:
            log.debug("a message was not sent: its channels are gone")  # `down` finds out why, and says so

    async def down(self) -> None:
        """The kernel's frames, until there are no more: then the client is told why, and the socket closed."""
        try:
            async with self._kernel.or_lost():
                async for frame in self._channels:
                    self._note(frame)
                    await self._deliver(frame)
                    self._delivered += 1
                    self._ask_soon()
        except ConnectionError:
            return
        except SandboxLost as error:
            await self._say_dead()
            self._socket.close(ENDED, error.message[:120])
        except GatewayDraining:
            self._socket.close(RESTARTS, "the gateway is stopping")
        except (KernelpoolError, ProtocolError) as error:
            log.warning("a kernel's channels broke", extra={"error": str(error)})
            self._socket.close(BROKEN, "the connection to the kernel broke; it goes on")
        else:
            self._socket.close(REPLACED, "a newer connection has this session_id")

    async def answered(self, token: bytes) -> None:
        """The client has got what was sent before the question."""
        if not token.isdigit() or len(token) > 15 or int(token) != self._asked:
            return
        count, self._asked = self._asked, 0
        try:
            await self._channels.confirm(count)
        except KernelpoolError:
            return
        if self._delivered > count:
            self._ask_soon()

    def _ask_soon(self) -> None:
        if self._session_id and self._asking is None and not self._asked:
            self._asking = asyncio.get_running_loop().call_later(CONFIRM_SECONDS, self._ask)

    def _ask(self) -> None:
        self._asking = None
        self._asked = self._delivered
        self._socket.ask(b"%d" % self._asked)

    def _read(self, frame: str | bytes) -> WireMessage:
        if self.encode is None:
            if isinstance(frame, str):
                raise ProtocolError("text, where the subprotocol has bytes")
            return decode_v1(frame)
        return quirks.received(frame, time.time())

    def _note(self, frame: bytes) -> None:
        if _channel_of(frame) == b"shell":
            message = decode_v1(frame)
            with suppress(ProtocolError):  # what the client makes of it is its own business
                self._speaker = read_head(message.header).session or self._speaker
            self._ledger.reply(message)

    async def _deliver(self, frame: bytes) -> None:
        await self._socket.deliver(frame if self.encode is None else self.encode(frame))

    async def _say_dead(self) -> None:
        date = datetime.fromtimestamp(time.time(), UTC).isoformat()
        try:
            await self._deliver(encode_v1(made("iopub", "status", {"execution_state": "dead"}, self._speaker, date)))
        except ConnectionError:
            return


def _channel_of(frame: bytes) -> bytes:
    """Without looking at the rest, which may be large. It has been checked to be a frame."""
    _, start, end = struct.unpack_from("<3Q", frame)
    return frame[start:end]
