"""Service: what is behind the endpoint of one language's pools, once the SDK is there. A message in, an answer out.

Revisions from 2026-07-28 on are the SDK's own ASGI application; those before are `exchange`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import INVALID_REQUEST, PARSE_ERROR, JSONRPCMessage, JSONRPCNotification, JSONRPCRequest
from mcp_types import jsonrpc_message_adapter as messages
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import ValidationError

from kernelpool.api.json_text import parse_json
from kernelpool.api.mcp import asgi
from kernelpool.api.mcp.exchange import Running, exchange
from kernelpool.api.mcp.server import CALLER, make_server
from kernelpool.errors import InvalidRequest

if TYPE_CHECKING:
    from kernelpool.api.mcp.routes import McpHandler

MAX_BODY = 1 << 40
"""For the SDK: what a body may have, the handler has seen to."""


class Service:
    def __init__(self, language: str) -> None:
        for name in ("mcp", "sse_starlette"):  # what they say of requests, we say with the request's facts
            logging.getLogger(name).setLevel(logging.ERROR)
        self._server: Server[Any] = make_server(language)
        self._manager = StreamableHTTPSessionManager(
            self._server,
            stateless=True,
            # Hosts and origins are the edge's business, before any handler.
            security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
            max_request_body_size=MAX_BODY,
        )
        self._running = Running()

    async def run(self, ready: asyncio.Event) -> None:
        """Until it is cancelled: the SDK wants what it starts to be ended by the task that started it."""
        async with self._manager.run():
            ready.set()
            await asyncio.Event().wait()

    async def serve(self, handler: McpHandler) -> None:
        """One POST."""
        raw, handler.body = bytes(handler.body), bytearray()  # what waits for long need not hold it twice
        try:
            value = parse_json(raw)
        except InvalidRequest as error:
            handler.refuse_message(400, PARSE_ERROR, error.message)
            return
        if isinstance(value, list):
            handler.refuse_message(400, INVALID_REQUEST, "Batches are not supported: send one message at a time.")
        elif handler.version is None or handler.version in HANDSHAKE_PROTOCOL_VERSIONS:
            await self._exchange(handler, value)
        else:
            caller = {CALLER: handler.caller(None)}
            await asgi.serve(self._manager.handle_request, handler.request, raw, handler, caller)

    async def _exchange(self, handler: McpHandler, value: Any) -> None:
        id = _id_of(value)
        try:
            message: JSONRPCMessage = messages.validate_python(value, by_name=False)
            is_message = id is not None or "id" not in value
        except ValidationError:
            is_message = False
        if not is_message:  # nor is one that has an id, but none that an answer could have
            handler.refuse_message(400, INVALID_REQUEST, "The body must be one JSON-RPC 2.0 message.", id)
            return
        opens = isinstance(message, JSONRPCRequest) and message.method == "initialize"
        session = None if opens else handler.mcp_session
        if session is not None and not handler.knows(session):
            handler.refuse_message(404, INVALID_REQUEST, "There is no such MCP session; initialize again.", id)
        elif isinstance(message, JSONRPCRequest):
            await self._answer(handler, message, session, opens=opens)
        else:
            self._notice(message, session)
            handler.answer_accepted()

    async def _answer(self, handler: McpHandler, message: JSONRPCRequest, session: str | None, *, opens: bool) -> None:
        caller = handler.caller(session)
        work = exchange(self._server, message, handler.version, caller, handler)
        answer = await self._running.finish(work, session, message.id, handler)
        if answer is None:
            await handler.finish_cancelled(message.id)
            return
        if opens and "result" in answer:
            handler.open_mcp_session()
        await handler.finish_message(answer)

    def _notice(self, message: JSONRPCMessage, session: str | None) -> None:
        """A notification, or an answer to a question that we never ask."""
        if session is None or not isinstance(message, JSONRPCNotification):
            return
        if message.method == "notifications/cancelled":
            self._running.cancel(session, (message.params or {}).get("requestId"))


def _id_of(value: Any) -> str | int | None:
    """Of what need not be a request."""
    id = value.get("id") if isinstance(value, dict) else None
    return id if isinstance(id, str | int) and not isinstance(id, bool) else None
