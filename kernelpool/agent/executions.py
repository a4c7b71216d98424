"""The session's executions: code one at a time in order, the cells of Jupyter clients among it, and commands beside it;
each id once, each with an end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from types import TracebackType
from typing import Any, Self

from kernelpool.agent.clients import Clients
from kernelpool.agent.commands import Commands
from kernelpool.agent.history import History
from kernelpool.agent.kernel import LAST_WORDS, START_TIMEOUT, Kernel, KernelNotReady
from kernelpool.agent.run import Asked, Run
from kernelpool.agent.workspace import Workspace, changed
from kernelpool.errors import Conflict, ExecutionQueueFull
from kernelpool.models import AgentConfig, EndCause, ExecuteRequest, ExecutionState, KernelPhase, KernelState, Kind
from kernelpool.protocol.framing import WireMessage
from kernelpool.protocol.messages import Message

log = logging.getLogger(__name__)


class Executions:
    """Queue, worker and memory of executions. Owns the kernel."""

    def __init__(self, config: AgentConfig, workspace: Workspace, clients: Clients) -> None:
        self._config = config
        self._workspace = workspace
        self._clients = clients
        self.kernel = Kernel(config, self)
        # What the next piece of code is told, and what the next execution, whatever it is.
        self._notice: str | None = None
        self._first_notice: str | None = None
        self._commands = Commands(config, workspace, self._take_first_notice, self.touch)
        self._history = History(config.history_size, config.history_bytes, self._forget)
        # The mutable state besides the history: those that wait, the one that runs.
        self._queue: deque[Run] = deque()
        self._current: Run | None = None
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._restart_wanted = False
        self.last_activity = time.monotonic()

    async def __aenter__(self) -> Self:
        self._stack = contextlib.AsyncExitStack()
        await self._stack.enter_async_context(self.kernel)
        self._task = asyncio.create_task(self._run_queue())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._commands.aclose()
        await self._stack.aclose()

    @property
    def running(self) -> int:
        return int(self._current is not None) + self._commands.running

    @property
    def queued(self) -> int:
        return len(self._queue) + len(self._commands.line)

    @property
    def state(self) -> KernelState:
        return KernelState(
            execution_state=self._phase,
            last_activity=self._clients.last_heard,
            connections=self._clients.count,
            restarts=self.kernel.losses,
            queued=len(self._queue),
            failure=self.kernel.failure,
        )

    @property
    def _phase(self) -> KernelPhase:
        if self.kernel.is_ready:
            return KernelPhase.BUSY if self._current is not None else KernelPhase.IDLE
        if self.kernel.failure is not None:
            return KernelPhase.DEAD
        return KernelPhase.RESTARTING if self.kernel.losses or self.kernel.restarts else KernelPhase.STARTING

    def touch(self) -> None:
        """Something of the session happened."""
        self.last_activity = time.monotonic()

    def note_loss(self, reason: str) -> None:
        """The next execution is told that all of earlier is gone, files included."""
        self._first_notice = reason

    def submit(self, request: ExecuteRequest) -> Run:
        """The run of this id: a new one, queued, or the one there already is.

        Raises `ExecutionQueueFull`, or `Conflict` when it ran so long ago that its outputs are no longer kept.
        """
        if run := self._history.find(request.id):
            return run
        images = self._workspace if self._config.save_images else None
        run = Run(request, self._config.output_bytes, images, self._history.weigh)
        # A notebook that is run as a whole sends all its cells at once: they are counted apart.
        self._check_room(self._line_of(run), self._config.queue_size, run.memory, lambda run: run.asked is None)
        self._history.add(run)
        self._enqueue(run)
        return run

    def submit_cell(self, request: ExecuteRequest, asked: Asked, message: WireMessage) -> None:
        """Queues what a Jupyter client has sent, who hears how it ends. Raises `ExecutionQueueFull`, or `Conflict` when
        it ran already."""
        if self._history.find(request.id):
            raise Conflict(f"execution {request.id} has run already")
        self._check_room(self._queue, self._config.cell_queue_size, 2 * message.size, lambda run: run.asked is not None)
        images = self._workspace if self._config.save_images and asked.is_recorded else None
        run = Run(request, self._config.output_bytes, images, self._history.weigh, asked, message)
        if asked.is_recorded:
            self._history.add(run)
        self._enqueue(run)

    def _check_room(self, line: Collection[Run], most: int, size: int, is_counted: Callable[[Run], bool]) -> None:
        if sum(map(is_counted, line)) >= most:
            raise ExecutionQueueFull(f"{most} executions of this session are waiting already")
        waiting = sum(run.memory for run in (*self._queue, *self._commands.line))
        if waiting and waiting + size > self._config.history_bytes:
            raise ExecutionQueueFull(f"{waiting} bytes of code of this session are waiting already")

    def _enqueue(self, run: Run) -> None:
        self.touch()
        self._line_of(run).append(run)
        self._work.set()
        self._commands.wake()

    def get(self, id: str) -> Run:
        """Raises `ExecutionNotFound`."""
        return self._history.get(id)

    def after(self, number: int) -> Iterator[Run]:
        """Those that are kept, oldest first, from behind this place on."""
        return self._history.after(number)

    @property
    def count(self) -> int:
        """How many there ever were."""
        return self._history.count

    async def cancel(self, id: str) -> Run:
        """Ends it early and waits for its end. Raises `ExecutionNotFound`."""
        run = self.get(id)
        if run in self._line_of(run):
            self._unqueue(run, "canceled before it began")
        elif not run.state.is_final and not run.stop.done():
            run.stop.set_result(EndCause.CANCELED)
        await run.finished.wait()
        return run

    def interrupt(self) -> None:
        """Whatever runs, whoever asked for it."""
        self.touch()
        self.kernel.interrupt()

    async def restart(self) -> None:
        """Ends the kernel and waits for a fresh one. What runs ends, cells that wait are aborted, and others that wait
        run on the fresh one."""
        self.restart_soon()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_TIMEOUT):
                await self.kernel.wait_ready()

    def restart_soon(self) -> None:
        """As `restart`, but without waiting. Nothing when one is on its way already."""
        self.touch()
        if self.kernel.is_ready:
            self._restart_wanted = True
            self.kernel.restart_soon("the kernel was restarted on request")

    def _line_of(self, run: Run) -> deque[Run]:
        return self._queue if run.kind is Kind.CODE else self._commands.line

    def _unqueue(self, run: Run, why: str) -> None:
        self._line_of(run).remove(run)
        self._finish(run, ExecutionState.CANCELED, EndCause.CANCELED, why)

    def _abort_cells(self, why: str, client: str | None = None) -> None:
        """Those that wait, of one client or of all."""
        for run in list(self._queue):
            if run.asked is not None and client in (None, run.asked.request.client):
                self._unqueue(run, why)

    def _finish(self, run: Run, state: ExecutionState, cause: EndCause, message: str | None, **facts: Any) -> None:
        began = run.kernel_request != ""
        run.finish(state, cause, message, **facts)
        if (asked := run.asked) is None:
            return
        # Heard only by clients whom the kernel itself gave no answer.
        if began:
            self._clients.refuse(asked.request, message or "the kernel gave no answer")
        else:
            self._clients.answer(asked.request, {"status": "aborted"})
        if not asked.is_recorded:
            self.kernel.forget(run.kernel_request)
        # The kernel is never sent more than one at a time, so what it would abort waits here.
        if began and run.failed and asked.stops_on_error and not asked.is_silent:
            self._abort_cells("an earlier cell failed", asked.request.client)

    async def _run_queue(self) -> None:
        while True:
            while not self._queue:
                self._work.clear()
                await self._work.wait()
            self._current = run = self._queue.popleft()
            try:
                await self._perform(run)
            finally:
                self._current = None
                self.touch()

    async def _perform(self, run: Run) -> None:
        if not await self._kernel_ready(run):
            return
        is_recorded = run.asked is None or run.asked.is_recorded
        before, complete = self._workspace.snapshot() if is_recorded else ({}, True)
        notice = None
        if run.asked is None:  # Jupyter clients see the kernel restart
            notice, self._notice = self._take_first_notice() or self._notice, None
        run.start(notice)
        restarts = self.kernel.restarts
        self._send(run)
        stopped_by = await self._wait(run)
        after, still_complete = self._workspace.snapshot() if is_recorded else ({}, True)
        state, cause, message = self._verdict(run, stopped_by)
        self._finish(
            run,
            state,
            cause,
            message,
            interrupted=stopped_by is not None,
            kernel_restarted=self.kernel.restarts > restarts,
            files=changed(before, after),
            files_complete=complete and still_complete,
        )

    def _send(self, run: Run) -> None:
        code, message = run.take_code(), run.take_message()
        try:
            if message is not None:
                run.kernel_request = self.kernel.forward(message, run)
            else:
                run.kernel_request = self.kernel.execute(code, run, traceparent=run.traceparent)
        except KernelNotReady as error:
            run.kernel_request = "none"
            run.lose(str(error))

    async def _kernel_ready(self, run: Run) -> bool:
        if self.kernel.is_ready:
            return True
        ready = asyncio.ensure_future(self.kernel.wait_ready())
        ends: set[asyncio.Future[Any]] = {ready, run.stop}
        await asyncio.wait(ends, timeout=START_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self.kernel.is_ready:
            return True
        if run.stop.done():
            self._finish(run, ExecutionState.CANCELED, EndCause.CANCELED, "canceled before it began")
        else:
            reason = self.kernel.failure or "it does not answer"
            self._finish(run, ExecutionState.FAILED, EndCause.KERNEL_DIED, f"no kernel could be started: {reason}")
        return False

    async def _wait(self, run: Run) -> EndCause | None:
        """Until it is over, with force if need be; says what made it stop early."""
        ends: set[asyncio.Future[Any]] = {run.over, run.stop}
        timeout = run.timeout if math.isfinite(run.timeout) else None
        await asyncio.wait(ends, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if run.over.done():
            return None
        cause = run.stop.result() if run.stop.done() else EndCause.TIMED_OUT
        await self._interrupt(run)
        if not run.over.done():
            what = "was canceled" if cause is EndCause.CANCELED else f"exceeded {run.timeout:g} s"
            await self.kernel.restart(f"the kernel was restarted: an execution {what} and ignored the interrupt")
            await asyncio.wait({run.over}, timeout=LAST_WORDS + self._config.interrupt_grace)
        return cause

    async def _interrupt(self, run: Run) -> None:
        """And wait for its end. Before the kernel has begun the code, an interrupt meets nobody, or what has the kernel
        instead, as a widget's callback; whatever that ends, the code has its turn then, and an interrupt of its own."""
        grace = self._config.interrupt_grace
        for _ in range(2):
            await asyncio.wait({run.over, run.begun}, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
            if run.over.done():
                return
            has_begun = run.begun.done()
            self.kernel.interrupt()
            if has_begun:
                await asyncio.wait({run.over}, timeout=grace)
                return

    def _verdict(self, run: Run, stopped_by: EndCause | None) -> tuple[ExecutionState, EndCause, str | None]:
        lost = run.lost
        suffix = f"; {lost}; all variables were lost" if lost else "; variables are kept"
        if stopped_by is EndCause.TIMED_OUT:
            text = f"the execution exceeded {run.timeout:g} s and was interrupted{suffix}"
            return ExecutionState.FAILED, EndCause.TIMED_OUT, text
        if stopped_by is EndCause.CANCELED:
            return ExecutionState.CANCELED, EndCause.CANCELED, f"the execution was canceled{suffix}"
        if lost:
            return ExecutionState.FAILED, EndCause.KERNEL_DIED, f"{lost}; all variables were lost"
        if run.failed:
            return ExecutionState.FAILED, EndCause.RAISED, None
        return ExecutionState.SUCCEEDED, EndCause.COMPLETED, None

    def _take_first_notice(self) -> str | None:
        notice, self._first_notice = self._first_notice, None
        return notice

    def _forget(self, run: Run) -> None:
        self.kernel.forget(run.kernel_request)
        self._commands.forget(run)

    # --- what the kernel tells

    def ready(self) -> None:
        self._clients.say("status", {"execution_state": "starting"})
        self._clients.say("status", {"execution_state": "idle"})

    def heard(self, channel: str, message: Message) -> None:
        self._clients.heard(channel, message)

    def failed(self, reason: str) -> None:
        self._clients.lose(f"no kernel could be started: {reason}")
        self._clients.say("status", {"execution_state": "dead"}, once=True)

    def lost(self, reason: str) -> None:
        self._notice = reason
        run = self._current
        # What had ended by its own account before the kernel went has lost nothing: the next is told.
        if run is not None and run.state is ExecutionState.RUNNING and not run.over.done():
            facts = {"execution": run.id, "traceparent": run.traceparent, "reason": reason}
            log.warning("execution lost", extra=facts)
            run.lose(reason)
        self._abort_cells(reason)
        self._clients.lose(reason, self.kernel.held)
        if self._restart_wanted:
            # Who wanted it knows; for the others this is how a kernel says so. "restarting" would be taken for a death.
            self._clients.say("shutdown_reply", {"status": "ok", "restart": True})
        else:
            self._clients.say("status", {"execution_state": "restarting"}, once=True)
        self._restart_wanted = False
