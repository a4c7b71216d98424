"""One request of plain HTTP, passed on and answered: taken apart and put together again by h11, both ways.

Nothing is passed on as it came but bodies, so two parsers have no chance to disagree. One request a connection.
"""

from __future__ import annotations

import asyncio

import h11

from kernelpool.egress.flow import CHUNK, Flow
from kernelpool.egress.target import Target, passed_on

MAX_HEAD = 32 << 10
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Exchange:
    """`ours` has read the head of the request, and nothing else yet."""

    def __init__(self, ours: h11.Connection, inside: Streams, outside: Streams, flow: Flow) -> None:
        self._ours = ours
        self._theirs = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._inside = inside
        self._outside = outside
        self._flow = flow

    async def run(self, request: h11.Request, target: Target) -> None:
        """Raises `OSError`, `TimeoutError`, `h11.ProtocolError`: the connection is of no use then."""
        headers = [(name, value) for name, value in passed_on(list(request.headers)) if name != b"host"]
        asked = h11.Request(
            method=request.method,
            target=(target.path or "/").encode(),
            headers=[(b"host", target.authority.encode()), *headers],
        )
        async with self._flow.watched():
            await self._tell_them(asked)
            body = asyncio.create_task(self._pass_body_on())
            try:
                await self._pass_answer_back()
            finally:
                body.cancel()
                await asyncio.wait([body])
                if not body.cancelled():
                    body.exception()  # seen: who answers need not have read everything

    async def _pass_body_on(self) -> None:
        while True:
            event = await _next(self._ours, self._inside[0])
            if isinstance(event, h11.Data):
                await self._tell_them(h11.Data(event.data))
            else:
                await self._tell_them(h11.EndOfMessage())  # without trailers
                return

    async def _pass_answer_back(self) -> None:
        while True:
            event = await _next(self._theirs, self._outside[0])
            if isinstance(event, h11.InformationalResponse):
                if event.status_code != 101:
                    await self._tell_us(h11.InformationalResponse(status_code=event.status_code, headers=[]))
            elif isinstance(event, h11.Response):
                headers = passed_on(list(event.headers))
                await self._tell_us(h11.Response(status_code=event.status_code, reason=event.reason, headers=headers))
            elif isinstance(event, h11.Data):
                await self._tell_us(h11.Data(event.data))
            else:
                await self._tell_us(h11.EndOfMessage())
                return

    async def _tell_them(self, event: h11.Event) -> None:
        if data := self._theirs.send(event):
            self._flow.count(sent=len(data))
            self._outside[1].write(data)
            await self._outside[1].drain()

    async def _tell_us(self, event: h11.Event) -> None:
        if data := self._ours.send(event):
            self._flow.count(received=len(data))
            self._inside[1].write(data)
            await self._inside[1].drain()


async def _next(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Event:
    """Raises `h11.RemoteProtocolError`, and `ConnectionError` for an end where none may be."""
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(CHUNK))
    if isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
        raise ConnectionError("it ended before its message did")
    return event  # type: ignore[return-value]


async def read_request(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """None when nothing was asked. Raises `h11.RemoteProtocolError`, `OSError`."""
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(CHUNK))
    return event if isinstance(event, h11.Request) else None
