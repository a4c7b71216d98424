"""The face on an event loop of asyncio: `AsyncClient`, and what it leads to. `sync.py` is the same for threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from ssl import SSLContext
from types import TracebackType
from typing import Any, Self

from kernelpool.client import calls
from kernelpool.client.calls import NotebookOptions, PoolCalls, SessionCalls
from kernelpool.client.connection import MAX_ANSWER, RETRIES, TIMEOUT, Connection, Token
from kernelpool.client.errors import ClientError, InvalidRequest, SessionNotFound, UnexpectedAnswer
from kernelpool.client.notebooks import (
    ExecutionInfo,
    Notebook,
    NotebookResult,
    NotebookWatch,
    OnCell,
    executions_of,
    unfinished,
)
from kernelpool.client.policy import Retries, poll_pause
from kernelpool.client.profiles import load_profile
from kernelpool.client.resources import Metadata, PoolInfo, SessionInfo
from kernelpool.client.results import Done, Event, Result
from kernelpool.client.streams import Download, Watch
from kernelpool.client.transfers import Destination, Readable, Writable, source_of
from kernelpool.client.transport import AsyncTransport
from kernelpool.models import FileInfo

CANCEL_SECONDS = 10.0


class AsyncClient:
    """A gateway, by its URL. Connections are kept and shared; close it, or use it as a context manager."""

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        timeout: float = TIMEOUT,
        retries: Retries = RETRIES,
        verify: bool | SSLContext = True,
        max_answer: int = MAX_ANSWER,
    ) -> None:
        """`token` may be a function, which is asked for each request. `timeout`: seconds that the gateway may be
        silent, which is no limit on how long code runs. `max_answer`: bytes kept in memory. Raises `InvalidRequest`."""
        self._connection = Connection(url, token, timeout, retries, verify, max_answer)
        self._transport = AsyncTransport(self._connection)

    @classmethod
    def from_profile(cls, name: str = "default", *, file: Path | None = None, **options: Any) -> Self:
        """With URL and token as `kernelpool profile add` has written them. Raises `InvalidRequest`."""
        profile = load_profile(name, file)
        return cls(profile.url, profile.token, **options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._connection.url}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def pools(self) -> list[PoolInfo]:
        return await self._transport.send(calls.list_pools())

    def pool(self, name: str) -> AsyncPool:
        """Asks nothing: whether there is such a pool shows when it is used."""
        return AsyncPool(self._transport, name)

    async def create_pool(self, name: str, settings: Mapping[str, Any] | None = None) -> PoolInfo:
        """`settings` by the names of docs/settings.md; what is not said has its default. A pool of that name that is
        there already gets these settings."""
        return await self._transport.send(PoolCalls(name).create(settings or {}))

    async def update_pool(self, name: str, settings: Mapping[str, Any]) -> PoolInfo:
        """What is not said stays as it is."""
        return await self._transport.send(PoolCalls(name).update(settings))

    async def delete_pool(self, name: str) -> None:
        """With all its sessions."""
        await self._transport.send(PoolCalls(name).delete())

    async def sessions(self, pool: str) -> list[SessionInfo]:
        """All that are alive, the oldest first."""
        return await self.pool(pool).sessions()

    async def metadata(self, pool: str) -> Metadata:
        return await self.pool(pool).metadata()


class AsyncPool:
    def __init__(self, transport: AsyncTransport, name: str) -> None:
        self._transport = transport
        self._calls = PoolCalls(name)
        self.name = name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    async def info(self) -> PoolInfo:
        return await self._transport.send(self._calls.show())

    async def metadata(self) -> Metadata:
        """Interpreter, kernel and packages."""
        return await self._transport.send(self._calls.metadata())

    async def sessions(self) -> list[SessionInfo]:
        """All that are alive, the oldest first."""
        found: list[SessionInfo] = []
        more = True
        while more:
            page, more = await self._transport.send(self._calls.sessions(skip=len(found)))
            found += page
            more = more and bool(page)
        return found

    def session(self, identifier: str | None = None, *, stop_at_exit: bool | None = None) -> AsyncSession:
        """Asks nothing: the first code, upload or listing makes the session if need be. As a context manager it is
        stopped at the end, unless it was given an identifier by which somebody may come back; `stop_at_exit`
        decides otherwise."""
        stops = identifier is None if stop_at_exit is None else stop_at_exit
        return AsyncSession(self._transport, self.name, identifier or calls.new_identifier(), stop_at_exit=stops)


class AsyncSession:
    """A stateful interpreter with files of its own, by its identifier."""

    def __init__(self, transport: AsyncTransport, pool: str, identifier: str, *, stop_at_exit: bool) -> None:
        self._transport = transport
        self._calls = SessionCalls(pool, identifier)
        self._stop_at_exit = stop_at_exit
        self.identifier = identifier
        self.files = AsyncFiles(transport, self._calls)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.identifier!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._stop_at_exit:
            return
        if error is None:
            await self.stop()
        else:  # what went wrong before is what the caller should hear of
            with suppress(ClientError, TimeoutError):
                async with asyncio.timeout(CANCEL_SECONDS):
                    await self.stop()

    async def run(self, code: str, *, timeout: float | None = None, id: str | None = None) -> Result:
        """Runs it and waits for its end. `timeout`: seconds that the code may run, within the pool's limit. A broken
        connection is taken up again, and the code never runs twice. Whoever is cancelled here cancels the code."""
        return await self._finish(calls.code_of(code), timeout, id or calls.new_id())

    async def shell(
        self,
        command: str | Sequence[str],
        *,
        stdin: str | None = None,
        pty: bool = False,
        timeout: float | None = None,
        id: str | None = None,
    ) -> Result:
        """Runs a command beside the interpreter and waits for its end: text with `bash -lc`, several words as a
        program and its arguments. `pty` gives it a terminal. Otherwise as `run`; look at `exit_code`."""
        return await self._finish(calls.command_of(command, stdin, pty), timeout, id or calls.new_id())

    async def submit(self, code: str, *, timeout: float | None = None, id: str | None = None) -> AsyncExecution:
        """Queues it and returns at once; it runs on whoever leaves. The same `id` never runs twice in a session."""
        id = id or calls.new_id()
        await self._transport.send(self._calls.submit(calls.code_of(code), timeout, id))
        return self.execution(id)

    def stream(self, code: str, *, timeout: float | None = None, id: str | None = None) -> AsyncGenerator[Event, None]:
        """Runs it and yields what happens, when it happens, over broken connections too; the last is `Done`. It is
        submitted when the first event is asked for, and runs on when nobody asks any more."""
        return self._follow(calls.code_of(code), timeout, id or calls.new_id())

    def stream_shell(
        self,
        command: str | Sequence[str],
        *,
        stdin: str | None = None,
        pty: bool = False,
        timeout: float | None = None,
        id: str | None = None,
    ) -> AsyncGenerator[Event, None]:
        """As `stream`, of a command as `shell` takes it."""
        return self._follow(calls.command_of(command, stdin, pty), timeout, id or calls.new_id())

    def execution(self, id: str) -> AsyncExecution:
        """One that was submitted before. Asks nothing."""
        return AsyncExecution(self._transport, self._calls, id)

    async def notebook(self) -> dict[str, Any]:
        """What the session ran, whoever asked for it, as a notebook (nbformat 4.5). Raises `SessionNotFound`."""
        return await self._transport.send(self._calls.notebook())

    async def run_notebook(
        self,
        notebook: Notebook,
        *,
        parameters: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        cell_timeout: float | None = None,
        stop_on_error: bool = True,
        on_cell: OnCell | None = None,
        id: str | None = None,
    ) -> NotebookResult:
        """Runs its cells in order, and returns it executed. `timeout`: seconds of all cells; `on_cell` hears of each as
        it begins, shows something and ends. `parameters` are put into it as papermill does. A broken connection is
        taken up again, and no cell runs twice. Whoever is cancelled here cancels the cell."""
        options = NotebookOptions(id or calls.new_id(), parameters, timeout, cell_timeout, stop_on_error)
        limit = self._transport.connection.max_answer
        events = self._transport.follow(NotebookWatch(self._calls.run_notebook(notebook, options), limit))
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, NotebookResult):
                        result = event
                    elif on_cell is not None:
                        on_cell(event)
        except asyncio.CancelledError:
            with suppress(ClientError, TimeoutError):
                async with asyncio.timeout(CANCEL_SECONDS):
                    for cell in unfinished(await self.executions(), options.id):
                        await self.execution(cell).cancel()
            raise
        return result

    async def executions(self) -> list[ExecutionInfo]:
        """What the session ran, whoever asked for it, the oldest first. Raises `SessionNotFound`."""
        found: list[ExecutionInfo] = []
        more = True
        while more:
            after = found[-1].number if found else 0
            page, more = executions_of(await self._transport.send(self._calls.executions(after)))
            found += page
            more = more and bool(page)
        return found

    async def info(self) -> SessionInfo:
        """Raises `SessionNotFound` when there is none yet, or none any more."""
        return await self._transport.send(self._calls.info())

    async def stop(self) -> None:
        """Ends it, with all that runs in it. One that is gone already is no error."""
        with suppress(SessionNotFound):
            await self._transport.send(self._calls.stop())

    async def _finish(self, work: Mapping[str, Any], timeout: float | None, id: str) -> Result:
        try:
            return await _last(self._follow(work, timeout, id))
        except asyncio.CancelledError:
            with suppress(ClientError, TimeoutError):
                async with asyncio.timeout(CANCEL_SECONDS):
                    await self.execution(id).cancel()
            raise

    def _follow(self, work: Mapping[str, Any], timeout: float | None, id: str) -> AsyncGenerator[Event, None]:
        submit = self._calls.submit(work, timeout, id, streamed=True)
        return self._transport.follow(
            Watch(submit, lambda: self._calls.execution(id, streamed=True), self._transport.connection.max_answer)
        )


class AsyncExecution:
    """One piece of code on its way, by its id."""

    def __init__(self, transport: AsyncTransport, session: SessionCalls, id: str) -> None:
        self._transport = transport
        self._calls = session
        self.id = id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r}>"

    async def poll(self) -> Result:
        """As it is now. Raises `ExecutionNotFound`."""
        return await self._transport.send(self._calls.execution(self.id))

    async def wait(self, timeout: float | None = None) -> Result:
        """Until it has ended. Raises `TimeoutError` after so many seconds; it runs on then."""
        began = time.monotonic()
        while not (result := await self.poll()).is_final:
            elapsed = time.monotonic() - began
            if timeout is not None and elapsed >= timeout:
                raise TimeoutError(f"execution {self.id} has not ended within {timeout:g} s")
            await asyncio.sleep(poll_pause(elapsed, timeout))
        return result

    async def cancel(self) -> Result:
        """Interrupts it, or takes it out of the queue, and waits for its end."""
        return await self._transport.send(self._calls.cancel(self.id))

    def events(self, after: int = -1) -> AsyncGenerator[Event, None]:
        """What has happened since the event with the id `after`, and what happens; the last is `Done`."""
        return self._transport.follow(
            Watch(
                None,
                lambda: self._calls.execution(self.id, streamed=True),
                self._transport.connection.max_answer,
                after,
            )
        )


class AsyncFiles:
    """The files of a session, by names relative to its workspace, `/mnt/data`."""

    def __init__(self, transport: AsyncTransport, session: SessionCalls) -> None:
        self._transport = transport
        self._calls = session

    async def list(self, path: str = "", *, recursive: bool = False) -> list[FileInfo]:
        return await self._transport.send(self._calls.list_files(path, recursive=recursive))

    async def info(self, name: str) -> FileInfo:
        """Raises `FileNotFound`."""
        return await self._transport.send(self._calls.file_info(name))

    async def upload(self, source: Readable, name: str | None = None) -> FileInfo:
        """From bytes, a path, or an open file, in constant memory. Without a name it keeps that of the file. It
        appears whole or not at all, in the place of what had that name."""
        opened = source_of(source)
        name = name or opened.name
        if name is None:
            raise InvalidRequest("what is uploaded needs a name")
        return await self._transport.send(self._calls.write_file(name), opened)

    async def download(self, name: str, to: Writable, *, start: int | None = None, stop: int | None = None) -> int:
        """To a path, where it appears whole or not at all, or to an open file, in constant memory; returns the number
        of bytes. `start` and `stop` are as in a slice."""
        destination, size, complete = Destination(to), 0, False
        await asyncio.to_thread(destination.open)
        try:
            async with aclosing(self._bytes(name, start, stop)) as pieces:
                async for piece in pieces:
                    size += len(piece)
                    await asyncio.to_thread(destination.write, piece)
            complete = True
        finally:
            await asyncio.to_thread(destination.close, complete=complete)
        return size

    async def read(self, name: str, *, start: int | None = None, stop: int | None = None) -> bytes:
        """Into memory; more than the client's `max_answer` raises `UnexpectedAnswer`."""
        content, limit = bytearray(), self._transport.connection.max_answer
        async with aclosing(self._bytes(name, start, stop)) as pieces:
            async for piece in pieces:
                content += piece
                if len(content) > limit:
                    raise UnexpectedAnswer(f"{name} is larger than {limit} bytes", remedy="Download it to a file.")
        return bytes(content)

    async def delete(self, name: str) -> None:
        """A file, or a directory with all that is in it. Raises `FileNotFound`."""
        await self._transport.send(self._calls.delete_file(name))

    def _bytes(self, name: str, start: int | None, stop: int | None) -> AsyncGenerator[bytes, None]:
        return self._transport.follow(Download(self._calls.read_file(name, start, stop)))


async def _last(events: AsyncGenerator[Event, None]) -> Result:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Done):
                result = event.result
    return result
