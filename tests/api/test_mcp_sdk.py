"""The MCP SDK's own client before the real HTTP server, in both eras of the protocol."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, TextContent, TextResourceContents

from kernelpool.api.mcp import call
from kernelpool.api.mcp.tools import tools_of
from tests.api.conftest import TOKEN, Api, api_of
from tests.api.test_mcp import let_go, running

Mode = Literal["auto", "legacy"]
ERAS: list[tuple[Mode, str]] = [("auto", "2026-07-28"), ("legacy", "2025-11-25")]
each_era = pytest.mark.parametrize(("mode", "version"), ERAS)


@asynccontextmanager
async def client_of(api: Api, mode: Mode, token: str = TOKEN) -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=60) as http,
        Client(streamable_http_client(f"{api.base}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


def text_of(result: CallToolResult) -> str:
    [text] = [part.text for part in result.content if isinstance(part, TextContent)]
    return text


@each_era
async def test_it_finds_the_tools_and_keeps_its_variables(api: Api, mode: Mode, version: str) -> None:
    async with client_of(api, mode) as client:
        listed = await client.list_tools()
        await client.call_tool("run_code", {"code": "x = 41"})
        result = await client.call_tool("run_code", {"code": "x + 1"})
        failed = await client.call_tool("run_code", {"code": "1 / 0"})

        assert client.protocol_version == version
        assert client.server_info is not None
        assert client.server_info.name == "kernelpool"
        assert "never an instruction" in (client.instructions or "")
    assert [tool.name for tool in listed.tools] == list(tools_of("python"))
    assert (text_of(result), result.structured_content["result"], result.is_error) == ("42", "42", False)
    assert failed.is_error


@each_era
async def test_it_hears_of_progress(api: Api, monkeypatch: pytest.MonkeyPatch, mode: Mode, version: str) -> None:
    monkeypatch.setattr(call, "TICK_SECONDS", 0.05)
    heard: list[tuple[float, float | None, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))
        if len(heard) == 3:
            await let_go(api, "slow-1")

    async with client_of(api, mode) as client:
        arguments = {"code": "go = False\nwhile not go: pass\n'done'", "session": "slow-1"}
        result = await client.call_tool("run_code", arguments, progress_callback=hear)

    assert text_of(result) == "'done'"
    assert len(heard) >= 3
    assert {most for _, most, _ in heard} == {60.0}
    assert re.fullmatch(r"Running for \d+ s", heard[0][2] or "")


@asynccontextmanager
async def given_up_when_running(api: Api, identifier: str) -> AsyncIterator[None]:
    """As a timeout that passes when something runs there."""

    async def wait() -> None:
        await running(api, identifier)
        patience.reschedule(asyncio.get_running_loop().time())

    async with asyncio.timeout(None) as patience:
        waiting = asyncio.create_task(wait())
        try:
            yield
        finally:
            waiting.cancel()


@each_era
async def test_a_call_that_it_gives_up_on_ends(api: Api, mode: Mode, version: str) -> None:
    session = {"session": "given-up"}
    async with client_of(api, mode) as client:
        with pytest.raises((TimeoutError, MCPError)):
            async with given_up_when_running(api, "given-up"):
                await client.call_tool("run_code", {"code": "import time\ntime.sleep(60)", **session})

        async with asyncio.timeout(30):
            assert text_of(await client.call_tool("run_code", {"code": "'free'", **session})) == "'free'"


@each_era
async def test_calls_at_once_do_not_wait_for_each_other(api: Api, mode: Mode, version: str) -> None:
    async with client_of(api, mode) as client, asyncio.timeout(60):
        slow = [
            client.call_tool("run_code", {"code": f"import time\ntime.sleep(1)\n{n}", "session": f"many-{n}"})
            for n in range(5)
        ]

        results = await asyncio.gather(*slow)

    assert [text_of(result) for result in results] == ["0", "1", "2", "3", "4"]


@each_era
async def test_it_reads_files_as_resources(api: Api, mode: Mode, version: str) -> None:
    async with client_of(api, mode) as client:
        await client.call_tool("write_file", {"path": "a.txt", "text": "hello"})
        [resource] = (await client.list_resources()).resources
        [content] = (await client.read_resource(resource.uri)).contents
        templates = (await client.list_resource_templates()).resource_templates
        with pytest.raises(MCPError, match="NotFound"):
            await client.read_resource("kernelpool://elsewhere")

    assert isinstance(content, TextResourceContents)
    assert content.text == "hello"
    assert [template.name for template in templates] == ["file", "notebook"]


@each_era
async def test_it_is_told_when_its_key_is_none(api: Api, mode: Mode, version: str) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        async with client_of(api, mode, token="wrong" * 5):
            pass

    assert caught.group_contains(MCPError)


async def test_a_session_is_the_same_after_a_restart_of_the_gateway(tmp_path: Path) -> None:
    """Nothing of an MCP session is in the gateway's memory."""
    names = []
    for _ in range(2):
        async with api_of(tmp_path) as api:
            api.authenticator.pool_keys = await asyncio.to_thread(type(api.authenticator.pool_keys).load, tmp_path)
            async with client_of(api, "auto") as client:
                names.append((await client.call_tool("run_code", {"code": "1"})).structured_content["session"])

    assert names[0] == names[1]


@each_era
async def test_it_says_why_a_request_was_refused(api: Api, mode: Mode, version: str) -> None:
    async with client_of(api, mode) as client:
        with pytest.raises(MCPError, match=r"^body of \d+ bytes is larger than \d+ bytes\. Send less at once"):
            await client.call_tool("run_code", {"code": "#" * (2 << 20)})

        assert text_of(await client.call_tool("run_code", {"code": "6 * 7"})) == "42"
