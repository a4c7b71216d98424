"""MCP over Streamable HTTP, in all its revisions: {pool}/mcp, at both base paths of a pool.

    POST    one JSON-RPC message: a request is answered as JSON or as a stream, anything else with 202
    DELETE  the end of an MCP session, and of the code session behind it
    GET     405: there is nothing to say to a client that has not asked

`?identifier=` names the code session that tools work in when a call names none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from tornado.iostream import StreamClosedError

from kernelpool.api import sse
from kernelpool.api.aca_handler import POOL_PATH, STALL_SECONDS
from kernelpool.api.base import ApiHandler, Collaborators
from kernelpool.api.json_text import dump_json
from kernelpool.api.mcp.call import Caller
from kernelpool.api.mcp.names import Names
from kernelpool.auth.pool_keys import looks_like_pool_key
from kernelpool.errors import InvalidToken, McpServerNotEnabled, McpSessionNotFound, SessionNotFound, Unauthorized
from kernelpool.gateway import PoolInfo

SESSION = "Mcp-Session-Id"
VERSION = "Mcp-Protocol-Version"
API_KEY = "x-ms-apikey"
REQUEST_CANCELLED = -32800
INVALID_REQUEST, INTERNAL_ERROR = -32600, -32603
"""As the SDK has them, which need not be there."""


class McpHandler(ApiHandler):
    takes_pool_keys = True
    pool: PoolInfo

    def initialize(self, collaborators: Collaborators) -> None:
        super().initialize(collaborators)
        self._pushing = asyncio.Lock()

    def credential(self) -> str:
        """In ACA's header, or the usual one."""
        given = self.request.headers.get_list(API_KEY)
        if not given:
            return super().credential()
        if len(given) > 1 or not given[0].strip():
            raise Unauthorized(f"The header {API_KEY} must be there once, with a key.")
        return given[0].strip()

    async def accept(self) -> None:
        self.pool = self.gateway.pool(self.principal, self.path_kwargs["pool"])
        settings = self.pool.settings.mcp
        if looks_like_pool_key(self.credential()) and not (settings.enabled and settings.api_key):
            raise InvalidToken
        if not settings.enabled or self.pool.settings.container is not None:
            raise McpServerNotEnabled(f"Pool '{self.pool.name}' has no MCP server.")

    async def post(self, pool: str) -> None:
        await self.serve(self._post())

    async def delete(self, pool: str) -> None:
        await self.serve(self._delete())

    async def _post(self) -> None:
        service = await self.collaborators.mcp.service(self.pool.language)
        await service.serve(self)

    async def _delete(self) -> None:
        session = self.mcp_session
        if session is None or not self.knows(session):
            raise McpSessionNotFound(f"There is no MCP session of the name in {SESSION}.")
        self.collaborators.mcp.end(session)
        with suppress(SessionNotFound):
            await self.gateway.stop_session(self.principal, self.pool.name, self._names.identifier(session))
        self.answer_nothing()

    # --- what came in

    @property
    def version(self) -> str | None:
        """Of the protocol. Two of them are none that anybody knows."""
        return self.request.headers.get(VERSION)

    @property
    def mcp_session(self) -> str | None:
        return self.request.headers.get(SESSION)

    def knows(self, mcp_session: str) -> bool:
        return self._names.has(mcp_session) and not self.collaborators.mcp.has_ended(mcp_session)

    def caller(self, mcp_session: str | None) -> Caller:
        identifier = self.query.identifier or self._names.identifier(mcp_session)
        return Caller(self.gateway, self.principal, self.pool, identifier)

    @property
    def _names(self) -> Names:
        return Names(self.collaborators.authenticator.pool_keys, self.principal, self.pool.name)

    # --- what goes out

    def open_mcp_session(self) -> None:
        """The answer says what it is called."""
        self.set_header(SESSION, self._names.new_session())

    async def send(self, message: Mapping[str, Any] | None) -> None:
        """Before the answer, to a client that takes streams; None is a sign of life."""
        if self._takes_streams:
            self._begin_stream()
            await self.push(sse.KEEP_ALIVE if message is None else sse.frame("message", dump_json(message)))

    async def finish_message(self, answer: Mapping[str, Any]) -> None:
        if self._headers_written:
            await self.push(sse.frame("message", dump_json(answer)))
            await self.finish()
        else:
            self.answer(answer)

    async def finish_cancelled(self, id: str | int) -> None:
        """The protocol wants no answer to what was cancelled, but HTTP does."""
        if self._takes_streams:
            self._begin_stream()
            await self.finish()
        else:
            self.refuse_message(200, REQUEST_CANCELLED, "The request was cancelled.", id)

    @property
    def _takes_streams(self) -> bool:
        return sse.is_wanted(self.request.headers.get("Accept", ""))

    def _begin_stream(self) -> None:
        if not self._headers_written:
            self.set_header("Content-Type", sse.CONTENT_TYPE)
            self.set_header("X-Accel-Buffering", "no")

    def answer_accepted(self) -> None:
        self.set_status(202)
        self.clear_header("Content-Type")
        self.finish()

    def refuse_message(self, status: int, code: int, text: str, id: str | int | None = None) -> None:
        self.answer({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": text}}, status)

    def envelope(self, code: str, message: str, remedy: str | None) -> dict[str, Any]:
        """As an error of JSON-RPC, the only one whose words the SDKs show; but who may not is told so as everywhere."""
        whole = super().envelope(code, message, remedy)
        status = self.get_status()
        if status in (401, 403):
            return whole
        number = INTERNAL_ERROR if status == 429 or status >= 500 else INVALID_REQUEST
        words = f"{message.rstrip('.')}. {remedy}" if remedy else message
        return {"jsonrpc": "2.0", "id": None, "error": {"code": number, "message": words, "data": whole["error"]}}

    async def push(self, data: bytes = b"") -> None:
        """One at a time: Tornado forgets about a write that another one overtakes."""
        async with self._pushing:
            self.write(data)
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    await self.flush()
            except TimeoutError:
                self.connection.close()
                raise StreamClosedError from None


def routes(collaborators: Collaborators) -> list[Any]:
    return [(POOL_PATH + "/mcp", McpHandler, {"collaborators": collaborators})]
