"""A Jupyter client's connection to an agent, over WebSocket: frames both ways, each checked to be one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable

import aiohttp

from kernelpool.agents.answers import translated
from kernelpool.errors import AgentFault, Conflict, InvalidRequest, KernelpoolError, SandboxLost, TooManyConnections
from kernelpool.protocol.framing import decode_v1
from kernelpool.protocol.messages import ProtocolError

REPLACED = 4001
"""The code that an agent closes a connection with when a newer one has taken its place."""


class HttpChannels:
    """`Channels` over a WebSocket of the agent. Frames are read as they are asked for: aiohttp stops reading from the
    socket when a few wait, and so in turn does the agent stop handing them over."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, silence: float) -> None:
        self._socket = socket
        self._silence = silence

    async def send(self, frame: bytes) -> None:
        await self._send(self._socket.send_bytes(frame))

    async def confirm(self, count: int) -> None:
        await self._send(self._socket.send_str(str(count)))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            with translated():
                message = await self._socket.receive()
            match message.type:
                case aiohttp.WSMsgType.BINARY:
                    yield self._checked(message.data)
                case aiohttp.WSMsgType.CLOSE | aiohttp.WSMsgType.CLOSED | aiohttp.WSMsgType.CLOSING:
                    if self._socket.close_code == REPLACED:
                        return
                    raise SandboxLost("the sandbox broke off the kernel's channels")
                case _:
                    raise AgentFault("the sandbox's agent sent something else than frames of a kernel")

    def _checked(self, frame: bytes) -> bytes:
        try:
            decode_v1(frame)
        except ProtocolError as error:
            raise AgentFault(f"the sandbox's agent sent a frame that is none: {error}") from None
        return frame

    async def _send(self, sending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._silence):
                with translated():
                    await sending
        except TimeoutError as error:
            raise SandboxLost(f"the sandbox took nothing of a message for {self._silence:g} s") from error


def refused(status: int) -> KernelpoolError:
    """What a connection was refused with: an upgrade carries no more than a status."""
    match status:
        case 400:
            return InvalidRequest("session_id and last_msg_id must have at most 256 characters")
        case 409:
            return Conflict("this sandbox is not activated")
        case 503:
            return TooManyConnections("the session has as many Jupyter clients as it may have")
    return AgentFault(f"the sandbox's agent answered with status {status}")
