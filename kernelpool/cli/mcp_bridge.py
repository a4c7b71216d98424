"""The MCP server that `kernelpool mcp` is: it asks another one, over HTTP, whatever it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import httpx2
import mcp_types as types
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError

from kernelpool import __version__
from kernelpool.api.mcp.server import described, instructions_of, list_templates
from kernelpool.client import ClientError
from kernelpool.client.connection import LOOPBACK
from kernelpool.client.profiles import Profile
from kernelpool.errors import KernelpoolError

Context = ServerRequestContext[Any, Any]
MOUNTS: dict[str, httpx2.AsyncBaseTransport | None] = {f"all://{host}": None for host in LOOPBACK}
"""No proxy of the environment stands between a process and its own machine."""
TIMEOUT = httpx2.Timeout(30, read=300)
"""Seconds. While a tool runs the gateway says so every few of them."""
TICK_SECONDS = 3.0
"""Between two signs of life, to a host whose call waits for a gateway that is starting."""
TICK = 0.001
"""Their progress: it must not go back, and what follows counts seconds."""


class Starting:
    """A gateway that will be there, and what a host is told until then."""

    def __init__(self, language: str, *, reaches_out: bool) -> None:
        self.language = language
        self.reaches_out = reaches_out
        self.endpoint: asyncio.Future[Profile] = asyncio.get_running_loop().create_future()
        self.saying = "starting a gateway"


async def serve(endpoint: Profile, lines: AsyncIterator[str]) -> None:
    """`lines`: what the host says. Raises `ClientError` when the gateway cannot be asked."""
    with _told_in_a_line():
        async with _connected(endpoint) as upstream:
            await _speak(_Server(lambda context: _now(upstream), upstream.instructions), lines)


async def serve_early(gateway: Starting, lines: AsyncIterator[str]) -> None:
    """As `serve`, for a gateway that is only starting: hosts give up on a server that says nothing for a minute. When
    it fails, calls are told so, and it is raised once the host has left."""
    upstream: asyncio.Future[Client] = asyncio.get_running_loop().create_future()

    async def connect() -> None:
        try:
            async with _connected(await asyncio.shield(gateway.endpoint)) as client:
                upstream.set_result(client)
                await asyncio.Event().wait()  # until it is cancelled: who opens a client has to close it
        except Exception as error:  # of the gateway, or of the way to it
            if upstream.done():
                raise
            upstream.set_exception(_first(error))

    with _told_in_a_line():
        async with asyncio.TaskGroup() as group:
            connecting = group.create_task(connect())
            try:
                await _speak(_EarlyServer(upstream, gateway), lines)
            finally:
                failure = upstream.exception() if upstream.done() else None
            connecting.cancel()
        if failure is not None:
            raise failure


class _Server:
    """`upstream` is asked with the context of each request."""

    def __init__(self, upstream: Callable[[Context], Awaitable[Client]], instructions: str | None) -> None:
        self.upstream = upstream
        self.instructions = instructions

    async def list_tools(self, context: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return await (await self.upstream(context)).list_tools()

    async def call_tool(self, context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        upstream = await self.upstream(context)
        progress = context.session.report_progress
        return await upstream.call_tool(params.name, params.arguments, progress_callback=progress)

    async def list_resources(
        self, context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        return await (await self.upstream(context)).list_resources()

    async def list_templates(
        self, context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        return await (await self.upstream(context)).list_resource_templates()

    async def read_resource(
        self, context: Context, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        return await (await self.upstream(context)).read_resource(str(params.uri))


class _EarlyServer(_Server):
    """Answers what hosts ask in the beginning, all of it known; the rest waits for the gateway."""

    def __init__(self, upstream: asyncio.Future[Client], gateway: Starting) -> None:
        super().__init__(self._wait, instructions_of(gateway.language))
        self._client = upstream
        self._gateway = gateway

    async def list_tools(self, context: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=described(self._gateway.language, reaches_out=self._gateway.reaches_out))

    async def list_resources(
        self, context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        if not self._client.done():
            return types.ListResourcesResult(resources=[])  # a session that is to be made has no files
        return await super().list_resources(context, params)

    async def list_templates(
        self, context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        return await list_templates(context, params)

    async def _wait(self, context: Context) -> Client:
        ticks = 0
        while not self._client.done():
            await asyncio.wait({self._client}, timeout=TICK_SECONDS)
            if not self._client.done():
                ticks += 1
                await context.session.report_progress(ticks * TICK, None, self._gateway.saying)
        if failure := self._client.exception():
            remedy = failure.remedy if isinstance(failure, KernelpoolError) else ""
            raise MCPError(types.INTERNAL_ERROR, f"There is no sandbox: {failure} {remedy}".strip()) from failure
        return self._client.result()


async def _now(upstream: Client) -> Client:
    return upstream


@asynccontextmanager
async def _connected(endpoint: Profile) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {endpoint.token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=TIMEOUT, mounts=MOUNTS) as http,
        Client(streamable_http_client(endpoint.url, http_client=http, max_sse_event_size=None), cache=None) as upstream,
    ):
        yield upstream


async def _speak(bridge: _Server, lines: AsyncIterator[str]) -> None:
    server: Server[Any] = Server(
        "kernelpool",
        version=__version__,
        instructions=bridge.instructions,
        on_list_tools=bridge.list_tools,
        on_call_tool=bridge.call_tool,
        on_list_resources=bridge.list_resources,
        on_list_resource_templates=bridge.list_templates,
        on_read_resource=bridge.read_resource,
    )
    server.middleware.clear()
    async with stdio_server(stdin=cast("Any", lines)) as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


@contextmanager
def _told_in_a_line() -> Iterator[None]:
    try:
        yield
    except (MCPError, httpx2.HTTPError, BaseExceptionGroup) as error:
        first = _first(error)
        if not isinstance(first, MCPError | httpx2.HTTPError):
            raise
        raise ClientError(f"the gateway's MCP server cannot be asked: {first}") from None


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
