"""A gateway inside of a command, for as long as the command needs it: `kernelpool run` where no other is named."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress

import click
from rich.console import Console
from rich.text import Text

from kernelpool import server
from kernelpool.backends.base import Say
from kernelpool.client import Client, ClientError
from kernelpool.client.profiles import Profile
from kernelpool.config import Settings
from kernelpool.errors import InvalidRequest, StartFailed
from kernelpool.telemetry.logs import configure_logging

UNLIMITED = math.inf


@contextmanager
def embedded_client(context: click.Context, pool: str, timeout: float | None) -> Iterator[Client]:
    """As `embedded_gateway`. Code may run as long as a session may live: whoever started it is here to end it."""
    with embedded_gateway(context, pool, timeout or UNLIMITED) as gateway, Client(gateway.url, gateway.token) as client:
        yield client


@contextmanager
def embedded_gateway(context: click.Context, pool: str, timeout: float | None = None) -> Iterator[Profile]:
    """On a free port of this machine, with the settings that `serve` would have. Raises `KernelpoolError`."""
    config, common = context.find_root().obj
    configure_logging(common["log_level"] or "error")
    settings = settings_for_one_run(Settings.load(config, os.environ, common), pool, timeout)
    assert settings.token is not None  # made just now
    with _running(settings) as url:
        yield Profile(url, settings.token.get_secret_value())


def settings_for_one_run(settings: Settings, pool: str, timeout: float | None) -> Settings:
    """The sandboxes are the operator's, the surface is nobody's but ours, and nothing is kept warm, so that the first
    code waits for a sandbox as long as one may take to start. Sessions last as long as the command does. With a
    `timeout` code may run so long, though no longer than a session may live; else as long as the pool says. Raises
    `InvalidRequest`."""
    if pool not in settings.pools:
        raise InvalidRequest(f"there is no pool {pool!r}, only {', '.join(settings.pools)}")
    pools = {}
    for name, wanted in settings.pools.items():
        longest = None if timeout is None else wanted.max_alive if timeout == UNLIMITED else timeout
        waits = max(wanted.allocation_timeout, wanted.start_timeout)
        times = {} if longest is None else {"default_timeout": longest, "max_timeout": longest}
        pools[name] = wanted.model_copy(
            update={"ready": 0, "allocation_timeout": waits, "cooldown": wanted.max_alive, **times}
        )
    return Settings.model_validate(
        {
            "host": "127.0.0.1",
            "port": 0,
            "token": secrets.token_urlsafe(32),
            "state_dir": settings.state_dir,
            "allow_insecure": settings.allow_insecure,
            "docker": settings.docker.model_dump(),
            "pools": {name: each.model_dump() for name, each in pools.items()},
        }
    )


class _Stop(server.Stop):
    def listen(self) -> None:
        """Signals are the command's."""


@contextmanager
def _running(settings: Settings) -> Iterator[str]:
    """In a thread with an event loop of its own, so that the command can do as with any other gateway."""
    url: Future[str] = Future()
    loop, stop = asyncio.new_event_loop(), _Stop()
    serving = loop.create_task(_serve(settings, stop, url))
    thread = threading.Thread(target=_loop_until, args=(loop, serving), name="gateway")
    thread.start()
    try:
        yield _known(url)
        loop.call_soon_threadsafe(stop)
    except BaseException:
        # Before it serves there is nothing to drain, and after a failure nobody to wait for.
        loop.call_soon_threadsafe(stop if url.done() else serving.cancel)
        raise
    finally:
        thread.join()
        loop.close()


def _known(url: Future[str]) -> str:
    """Raises what kept the gateway from serving, with a way out where there is one."""
    try:
        return url.result()
    except StartFailed as error:
        if "another gateway" not in error.message:
            raise
        remedy = "Or name it with --url and --token."
        raise ClientError(error.message, code=error.code, remedy=remedy) from error


async def _serve(settings: Settings, stop: server.Stop, url: Future[str]) -> None:
    try:
        with ExitStack() as stack:
            say = stack.enter_context(_saying())

            def announce(address: str) -> None:
                stack.close()  # from now on it is the code's output that is looked at
                url.set_result(address)

            await server.serve(settings, lambda text: None if url.done() else say(text), stop, announce=announce)
    except BaseException as error:
        if not url.done():
            url.set_exception(error)
            return
        raise


def _loop_until(loop: asyncio.AbstractEventLoop, serving: asyncio.Task[None]) -> None:
    with suppress(asyncio.CancelledError):
        loop.run_until_complete(serving)
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())


@contextmanager
def _saying() -> Iterator[Say]:
    """What the start does, while somebody looks at it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status("starting a sandbox") as status:
        yield lambda text: status.update(Text(text.strip()[: console.width - 4]))
