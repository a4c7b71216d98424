"""`mcp`: one session for a desktop host that speaks MCP over stdin and stdout. Needs the extra `mcp`.

What the host asks is asked of a gateway's own MCP server: that of --url or a profile, else one inside of this command.
So the tools are the same everywhere, and each side speaks the revision of the protocol that it likes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote, urlencode

import click

from kernelpool.cli.remote import Remote, pool_option, remote_command
from kernelpool.client import Client
from kernelpool.client.profiles import Profile
from kernelpool.errors import McpNotInstalled

STDIN = 0
CHUNK = 64 << 10


@click.command()
@click.option(
    "-s",
    "--session",
    "identifier",
    metavar="ID",
    help="A session that outlives this command, for as long as its cooldown. Without one it has its own.",
)
@pool_option
@remote_command
@click.pass_context
def mcp(context: click.Context, remote: Remote, identifier: str | None, pool: str) -> None:
    """Serve MCP on stdin and stdout, for Claude Desktop, VS Code, Cursor and the like.

    Without --url or a profile it has a gateway of its own.

    \b
    {"mcpServers": {"python": {"command": "kernelpool", "args": ["mcp"]}}}
    """
    bridge = _bridge()
    with (
        _gateway(context, remote, pool) as gateway,
        Client(gateway.url, gateway.token) as client,
        client.pool(pool).session(identifier) as session,
    ):
        client.pool(pool).info()  # raises what is wrong with URL, token or name, before a host is told anything
        asyncio.run(_serve(bridge, gateway, pool, session.identifier))


def _bridge() -> Any:
    """Raises `McpNotInstalled`."""
    try:
        from kernelpool.cli import mcp_bridge  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise McpNotInstalled(f"the package '{error.name}' is not installed") from error
    return mcp_bridge


@contextmanager
def _gateway(context: click.Context, remote: Remote, pool: str) -> Iterator[Profile]:
    if remote.is_named():
        yield remote.resolve()
    else:
        from kernelpool.cli.embedded import embedded_gateway  # noqa: PLC0415 - takes a second to load

        with embedded_gateway(context, pool) as gateway:
            yield gateway


async def _serve(bridge: Any, gateway: Profile, pool: str, identifier: str) -> None:
    """Until stdin ends, or somebody ends the command."""
    query = urlencode({"identifier": identifier})
    endpoint = f"{gateway.url.rstrip('/')}/pools/{quote(pool, safe='')}/mcp?{query}"
    serving = asyncio.create_task(bridge.serve(endpoint, gateway.token, _lines()))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    with suppress(asyncio.CancelledError):
        await serving


async def _lines() -> AsyncIterator[str]:
    """Of stdin. Read by a thread that nobody waits for: a read of a terminal cannot be cancelled."""
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(16)
    loop = asyncio.get_running_loop()

    def put(line: bytes | None) -> None:
        asyncio.run_coroutine_threadsafe(queue.put(line), loop).result()

    threading.Thread(target=_read, args=(put,), name="stdin", daemon=True).start()
    while (line := await queue.get()) is not None:
        yield line.decode(errors="replace")


def _read(put: Any) -> None:
    rest = b""
    with suppress(RuntimeError):  # the loop is closed
        while data := os.read(STDIN, CHUNK):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                put(line)
        put(None)
