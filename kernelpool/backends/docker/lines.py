"""Ways to sandboxes on an engine elsewhere: a socket here for each, and the line that carries its connections there.

Whoever uses such a socket need not know: it is one of an agent. A line is made again when it has broken; what it
carried is broken by then, as when an agent's own connection breaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from kernelpool.backends.bwrap_argv import PYTHON
from kernelpool.backends.docker import relay
from kernelpool.backends.docker.container import AGENT_PORT
from kernelpool.backends.docker.engine import Engine, EngineError
from kernelpool.backends.docker.line import Line
from kernelpool.backends.tree.steps import in_thread
from kernelpool.errors import BackendUnavailable, SandboxLost
from kernelpool.tasks import Tasks

log = logging.getLogger(__name__)

RELAY_USER: Final = "65533:65533"
"""Neither the sandbox's user nor root: who runs code there can neither stop it nor look into it."""
_BACKLOG: Final = 128
_SOON: Final = 5.0
"""Seconds that a connection waits for a line."""


class Way:
    """To one sandbox."""

    def __init__(self, engine: Engine, container: str, command: Sequence[str], away: Callable[[], None]) -> None:
        """`away` is called when the engine does not answer."""
        self._engine = engine
        self._container = container
        self._command = list(command)
        self._away = away
        # The mutable state: the listener, the line, who is about to make one, and whether the engine was away by then.
        self._server: asyncio.Server | None = None
        self._line: Line | None = None
        self._opening: asyncio.Task[Line] | None = None
        self._is_away = False
        self._tasks = Tasks("way to a sandbox")

    def __repr__(self) -> str:
        return f"<Way to {self._container} [{self._line or 'no line'}]>"

    async def listen(self, path: Path) -> None:
        """Takes connections there from now on. Raises `OSError`."""
        listener = await in_thread(_listener, path)
        self._server = await asyncio.start_unix_server(self._accept, sock=listener)

    async def line(self) -> Line:
        """Raises `BackendUnavailable` when it is the engine that is missing, `SandboxLost`."""
        if self._line is not None and not self._line.is_broken:
            return self._line
        if self._opening is None or self._opening.done():
            self._opening = self._tasks.spawn(self._open(), "open a line", apart=True)
        return await asyncio.shield(self._opening)

    async def is_away(self) -> bool:
        """Whether the engine does not answer, or not soon: nothing is known of the sandbox then."""
        try:
            await self._line_soon()
        except BackendUnavailable:
            return True
        except SandboxLost:
            return False
        return False

    def look_again(self) -> None:
        """The engine may have come back."""
        if self._is_away and (self._opening is None or self._opening.done()):
            self._tasks.spawn(self._try(), "look again", apart=True)

    async def aclose(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._tasks.aclose()
        if self._line is not None:
            await self._line.aclose()

    async def _open(self) -> Line:
        name, user = self._container, RELAY_USER
        try:
            made = await self._engine.call(
                lambda client: client.exec_create(
                    name, self._command, stdin=True, stdout=True, stderr=False, user=user, workdir="/"
                )
            )
            stream = await self._engine.stream(f"/exec/{made['Id']}/start", {"Detach": False, "Tty": False})
        except BackendUnavailable:
            self._is_away = True
            self._away()
            raise
        except EngineError as error:
            self._is_away = False
            raise SandboxLost("the Docker Engine opens no line to the sandbox") from error
        self._is_away = False
        broken, self._line = self._line, Line(stream)
        if broken is not None:
            await broken.aclose()
        return self._line

    async def _try(self) -> None:
        try:
            await self.line()
        except (BackendUnavailable, SandboxLost) as error:
            log.debug("no line to a sandbox", extra={"container": self._container, "engine": str(error)})

    async def _line_soon(self) -> Line:
        """For those who would take a long wait for the end of the sandbox. Raises as `line` does."""
        if self._is_away:
            self.look_again()
            raise BackendUnavailable("the Docker Engine is away")
        try:
            async with asyncio.timeout(_SOON):
                return await self.line()
        except TimeoutError:
            self._is_away = True
            raise BackendUnavailable("the Docker Engine does not answer soon") from None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.spawn(self._carry(reader, writer), "connection", apart=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await self._line_soon()
            await line.carry(reader, writer)
            writer.close()
        except (BackendUnavailable, SandboxLost, OSError) as error:
            log.debug("connection to a sandbox broke", extra={"container": self._container, "error": str(error)})
        finally:
            if not writer.is_closing():
                writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class Lines:
    """All ways of one backend. An async context manager: leaving it closes them, and no sandbox."""

    def __init__(self, engine: Engine, away: Callable[[], None]) -> None:
        """`away` is called when the engine does not answer: whoever looks for its return calls `look_again`."""
        self._engine = engine
        self._away = away
        self._ways: dict[str, Way] = {}

    def __repr__(self) -> str:
        return f"<Lines [{len(self._ways)} ways]>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for id in list(self._ways):
            await self.close(id)

    async def open(self, id: str, container: str, path: Path) -> Way:
        """Makes the socket `path`, in the place of one that was there. The line comes with the first who wants it.
        Raises `OSError`."""
        await self.close(id)
        text = await in_thread(Path(relay.__file__).read_text)
        command = (PYTHON, "-I", "-S", "-c", text, str(AGENT_PORT))
        way = self._ways[id] = Way(self._engine, container, command, self._away)
        await way.listen(path)
        return way

    async def close(self, id: str) -> None:
        if (way := self._ways.pop(id, None)) is not None:
            await way.aclose()

    async def is_away(self, id: str) -> bool:
        return id in self._ways and await self._ways[id].is_away()

    def look_again(self) -> None:
        for way in self._ways.values():
            way.look_again()


def _listener(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(os.fspath(path))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
