"""The session's commands: programs beside the kernel, some at once, the others in line.

They do not wait for the kernel, nor it for them: `kill` must come through while code hangs, and with ACA they are
independent of each other as well. Their state is what they leave behind, files and processes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from kernelpool.agent.command import CommandProcess, Started, exit_code_of, start_command
from kernelpool.agent.pipes import Transcript
from kernelpool.agent.run import Run
from kernelpool.agent.workspace import Workspace, changed
from kernelpool.models import AgentConfig, EndCause, ExecutionState

LATE = 32
"""Commands that have ended whose processes in the background are still listened to. Past it the oldest are not, and
get SIGPIPE should they write."""
NOT_FOUND, NOT_STARTED = 127, 126
"""Exit codes, as shells have them."""


class Commands:
    """`take_notice` tells once what the first execution is to hear; `on_end` is called after each command."""

    def __init__(
        self,
        config: AgentConfig,
        workspace: Workspace,
        take_notice: Callable[[], str | None],
        on_end: Callable[[], None],
    ) -> None:
        self._config = config
        self._workspace = workspace
        self._take_notice = take_notice
        self._on_end = on_end
        self.line: deque[Run] = deque()
        """Those that wait. Whoever adds one calls `wake`."""
        # The mutable state besides: those that run, and those that ended but may still be heard of, by their ids.
        self._tasks: set[asyncio.Task[None]] = set()
        self._late: OrderedDict[str, tuple[CommandProcess, Transcript]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Commands [{self.running} running, {len(self.line)} waiting, {len(self._late)} late]>"

    @property
    def running(self) -> int:
        return len(self._tasks)

    def wake(self) -> None:
        while self.line and len(self._tasks) < self._config.commands:
            task = asyncio.create_task(self._perform(self.line.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._over)

    def forget(self, run: Run) -> None:
        """From now on nobody will ask for its output."""
        if late := self._late.get(run.id):
            late[1].forget()

    async def aclose(self) -> None:
        """Ends all of them, and what they left behind."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for process, transcript in self._late.values():
            transcript.close()
            process.signal(signal.SIGKILL)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._on_end()
        if not task.cancelled():
            self.wake()
            task.result()  # a fault of ours is told by the loop

    async def _perform(self, run: Run) -> None:
        before, complete = self._workspace.snapshot()
        run.start(self._take_notice())
        try:
            started = start_command(run.take_command(), run.take_code(), self._config)
        except OSError as error:
            self._refuse(run, error)
            return
        transcript = Transcript(started.streams, run.write)
        try:
            stopped_by = await self._wait(run, started)
            await transcript.settle()
        except asyncio.CancelledError:
            transcript.close()
            started.process.signal(signal.SIGKILL)
            raise
        after, still_complete = self._workspace.snapshot()
        state, cause, message = _verdict(run, started.process, stopped_by)
        code = exit_code_of(started.process.died.result()) if started.process.died.done() else None
        facts = {"finished_at": run.deadline} if stopped_by is EndCause.TIMED_OUT else {}
        run.finish(
            state,
            cause,
            message,
            exit_code=None if stopped_by else code,
            interrupted=stopped_by is not None,
            files=changed(before, after),
            files_complete=complete and still_complete,
            **facts,
        )
        if not transcript.is_over:
            self._listen_on(run, started.process, transcript)

    async def _wait(self, run: Run, started: Started) -> EndCause | None:
        """Until it is over, with force if need be; says what made it stop early."""
        died = started.process.died
        ends: set[asyncio.Future[Any]] = {died, run.stop}
        await asyncio.wait(ends, timeout=run.timeout, return_when=asyncio.FIRST_COMPLETED)
        if died.done():
            return None
        await started.process.end(self._config.interrupt_grace)
        return run.stop.result() if run.stop.done() else EndCause.TIMED_OUT

    def _refuse(self, run: Run, error: OSError) -> None:
        is_missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        message = f"the command could not be started: {os.strerror(error.errno or 0)}"
        run.write("stderr", f"{message}\n")
        code = NOT_FOUND if is_missing else NOT_STARTED
        run.finish(ExecutionState.FAILED, EndCause.RAISED, message, exit_code=code)

    def _listen_on(self, run: Run, process: CommandProcess, transcript: Transcript) -> None:
        self._late = OrderedDict((id, late) for id, late in self._late.items() if not late[1].is_over)
        self._late[run.id] = (process, transcript)
        while len(self._late) > LATE:
            _, (_, oldest) = self._late.popitem(last=False)
            oldest.close()


def _verdict(
    run: Run, process: CommandProcess, stopped_by: EndCause | None
) -> tuple[ExecutionState, EndCause, str | None]:
    if stopped_by is EndCause.TIMED_OUT:
        text = f"the command exceeded {run.timeout:g} s and was ended, with all that it had started"
        return ExecutionState.FAILED, EndCause.TIMED_OUT, text
    if stopped_by is EndCause.CANCELED:
        text = "the command was canceled and ended, with all that it had started"
        return ExecutionState.CANCELED, EndCause.CANCELED, text
    returned = process.died.result()
    if returned < 0:
        return ExecutionState.FAILED, EndCause.RAISED, f"the command was ended by {_name_of(-returned)}"
    if returned:
        return ExecutionState.FAILED, EndCause.RAISED, None
    return ExecutionState.SUCCEEDED, EndCause.COMPLETED, None


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
