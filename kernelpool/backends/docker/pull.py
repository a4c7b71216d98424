"""Fetches an image for an engine from its registry: as long as something comes, and as somebody waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
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
    work = asyncio.ensure_future(asyncio.to_thread(_pull, engine, name, login, stop))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        stop.set()  # the thread is not waited for: it holds nothing, and the engine may be silent for long
        work.add_done_callback(lambda work: work.exception())
        raise
    except EngineError as error:
        raise PrepareFailed(_sentence(name, str(error))) from error
    except BackendUnavailable as error:
        raise PrepareFailed(
            f"the image {name} cannot be fetched: the engine is away, or nothing came of it for {SILENCE:g} s"
        ) from error


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
