"""Session: a live session in a caller's hand, and what happens to its work when the caller leaves."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace

from kernelpool.agents import Answer, ContainerAgent, FileContent, Forward
from kernelpool.agents.base import MAX_LISTED
from kernelpool.errors import (
    AgentFault,
    Conflict,
    ContainerFault,
    ExecutionNotFound,
    GatewayDraining,
    InvalidRequest,
    KernelpoolError,
    PayloadTooLarge,
    SandboxLost,
    SandboxUnreachable,
)
from kernelpool.life import LiveSession, SessionInfo
from kernelpool.models import Event, ExecuteRequest, Execution, FileInfo, KeptExecution, WorkspacePath
from kernelpool.pool.settings import PoolSettings
from kernelpool.sessions import Held, Sessions
from kernelpool.tasks import Tasks
from kernelpool.telemetry.audit import Action
from kernelpool.telemetry.watch import Watch

log = logging.getLogger(__name__)

CANCEL_SECONDS = 30.0
CANCEL_RETRY_SECONDS = 0.5
DETACHED = 10_000
"""Executions remembered as nobody's in particular; far more than agents keep."""

Call = tuple[str, str]  # session, execution


class Calls:
    """Who waits for which execution, over all surfaces."""

    def __init__(self) -> None:
        self.draining = False
        self._closed = False
        # The mutable state: callers of each execution, those who only watch its events, the executions that lost
        # their callers while they were watched, and those that run on whoever leaves.
        self._waiting: Counter[Call] = Counter()
        self._watching: Counter[Call] = Counter()
        self._left: set[Call] = set()
        self._detached: OrderedDict[Call, None] = OrderedDict()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks = Tasks("gateway")

    def __len__(self) -> int:
        """Callers who wait now."""
        return self._waiting.total()

    async def aclose(self) -> None:
        """What is left by its caller from now on runs on, for the next gateway to be asked about."""
        self._closed = True
        await self._tasks.aclose(grace=CANCEL_SECONDS)

    def admit(self) -> None:
        if self.draining:
            raise GatewayDraining("the gateway is shutting down and takes no new work")

    @contextmanager
    def waiting(self, call: Call) -> Iterator[None]:
        self._waiting[call] += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._waiting[call] -= 1
            if not self._waiting[call]:
                del self._waiting[call]
            if not self._waiting:
                self._idle.set()

    @contextmanager
    def watching(self, session: Session, call: Call) -> Iterator[None]:
        """While it is watched it runs on, although its caller leaves; it ends with the last who watches."""
        self._watching[call] += 1
        try:
            yield
        finally:
            self._watching[call] -= 1
            if not self._watching[call]:
                del self._watching[call]
                if call in self._left:
                    self._left.discard(call)
                    self.abandon(session, call[1])

    def detach(self, call: Call) -> None:
        """It runs on, whoever leaves."""
        self._detached[call] = None
        self._detached.move_to_end(call)
        while len(self._detached) > DETACHED:
            self._detached.popitem(last=False)

    def is_wanted(self, call: Call) -> bool:
        return call in self._waiting or call in self._watching or call in self._detached

    async def wait_idle(self, timeout: float) -> None:
        """Until nobody waits, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._idle.wait()

    def abandon(self, session: Session, id: str) -> None:
        """Ends, in the background, what nobody waits for any more now that a caller has left. When it is the gateway
        that leaves, what runs goes on: it can be polled from the next one."""
        if self._closed or self.draining:
            return
        if (call := session.call(id)) in self._watching:
            self._left.add(call)
        else:
            self._tasks.spawn(session.cancel_unwanted(id), "cancel execution")


@dataclass(frozen=True, slots=True)
class Admission:
    """Asked before work is taken on. Both raise `QuotaExceeded`."""

    execution: Callable[[], None]
    upload: Callable[[], Awaitable[None]]


class Session:
    """A live session in a caller's hand; the hold keeps its cooldown from running out.

    Any method may raise `SandboxLost`; the session is over then, and its sandbox is gone.
    """

    def __init__(
        self,
        held: Held,
        sessions: Sessions,
        settings: PoolSettings,
        calls: Calls,
        admission: Admission,
        watch: Watch,
    ) -> None:
        self._held = held
        self._live = held.live
        self._agent = held.live.agent
        self._sessions = sessions
        self._settings = settings
        self._calls = calls
        self._admission = admission
        self._watch = watch

    def __repr__(self) -> str:
        return f"<Session {self._live!r}>"

    @property
    def is_new(self) -> bool:
        """Allocated by this very request."""
        return self._held.is_new

    @property
    def info(self) -> SessionInfo:
        return self._sessions.describe(self._live)

    @property
    def _promises(self) -> tuple[PoolSettings, PoolSettings]:
        """The pool's settings now, and those that the sandbox was made from."""
        return self._settings, self._live.settings

    @property
    def allocation_seconds(self) -> float:
        return self._held.allocation_seconds

    async def execute(self, request: ExecuteRequest) -> Execution:
        """Runs it and waits for the end. Cancelling the caller cancels the execution. The same id never runs twice:
        a second call with it waits for, or answers with, the same execution."""
        self._admit(request)
        try:
            with self._calls.waiting(self.call(request.id)), self._watch.executing(request) as executing:
                async with self._or_lost(max(each.longest_wait for each in self._promises)):
                    return executing.answered(await self._agent.execute(executing.request))
        except asyncio.CancelledError:
            self._calls.abandon(self, request.id)
            raise

    async def submit(self, request: ExecuteRequest) -> Execution:
        """Queues it and returns at once; it runs on whoever leaves."""
        self._admit(request)
        self._calls.detach(self.call(request.id))
        with self._watch.executing(request) as executing:
            async with self._or_lost():
                return executing.answered(await self._agent.submit(executing.request))

    async def events(self, request_or_id: ExecuteRequest | str, after: int = -1) -> AsyncIterator[Event | None]:
        """Submits a request (or attaches to the id of one) and yields its events with seq > after, the last being
        `done`; yields None as a keep-alive at least every 10 seconds."""
        id = request_or_id if isinstance(request_or_id, str) else request_or_id.id
        with self._calls.watching(self, self.call(id)):
            if isinstance(request_or_id, ExecuteRequest):
                # A client that streams may come back with the id of the last event, so the code runs on without it.
                await self.submit(request_or_id)
            async with self._or_lost():
                events = self._agent.events(id, after)
                try:
                    async for event in events:
                        yield event
                finally:
                    if isinstance(events, AsyncGenerator):
                        await events.aclose()

    async def execution(self, id: str) -> Execution:
        """Raises `ExecutionNotFound`."""
        async with self._or_lost():
            return self._watch.learned(await self._agent.execution(id))

    async def executions(
        self, after: int = 0, *, limit: int = MAX_LISTED, outputs: bool = False
    ) -> AsyncIterator[KeptExecution | int]:
        """As `Agent.executions`."""
        async with self._or_lost():
            listed = self._agent.executions(after, limit=limit, outputs=outputs)
            try:
                async for item in listed:
                    yield item
            finally:
                if isinstance(listed, AsyncGenerator):
                    await listed.aclose()

    async def cancel(self, id: str) -> Execution:
        """Interrupts it when it runs, takes it out of the queue when it waits. Raises `ExecutionNotFound`."""
        async with self._or_lost(max(each.longest_stop for each in self._promises)):
            return self._watch.learned(await self._agent.cancel(id))

    async def list_files(self, path: WorkspacePath, *, recursive: bool = False) -> Sequence[FileInfo]:
        """Raises `FileNotFound`."""
        async with self._or_lost():
            return await self._agent.list_files(path, recursive=recursive)

    async def file_info(self, path: WorkspacePath) -> FileInfo:
        """Raises `FileNotFound`."""
        async with self._or_lost():
            return await self._agent.file_info(path)

    @asynccontextmanager
    async def read_file(
        self, path: WorkspacePath, start: int | None = None, stop: int | None = None
    ) -> AsyncIterator[FileContent]:
        """Bytes start..stop (exclusive; a negative start counts from the end) as a stream with back-pressure.
        Raises `FileNotFound`, `InvalidRequest` for what is no regular file, `RangeNotSatisfiable`."""
        with self._watch.acting(Action.DOWNLOAD) as act:
            async with self._or_lost(), self._agent.read_file(path, start, stop) as content:
                yield replace(content, chunks=act.counted(content.chunks))
                if act.size < content.stop - content.start:
                    act.outcome = "incomplete"

    async def write_file(self, path: WorkspacePath, chunks: AsyncIterator[bytes]) -> FileInfo:
        """Streams into a temporary name, then renames. Raises `WorkspaceFull`, `PayloadTooLarge`, `QuotaExceeded`."""
        with self._watch.acting(Action.UPLOAD) as act:
            await self._admission.upload()
            upload = _Upload(act.counted(chunks), self._settings.max_upload)
            async with self._or_lost():
                try:
                    return await self._agent.write_file(path, upload.chunks())
                except KernelpoolError:
                    # A source that broke looks to the agent's client like a connection that broke. It is not the
                    # sandbox.
                    if upload.error is not None:
                        raise upload.error from None
                    raise

    async def delete_file(self, path: WorkspacePath) -> None:
        """A file, or a directory with all that is in it. Raises `FileNotFound`."""
        with self._watch.acting(Action.DELETE_FILE):
            async with self._or_lost():
                await self._agent.delete_file(path)

    @asynccontextmanager
    async def forward(self, request: Forward) -> AsyncIterator[Answer]:
        """Passes a request on to the session's custom container, and its answer back, both as streams. Counts as an
        execution. Raises `ContainerBusy`, `ContainerFault`, and `Conflict` where no custom container is."""
        if not isinstance(self._agent, ContainerAgent):
            raise Conflict(f"Pool '{self._settings.name}' runs no custom containers: nothing is forwarded.")
        self._calls.admit()
        self._admission.execution()
        with self._watch.acting(Action.FORWARD) as act:
            request = replace(request, headers=act.traced(request.headers))
            try:
                async with self._agent.forward(request) as answer:
                    yield replace(answer, chunks=act.counted(answer.chunks))
            except ContainerFault as error:
                raise await self._verdict(error) from error

    def notice(self) -> str | None:
        """Why the identifier's session before this one ended; said once."""
        if not isinstance(self._agent, ContainerAgent):
            return None
        notice, self._agent.notice = self._agent.notice, None
        return notice

    async def _verdict(self, fault: ContainerFault) -> KernelpoolError:
        """Whether a container that does not answer lives."""
        try:
            why = await self._sessions.lost(self._live, "its container does not answer")
        except SandboxUnreachable:
            return fault
        return SandboxLost(f"The session ended: {why}. What its container held is gone.")

    async def cancel_unwanted(self, id: str) -> None:
        """For `Calls`: cancels an execution unless somebody has come to want it meanwhile."""
        facts = {"session": self._live.record.session, "execution": id}
        try:
            with self._live.hold():
                async with asyncio.timeout(CANCEL_SECONDS):
                    await self._cancel_twice(id)
        except (KernelpoolError, TimeoutError) as error:
            log.warning("abandoned execution was not cancelled", extra={**facts, "error": str(error)})

    async def _cancel_twice(self, id: str) -> None:
        """The request of a caller who left at once may still be on its way when the cancel arrives."""
        for pause in (CANCEL_RETRY_SECONDS, 0.0):
            if self._calls.is_wanted(self.call(id)) or self._live.ended is not None:
                return
            try:
                self._watch.learned(await self._agent.cancel(id))
            except ExecutionNotFound:
                await asyncio.sleep(pause)
            else:
                return

    def call(self, id: str) -> Call:
        """How `Calls` names an execution of this session."""
        return (self._live.record.session, id)

    def _admit(self, request: ExecuteRequest) -> None:
        self._calls.admit()
        if request.timeout > self._settings.max_timeout:
            raise InvalidRequest(
                f"timeout must be at most {self._settings.max_timeout:g} seconds in pool '{self._settings.name}', "
                f"not {request.timeout:g}"
            )
        if not self._calls.is_wanted(self.call(request.id)):  # sent again it is no second execution
            self._admission.execution()

    def _or_lost(self, seconds: float | None = None) -> AbstractAsyncContextManager[None]:
        return or_lost(self._sessions, self._live, seconds)


@asynccontextmanager
async def or_lost(sessions: Sessions, live: LiveSession, seconds: float | None = None) -> AsyncIterator[None]:
    """A sandbox that does not answer ends its session, and the caller reads why. `seconds` is more than an honest
    agent ever needs. Raises `SandboxUnreachable` when it answers again."""
    try:
        async with asyncio.timeout(seconds) as deadline:
            yield
    except TimeoutError:
        if not deadline.expired():
            raise
        raise AgentFault(f"the sandbox's agent did not answer within {seconds:g} s") from None
    except SandboxLost as error:
        why = await sessions.lost(live, "its sandbox does not answer")
        raise SandboxLost(f"The session ended: {why}. Its variables and files are gone.") from error


class _Upload:
    """A caller's stream, cut off past the limit; remembers how it broke."""

    def __init__(self, source: AsyncIterator[bytes], limit: int) -> None:
        self._source = source
        self._limit = limit
        self.error: Exception | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for chunk in self._source:
                size += len(chunk)
                if size > self._limit:
                    raise PayloadTooLarge(f"The file is larger than {self._limit} bytes, the limit of this pool.")
                yield chunk
        except Exception as error:
            self.error = error
            raise
