"""One session through REST, Jupyter's WebSocket and MCP: what is written by one is read by the next."""

from __future__ import annotations

import asyncio
import uuid

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import TextContent

from tests.e2e.gateways import SECONDS, TOKEN, Gateway
from tests.e2e.jupyter import Server, text_of


def through_every_door(gateway: Gateway, *, write: str, read: str) -> list[str]:
    """What was read of 1, 2 and 3. `write` is code with `{}` for the number, `read` code that prints it."""
    session = gateway.session(f"doors-{uuid.uuid4().hex}")
    assert session.run(write.format(1))["status"] == "Succeeded"
    server = Server(gateway)
    [kernel] = [each for each in server.ask("GET", "/api/kernels") if each["identifier"] == session.identifier]
    with server.connected(kernel) as client:
        first = text_of(client.run(read))
        client.run(write.format(2))
    second = asyncio.run(_call(f"{gateway.endpoint}/mcp?identifier={session.identifier}", read, write.format(3)))
    third = session.run(read)["result"]["stdout"]
    session.delete()
    return [first, second, third]


async def _call(url: str, *codes: str) -> str:
    """What the first of them prints."""
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=SECONDS) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        results = [await client.call_tool("run_code", {"code": code}) for code in codes]
    return "".join(part.text for part in results[0].content if isinstance(part, TextContent))
