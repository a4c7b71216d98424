"""The MCP server that `kernelpool mcp` is: it asks another one, over HTTP, whatever it is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
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
from kernelpool.client import ClientError
from kernelpool.client.connection import LOOPBACK

Context = ServerRequestContext[Any, Any]
MOUNTS: dict[str, httpx2.AsyncBaseTransport | None] = {f"all://{host}": None for host in LOOPBACK}
"""No proxy of the environment stands between a process and its own machine."""
TIMEOUT = httpx2.Timeout(30, read=300)
"""Seconds. While a tool runs the gateway says so every few of them."""


async def serve(endpoint: str, token: str, lines: AsyncIterator[str]) -> None:
    """`lines`: what the host says. Raises `ClientError` when the gateway cannot be asked."""
    try:
        async with (
            httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT, mounts=MOUNTS) as http,
            Client(streamable_http_client(endpoint, http_client=http, max_sse_event_size=None), cache=None) as upstream,
            stdio_server(stdin=cast("Any", lines)) as (reading, writing),
        ):
            server = _server(upstream)
            await server.run(reading, writing, server.create_initialization_options())
    except (MCPError, httpx2.HTTPError, BaseExceptionGroup) as error:
        first = _first(error)
        if not isinstance(first, MCPError | httpx2.HTTPError):
            raise
        raise ClientError(f"the gateway's MCP server cannot be asked: {first}") from None


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _server(upstream: Client) -> Server[Any]:
    async def list_tools(context: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return await upstream.list_tools()

    async def call_tool(context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        progress = context.session.report_progress
        return await upstream.call_tool(params.name, params.arguments, progress_callback=progress)

    async def list_resources(
        context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        return await upstream.list_resources()

    async def list_templates(
        context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        return await upstream.list_resource_templates()

    async def read_resource(context: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        return await upstream.read_resource(str(params.uri))

    server: Server[Any] = Server(
        "kernelpool",
        version=__version__,
        instructions=upstream.instructions,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
    )
    server.middleware.clear()
    return server
