"""A gateway inside of a command, for as long as the command needs it: `kernelpool run` where no other is named."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress

import click
from rich.console import Console
from rich.text import Text

from kernelpool import server
from kernelpool.backends.base import Say
from kernelpool.client import Client
from kernelpool.config import Settings
from kernelpool.errors import InvalidRequest
from kernelpool.telemetry.logs import configure_logging

UNLIMITED = math.inf


@contextmanager
def embedded_client(context: click.Context, pool: str, timeout: float | None) -> Iterator[Client]:
    """Of a gateway on a free port of this machine, with the settings that `serve` would have. Without a timeout code
    may run as long as a session may live: whoever started it is here to end it. Raises `KernelpoolError`."""
    settings = embedded_settings(context, pool, timeout or UNLIMITED)
    with _leaving_at_sigterm(), _running(settings) as url, Client(url, token_of(settings)) as client:
        yield client


def embedded_settings(context: click.Context, pool: str, timeout: float | None = None) -> Settings:
    """Raises `KernelpoolError`."""
    config, common = context.find_root().obj
    configure_logging(common["log_level"] or "error")
    return settings_for_one_run(Settings.load(config, os.environ, common), pool, timeout)


def token_of(settings: Settings) -> str:
    assert settings.token is not None  # made for this command
    return settings.token.get_secret_value()


def settings_for_one_run(settings: Settings, pool: str, timeout: float | None) -> Settings:
    """The sandboxes are the operator's, the surface is nobody's but ours, and nothing is kept warm, so that the first
    code waits for a sandbox as long as one may take to start. There is no other pool, and sessions last as long as the
    command does. With a `timeout` code may run so long, though no longer than a session may live; else as long as the
    pool says. Raises `InvalidRequest`."""
    if pool not in settings.pools:
        raise InvalidRequest(f"there is no pool {pool!r}, only {', '.join(settings.pools)}")
    wanted = settings.pools[pool]
    longest = None if timeout is None else wanted.max_alive if timeout == UNLIMITED else timeout
    waits = max(wanted.allocation_timeout, wanted.start_timeout)
    times = {} if longest is None else {"default_timeout": longest, "max_timeout": longest}
    only = wanted.model_copy(update={"ready": 0, "allocation_timeout": waits, "cooldown": wanted.max_alive, **times})
    return Settings.model_validate(
        {
            "host": "127.0.0.1",
            "port": 0,
            "token": secrets.token_urlsafe(32),
            "state_dir": settings.state_dir,
            "allow_insecure": settings.allow_insecure,
            "docker": settings.docker.model_dump(),
            "pools": {pool: only.model_dump()},
        }
    )


@contextmanager
def _leaving_at_sigterm() -> Iterator[None]:
    """By the way that leaves nothing behind."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class CommandStop(server.Stop):
    def listen(self) -> None:
        """Signals are the command's."""


@contextmanager
def _running(settings: Settings) -> Iterator[str]:
    """In a thread with an event loop of its own, so that the command can do as with any other gateway."""
    url: Future[str] = Future()
    loop, stop = asyncio.new_event_loop(), CommandStop()
    serving = loop.create_task(_serve(settings, stop, url))
    thread = threading.Thread(target=_loop_until, args=(loop, serving), name="gateway")
    thread.start()
    try:
        yield url.result()
        loop.call_soon_threadsafe(stop)
    except BaseException:
        # Before it serves there is nothing to drain, and after a failure nobody to wait for.
        loop.call_soon_threadsafe(stop if url.done() else serving.cancel)
        raise
    finally:
        thread.join()
        loop.close()


async def _serve(settings: Settings, stop: server.Stop, url: Future[str]) -> None:
    try:
        with ExitStack() as stack:
            say = stack.enter_context(_saying())

            def announce(address: str) -> None:
                stack.close()  # from now on it is the code's output that is looked at
                url.set_result(address)

            await server.serve_command(
                settings, lambda text: None if url.done() else say(text), stop, announce=announce
            )
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
