"""`mcp`: one session for a desktop host that speaks MCP over stdin and stdout. Needs the extra `mcp`.

What the host asks is asked of a gateway's own MCP server: that of --url or a profile, else one inside of this command.
So the tools are the same everywhere, and each side speaks the revision of the protocol that it likes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlencode

import click

from kernelpool.cli.remote import Remote, pool_option, remote_command
from kernelpool.client import Client
from kernelpool.client.calls import new_identifier
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
    help="With --url or a profile: a session that outlives this command, for as long as its cooldown.",
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
    if remote.is_named():
        _serve_remote(bridge, remote.resolve(), pool, identifier)
    else:
        asyncio.run(_until_signalled(_serve_alone(bridge, context, pool, identifier or new_identifier())))


def _bridge() -> Any:
    """Raises `McpNotInstalled`."""
    try:
        from kernelpool.cli import mcp_bridge  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise McpNotInstalled(f"the package '{error.name}' is not installed") from error
    return mcp_bridge


def _serve_remote(bridge: Any, gateway: Profile, pool: str, identifier: str | None) -> None:
    with Client(gateway.url, gateway.token) as client, client.pool(pool).session(identifier) as session:
        client.pool(pool).info()  # raises what is wrong with URL, token or name, before a host is told anything
        endpoint = _endpoint(gateway.url, gateway.token, pool, session.identifier)
        asyncio.run(_until_signalled(bridge.serve(endpoint, _lines())))


async def _serve_alone(bridge: Any, context: click.Context, pool: str, identifier: str) -> None:
    """With a gateway on the same event loop, which may have to make first what sandboxes see: a host is answered
    meanwhile."""
    from kernelpool import server  # noqa: PLC0415 - takes a second to load
    from kernelpool.cli.embedded import CommandStop, embedded_settings, token_of  # noqa: PLC0415
    from kernelpool.runtimes import load_runtimes  # noqa: PLC0415

    settings, stop = embedded_settings(context, pool), CommandStop()
    wanted = settings.pools[pool]
    runtime = load_runtimes().get(wanted.runtime)  # a pool of none is refused by the gateway
    starting = bridge.Starting(runtime.language if runtime else "", reaches_out=bool(wanted.egress))

    def say(text: str) -> None:
        starting.saying = text.strip()

    def announce(url: str) -> None:
        starting.endpoint.set_result(_endpoint(url, token_of(settings), pool, identifier))

    serving = asyncio.create_task(server.serve_command(settings, say, stop, announce=announce))
    speaking = asyncio.create_task(bridge.serve_early(starting, _lines()))

    def gone(_: object) -> None:
        if starting.endpoint.done() or serving.cancelled():
            speaking.cancel()
        elif error := serving.exception():
            starting.endpoint.set_exception(error)  # and whoever calls is told

    serving.add_done_callback(gone)
    try:
        await speaking
    finally:
        stop() if starting.endpoint.done() else serving.cancel()
        await asyncio.gather(serving, speaking, return_exceptions=True)


def _endpoint(url: str, token: str, pool: str, identifier: str) -> Profile:
    query = urlencode({"identifier": identifier})
    return Profile(f"{url.rstrip('/')}/pools/{quote(pool, safe='')}/mcp?{query}", token)


async def _until_signalled(work: Coroutine[Any, Any, None]) -> None:
    """Until it is over, because stdin ends, or somebody ends the command."""
    serving = asyncio.create_task(work)
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
