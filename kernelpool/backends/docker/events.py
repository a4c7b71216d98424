"""What the engine tells of our containers, followed as long as the backend lives, over every break of the stream."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from docker import APIClient
from docker.errors import DockerException
from docker.types import CancellableStream

from kernelpool.backends.docker.engine import Engine, EngineError, told
from kernelpool.backends.docker.labels import GATEWAY, SANDBOX
from kernelpool.errors import BackendUnavailable
from kernelpool.tasks import Tasks, finish

log = logging.getLogger(__name__)
T = TypeVar("T")

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 10.0
_OVERLAP: Final = 5.0
"""Seconds of the past that a new stream begins with: the engine subscribes us a moment after it has answered."""


class Events:
    """An async context manager. `connected` is awaited whenever a stream has begun, to look at what may have been
    missed; `died` gets the sandbox of each container that has ended, some of them again and some unknown."""

    def __init__(
        self,
        engine: Engine,
        tag: str,
        connected: Callable[[], Awaitable[None]],
        died: Callable[[str], None],
        *,
        quiet: float = 30.0,
    ) -> None:
        """`quiet`: seconds without an event after which a new stream is begun, for an engine that is gone without a
        word looks just the same; and the most that leaving may take."""
        self._engine = engine
        self._tag = tag
        self._connected = connected
        self._died = died
        self._failures = 0
        self._again = asyncio.Event()
        self._quiet = quiet
        # A thread of its own, since it waits for as long as nothing happens.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="docker events")
        self._tasks = Tasks("docker events")

    def __repr__(self) -> str:
        return f"<Events of {self._engine!r} [{f'{self._failures} failures' if self._failures else 'connected'}]>"

    async def __aenter__(self) -> Self:
        self._tasks.spawn(self._follow(), "follow")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.aclose()
        await finish(asyncio.to_thread(self._thread.shutdown))

    async def _follow(self) -> None:
        while True:
            began, error = time.monotonic(), None
            try:
                await self._one_stream()
            except (BackendUnavailable, EngineError) as caught:
                error = caught.__cause__ if isinstance(caught, BackendUnavailable) else caught
            except Exception as caught:  # whatever it is, deaths have to be heard of
                error = caught
                log.exception("the engine's events could not be followed")
            lived = time.monotonic() - began
            # Being answered proves little: an engine may take each call and end it at once.
            self._failures = 1 if lived > min(self._quiet, _LONGEST_PAUSE) else self._failures + 1
            pause = pause_after(self._failures, random.random())  # noqa: S311 - no secret
            level = logging.DEBUG if lived >= self._quiet else logging.WARNING
            log.log(
                level, "the engine's events broke off", extra={"error": str(error or ""), "retry_in": round(pause, 2)}
            )
            await asyncio.sleep(pause)

    def look_again(self) -> None:
        """Something may have been left behind: begins a new stream, after a pause, and so looks at everything."""
        self._again.set()

    async def _one_stream(self) -> None:
        """Until it ends."""
        self._again.clear()
        client, stream = await self._in_thread(self._open)
        try:
            await self._connected()
            while (event := await self._next(stream)) is not None:
                if id := event.get("Actor", {}).get("Attributes", {}).get(SANDBOX):
                    self._died(id)
        finally:
            await finish(asyncio.to_thread(_close, client, stream))

    async def _next(self, stream: Iterator[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """None: there are no more, or it is time to look again."""
        reading = asyncio.ensure_future(self._in_thread(partial(next, stream, None)))
        asking = asyncio.ensure_future(self._again.wait())
        reading.add_done_callback(_seen)
        try:
            await asyncio.wait((reading, asking), return_when=asyncio.FIRST_COMPLETED)
            return reading.result() if reading.done() else None
        finally:
            asking.cancel()

    def _open(self) -> tuple[APIClient, Iterator[Mapping[str, Any]]]:
        """Not by the package's own `events`, which waits for ever and takes a refusal for a stream."""
        client = self._engine.connect()
        filters = {"type": ["container"], "event": ["die"], "label": [f"{GATEWAY}={self._tag}"]}
        asked = {"since": str(int(time.time() - _OVERLAP)), "filters": json.dumps(filters)}
        url = f"{client.base_url}/v{client.api_version}/events"
        try:
            response = client.get(url, params=asked, stream=True, timeout=(self._quiet, self._quiet))
            if response.status_code != HTTPStatus.OK:
                raise EngineError(response.status_code, f"it refuses to tell of events: {response.text[:200]}")
        except BaseException:
            client.close()
            raise
        lines = response.iter_lines(chunk_size=1)
        return client, CancellableStream((json.loads(line) for line in lines if line), response)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, _told, function)


def pause_after(failures: int, chance: float) -> float:
    """Seconds. Half of it is left to chance, so that gateways of one engine do not all come at once."""
    return float(min(_FIRST_PAUSE * 2 ** min(failures - 1, 30), _LONGEST_PAUSE) * (0.5 + chance / 2))


def _told(function: Callable[[], T]) -> T:
    with told():
        return function()


def _seen(reading: asyncio.Future[Any]) -> None:
    """Nobody may be waiting any more for how it ended."""
    if not reading.cancelled():
        reading.exception()


def _close(client: APIClient, stream: Any) -> None:
    """Wakes up the thread that reads it."""
    try:
        stream.close()
    except (DockerException, OSError, AttributeError) as error:  # the connection may be in any state
        log.debug("stream was closed already", extra={"error": str(error)})
    client.close()
