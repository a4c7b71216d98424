"""One request of the protocol's revisions with a handshake, 2024-11-05 to 2025-11-25: one POST in, one answer out.

The SDK's own transport for them wants a session, both kinds of `Accept` and `initialize` first, and answers either
always as JSON or always as a stream. Clients in the field are less orderly, so here each POST stands for itself, as the
protocol has it since 2026; the SDK still knows what the messages are, which revision has which, and what they mean. An
answer is JSON, unless the client takes streams and there is something to say before it: progress, or a sign of life.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio
from mcp.server.connection import Connection
from mcp.server.lowlevel import Server
from mcp.server.runner import modern_error_data, serve_one
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import NoBackChannelError
from mcp.shared.jsonrpc_dispatcher import progress_token_from_params
from mcp.shared.message import MessageMetadata, ServerMessageMetadata
from mcp.shared.transport_context import TransportContext
from mcp_types import ErrorData, JSONRPCRequest, ProgressToken, RequestId
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, LATEST_HANDSHAKE_VERSION

from kernelpool.api.mcp.call import Caller

ACA_VERSION = "2025-03-26"
"""What ACA's server speaks, and so what somebody is taken to speak who does not say."""
SIGN_SECONDS = 15.0
"""Between two signs of life in a stream in which nothing else happens."""


class Stream(Protocol):
    """Where an answer goes when it begins before its end."""

    async def send(self, message: Mapping[str, Any] | None) -> None:
        """None is a sign of life. Does nothing for a client that takes no streams."""


@dataclass(slots=True)
class _Context:
    """The SDK's `DispatchContext` of one request."""

    request_id: RequestId
    message_metadata: MessageMetadata
    token: ProgressToken | None
    stream: Stream
    transport: TransportContext = field(
        default_factory=lambda: TransportContext(kind="streamable-http", can_send_request=False)
    )
    can_send_request: bool = False
    cancel_requested: anyio.Event = field(default_factory=anyio.Event)

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        raise NoBackChannelError(method)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        await self.stream.send({"jsonrpc": "2.0", "method": method, "params": dict(params or {})})

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        if self.token is None:
            return
        optional = {"total": total, "message": message}
        given = {name: value for name, value in optional.items() if value is not None}
        await self.notify("notifications/progress", {"progressToken": self.token, "progress": progress, **given})


class Running:
    """Requests under way, and those of MCP sessions by their ids, for whoever cancels one."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[str, RequestId], asyncio.Task[Any]] = {}

    async def finish(
        self, work: Coroutine[Any, Any, dict[str, Any]], session: str | None, id: RequestId, stream: Stream
    ) -> dict[str, Any] | None:
        """What the work answers; None when somebody has cancelled it. Meanwhile the stream is kept alive; whoever
        leaves ends the work."""
        task = asyncio.create_task(work)
        if session is not None:
            self._tasks[session, id] = task
        try:
            while not (await asyncio.wait({task}, timeout=SIGN_SECONDS))[0]:
                await stream.send(None)
        finally:
            if self._tasks.get((session or "", id)) is task:  # a client may use an id twice
                del self._tasks[session or "", id]
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        return None if task.cancelled() else task.result()

    def cancel(self, session: str, id: object) -> None:
        if isinstance(id, str | int) and (task := self._tasks.get((session, id))) is not None:
            task.cancel()


async def exchange(
    server: Server[Any], request: JSONRPCRequest, version: str | None, caller: Caller, stream: Stream
) -> dict[str, Any]:
    """The answer, as JSON-RPC has it."""
    params = request.params
    if request.method == "initialize":
        params = _introduced(params)
        version = params["protocolVersion"]
    if version not in HANDSHAKE_PROTOCOL_VERSIONS:
        version = LATEST_HANDSHAKE_VERSION
    context = _Context(
        request.id, ServerMessageMetadata(request_context=caller), progress_token_from_params(params), stream
    )
    connection = Connection.from_envelope(version, None, None)
    try:
        result = await serve_one(server, context, request.method, params, connection=connection, lifespan_state=None)
    except Exception as error:
        return _error(request.id, modern_error_data(error))
    return {"jsonrpc": "2.0", "id": request.id, "result": result}


def _introduced(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """ACA's tutorial sends `initialize` with nothing in it."""
    unsaid = {"protocolVersion": ACA_VERSION, "capabilities": {}, "clientInfo": {"name": "unknown", "version": ""}}
    return {**unsaid, **(params or {})}


def _error(id: RequestId, error: ErrorData) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "error": error.model_dump(mode="json", by_alias=True, exclude_none=True)}
