"""Fetches an image for an engine from its registry: as long as something comes, and as somebody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from kernelpool.backends.container import Registry
from kernelpool.backends.docker.engine import Engine, EngineError, told
from kernelpool.errors import BackendUnavailable, PrepareFailed

SILENCE: Final = 300.0
"""Seconds without a word of the engine, which tells of each piece that comes, after which a pull is given up."""


async def pull(engine: Engine, name: str, registry: Registry | None = None, *, anonymous: bool = False) -> None:
    """`anonymous`: without a login of this machine's, which belong to somebody. Raises `PrepareFailed`; a cancelled
    pull ends with the engine's next word."""
    login: dict[str, Any] | None = {} if anonymous else None
    if registry is not None and registry.username:
        login = {"username": registry.username, "password": registry.password or "", "serveraddress": registry.server}
    stop = threading.Event()
    try:
        await _apart(lambda: _pull(engine, name, login, stop))
    except asyncio.CancelledError:
        stop.set()
        raise
    except EngineError as error:
        raise PrepareFailed(_sentence(name, str(error))) from error
    except BackendUnavailable as error:
        raise PrepareFailed(
            f"the image {name} cannot be fetched: the engine is away, or nothing came of it for {SILENCE:g} s"
        ) from error


async def _apart(work: Callable[[], None]) -> None:
    """In a thread that nobody waits for who leaves, not even the end of the process: it holds nothing, and an engine
    may be silent for long."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if not done.done():
            done.set_exception(error) if error else done.set_result(None)

    def run() -> None:
        error: BaseException | None = None
        try:
            work()
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=run, name="pull", daemon=True).start()
    await done


def _pull(engine: Engine, name: str, login: dict[str, Any] | None, stop: threading.Event) -> None:
    with told():
        client = engine.connect(silence=SILENCE)
        try:
            for line in client.pull(name, auth_config=login, stream=True, decode=True):
                if stop.is_set():
                    return  # the connection ends with it, and so the pull
                if "error" in line:
                    raise PrepareFailed(_sentence(name, str(line["error"])))
        finally:
            client.close()


_CAUSES: Final[Mapping[str, str]] = {
    "no space left": "there is no room left on the engine's disk",
    "unauthorized": "the registry wants a login that may fetch it; see container.registry",
    "authentication required": "the registry wants a login that may fetch it; see container.registry",
    "incorrect username or password": "the registry refuses the username and password of container.registry",
    "denied": "it does not exist there, or needs a login; see container.registry",
    "manifest unknown": "the registry does not have this tag",
    "not found": "the registry does not have it",
    "no such host": "there is no such registry",
    "connection refused": "the registry does not answer",
    "timeout": "the registry does not answer",
}


def _sentence(name: str, said: str) -> str:
    cause = next((text for word, text in _CAUSES.items() if word in said.lower()), "")
    return f"the image {name} cannot be fetched: {cause or said[:300]}"
