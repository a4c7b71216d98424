"""The session's executions: one at a time in order, each id once, each with an end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from types import TracebackType
from typing import Any, Self

from kernelpool.agent.history import History
from kernelpool.agent.kernel import LAST_WORDS, START_TIMEOUT, Kernel, KernelNotReady
from kernelpool.agent.run import Run
from kernelpool.agent.workspace import Workspace, changed
from kernelpool.errors import ExecutionQueueFull
from kernelpool.models import AgentConfig, EndCause, ExecuteRequest, ExecutionState

log = logging.getLogger(__name__)


class Executions:
    """Queue, worker and memory of executions. Owns the kernel."""

    def __init__(self, config: AgentConfig, workspace: Workspace) -> None:
        self._config = config
        self._workspace = workspace
        self.kernel = Kernel(config, self._on_loss)
        self._notice: str | None = None
        self._history = History(
            config.history_size, config.history_bytes, lambda run: self.kernel.forget(run.kernel_request)
        )
        # The mutable state besides the history: those that wait, the one that runs.
        self._queue: deque[Run] = deque()
        self._current: Run | None = None
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
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
        await self._stack.aclose()

    @property
    def running(self) -> int:
        return int(self._current is not None)

    @property
    def queued(self) -> int:
        return len(self._queue)

    def touch(self) -> None:
        """Something of the session happened."""
        self.last_activity = time.monotonic()

    def note_loss(self, reason: str) -> None:
        """The next execution is told that earlier state is gone."""
        self._notice = reason

    def submit(self, request: ExecuteRequest) -> Run:
        """The run of this id: a new one, queued, or the one there already is.

        Raises `ExecutionQueueFull`, or `Conflict` when it ran so long ago that its outputs are no longer kept.
        """
        if run := self._history.find(request.id):
            return run
        if len(self._queue) >= self._config.queue_size:
            raise ExecutionQueueFull(f"{self._config.queue_size} executions of this session are waiting already")
        waiting = sum(run.memory for run in self._queue)
        if self._queue and waiting + len(request.code) > self._config.history_bytes:
            raise ExecutionQueueFull(f"{waiting} bytes of code of this session are waiting already")
        self.touch()
        images = self._workspace if self._config.save_images else None
        run = Run(request, self._config.output_bytes, images, self._history.weigh)
        self._history.add(run)
        self._queue.append(run)
        self._work.set()
        return run

    def get(self, id: str) -> Run:
        """Raises `ExecutionNotFound`."""
        return self._history.get(id)

    async def cancel(self, id: str) -> Run:
        """Ends it early and waits for its end. Raises `ExecutionNotFound`."""
        run = self.get(id)
        if run in self._queue:
            self._queue.remove(run)
            run.finish(ExecutionState.CANCELED, EndCause.CANCELED, "canceled before it began")
        elif not run.state.is_final and not run.stop.done():
            run.stop.set_result(EndCause.CANCELED)
        await run.finished.wait()
        return run

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
        before, complete = self._workspace.snapshot()
        notice, self._notice = self._notice, None
        run.start(notice)
        restarts = self.kernel.restarts
        try:
            run.kernel_request = self.kernel.execute(run.take_code(), run, traceparent=run.traceparent)
        except KernelNotReady as error:
            run.lose(str(error))
        stopped_by = await self._wait(run)
        after, still_complete = self._workspace.snapshot()
        state, cause, message = self._verdict(run, stopped_by)
        run.finish(
            state,
            cause,
            message,
            interrupted=stopped_by is not None,
            kernel_restarted=self.kernel.restarts > restarts,
            files=changed(before, after),
            files_complete=complete and still_complete,
        )

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
            run.finish(ExecutionState.CANCELED, EndCause.CANCELED, "canceled before it began")
        else:
            reason = self.kernel.failure or "it does not answer"
            run.finish(ExecutionState.FAILED, EndCause.KERNEL_DIED, f"no kernel could be started: {reason}")
        return False

    async def _wait(self, run: Run) -> EndCause | None:
        """Until it is over, with force if need be; says what made it stop early."""
        ends: set[asyncio.Future[Any]] = {run.over, run.stop}
        await asyncio.wait(ends, timeout=run.timeout, return_when=asyncio.FIRST_COMPLETED)
        if run.over.done():
            return None
        cause = run.stop.result() if run.stop.done() else EndCause.TIMED_OUT
        self.kernel.interrupt()
        await asyncio.wait({run.over}, timeout=self._config.interrupt_grace)
        if not run.over.done():
            what = "was canceled" if cause is EndCause.CANCELED else f"exceeded {run.timeout:g} s"
            await self.kernel.restart(f"the kernel was restarted: an execution {what} and ignored the interrupt")
            await asyncio.wait({run.over}, timeout=LAST_WORDS + self._config.interrupt_grace)
        return cause

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

    def _on_loss(self, reason: str) -> None:
        self._notice = reason
        run = self._current
        # What had ended by its own account before the kernel went has lost nothing: the next is told.
        if run is None or run.state is not ExecutionState.RUNNING or run.over.done():
            return
        log.warning("execution lost", extra={"execution": run.id, "traceparent": run.traceparent, "reason": reason})
        run.lose(reason)
