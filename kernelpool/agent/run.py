"""One execution in the agent: its machine, its times, its state, and those who wait for news of it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

from kernelpool.agent.requests import Request
from kernelpool.agent.workspace import IMAGE_SUFFIXES, Workspace, image_name
from kernelpool.models import Command, EndCause, Event, ExecuteRequest, Execution, ExecutionState, KeptExecution, Kind
from kernelpool.protocol.execution import ExecutionMachine, Phase
from kernelpool.protocol.framing import WireMessage
from kernelpool.protocol.log import EventLog
from kernelpool.protocol.messages import Message
from kernelpool.protocol.outputs import cost_of, fold, strays

SETTLE = 0.1
"""Seconds to wait for a second idle when output followed the first."""
REPLY_WITHOUT_IDLE = 10.0
"""Seconds to wait for the idle status once the reply is in. Only a kernel that has been tampered with needs them."""
MAX_IMAGES = 100
OVERHEAD = 2000
"""Bytes of memory that an execution takes besides its code, its outputs and what it names."""
KEPT_CODE = 1 << 20
"""Characters of code that are kept once it runs. Longer code is data as a rule, and would cost others their outputs."""
NAME = 100
"""Bytes of memory that a name takes besides its letters."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a Jupyter client's `execute_request` says besides its code."""

    request: Request
    is_silent: bool
    stops_on_error: bool
    is_recorded: bool
    """What programs ask for beside the cells (widgets, extensions) keeps its place, and is nobody's execution."""


class Run:
    """An execution from submission to its end, and what stays of it."""

    def __init__(
        self,
        request: ExecuteRequest,
        output_bytes: int,
        workspace: Workspace | None,
        on_change: Callable[[Run], None] = lambda _run: None,
        asked: Asked | None = None,
        message: WireMessage | None = None,
    ) -> None:
        """`workspace` is where displayed images go; None to leave them in the output only. `message` is what a Jupyter
        client sent, for the kernel to get as it came."""
        loop = asyncio.get_running_loop()
        self.id = request.id
        self.timeout = request.timeout
        self.traceparent = request.traceparent
        self.over: asyncio.Future[None] = loop.create_future()
        """Done when the kernel has nothing more to say, or is gone."""
        self.begun: asyncio.Future[None] = loop.create_future()
        """Done when the kernel has the code's turn: an interrupt before that may meet nobody."""
        self.stop: asyncio.Future[EndCause] = loop.create_future()
        """Done when somebody wants it to end early."""
        self.finished = asyncio.Event()
        self.kernel_request = ""
        """The kernel's name for it, once it was sent there."""
        self.asked = asked
        self.number = 0
        """Its place among all executions of the session, which the history gives."""
        self._message = message
        self._code: str | None = request.code
        self._command = request.command
        self._cell = request.cell
        self._cell_memory = cost_of([request.cell.metadata]) if request.cell else 0
        self._names_memory = 0
        self._on_change = on_change
        self._look = Execution(request.id, ExecutionState.QUEUED, time.time(), origin=request.origin, kind=request.kind)
        self._log = EventLog(output_bytes)
        self._machine = ExecutionMachine(self._log, self._decorate)
        self._workspace = workspace
        self._images: dict[str, int] = {}
        self._image_count = 0
        self._news = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._log.state(ExecutionState.QUEUED)

    @property
    def state(self) -> ExecutionState:
        return self._look.state

    @property
    def kind(self) -> Kind:
        return self._look.kind

    @property
    def failed(self) -> bool:
        """By the kernel's own account."""
        return self._machine.failed

    @property
    def lost(self) -> str | None:
        """Why the kernel went while this ran."""
        return self._look.state_lost_during

    @property
    def deadline(self) -> float:
        """When its time is over, in seconds since the epoch."""
        return (self._look.started_at or self._look.created_at) + self.timeout

    @property
    def memory(self) -> int:
        """About the bytes that it takes now."""
        message = self._message.size if self._message else 0
        return OVERHEAD + message + self._code_memory + self._cell_memory + self._log.memory + self._names_memory

    @property
    def _code_memory(self) -> int:
        """Text takes up to four bytes a character."""
        texts = () if self._command is None else (*self._command.arguments, self._command.stdin)
        return sum(sys.getsizeof(text) for text in (self._code, *texts) if text is not None)

    def take_code(self) -> str:
        """Once: it is not kept beyond its way to the kernel when it is long."""
        code = self._code or ""
        if len(code) > KEPT_CODE:
            self._code = None
        return code

    def take_command(self) -> Command:
        """Once, as with the code: nobody needs it any more when it runs."""
        command, self._command = self._command, None
        return command or Command()

    @property
    def code(self) -> str | None:
        """None when it was too long to be kept."""
        return self._code

    def take_message(self) -> WireMessage | None:
        """Once: what is to go to the kernel in place of the code."""
        message, self._message = self._message, None
        return message

    def keep(self, *, outputs: bool) -> KeptExecution:
        """As it is listed among the session's executions."""
        events = list(self._log.after(-1))
        look = replace(self._summary(), outputs=fold(events) if outputs else (), updates=strays(events))
        return KeptExecution(self.number, self._code, look, self._cell)

    def look(self) -> Execution:
        """With the outputs so far."""
        events = list(self._log.after(-1))
        return replace(self._summary(), outputs=fold(events), updates=strays(events))

    def start(self, notice: str | None) -> None:
        """`notice` says that the state of earlier executions was lost, and why."""
        self._change(state=ExecutionState.RUNNING, started_at=time.time(), state_lost_before=notice)
        self._log.state(ExecutionState.RUNNING)
        self._tell()

    def write(self, name: str, text: str) -> None:
        """What a command wrote to one of its streams."""
        self._log.output({"type": "stream", "name": name, "text": text})
        self._tell()

    def lose(self, reason: str) -> None:
        """The kernel is gone, and with it this execution."""
        self._change(state_lost_during=reason)
        self._machine.end()
        self._advance()

    def finish(self, state: ExecutionState, cause: EndCause, message: str | None, **facts: Any) -> None:
        """For good. `facts` are further fields of Execution."""
        if self._timer is not None:
            self._timer.cancel()
        self._machine.end()
        self.take_code()
        self.take_command()
        self.take_message()
        self._change(state=state, cause=cause, message=message, **{"finished_at": time.time(), **facts})
        self._log.state(state)
        self._names_memory += sum(NAME + len(file) for file in self._look.files)
        self.finished.set()
        self._tell()

    async def events(self, after: int, keep_alive: float) -> AsyncIterator[Event | None]:
        """As `Agent.events`; None whenever `keep_alive` seconds have passed without news."""
        while True:
            news = self._news  # taken before looking, so that what comes while we look wakes us
            for event in list(self._log.after(after)):
                after = event.seq
                yield event
            if self.finished.is_set():
                yield Event(max(after + 1, self._log.next_seq), "done", {"execution": self._summary()})
                return
            try:
                async with asyncio.timeout(keep_alive):
                    await news.wait()
            except TimeoutError:
                yield None

    def receive_reply(self, message: Message) -> None:
        self._machine.receive_reply(message, time.monotonic())
        self._advance()

    def receive_iopub(self, message: Message) -> None:
        # The first is `busy`, and what comes next (`execute_input`) is left out where the request is silent.
        is_silent = self.asked is not None and self.asked.is_silent
        if (is_silent or message.msg_type != "status") and not self.begun.done():
            self.begun.set_result(None)
        self._machine.receive_iopub(message, time.monotonic())
        self._advance()

    def _advance(self) -> None:
        phase = self._machine.phase
        if phase is Phase.DONE:
            if not self.over.done():
                self.over.set_result(None)
        elif phase is not Phase.OPEN and self._timer is None:
            delay = SETTLE if phase is Phase.SETTLING else REPLY_WITHOUT_IDLE
            self._timer = asyncio.get_running_loop().call_later(delay, self._settled)
        self._tell()

    def _settled(self) -> None:
        self._machine.end()
        self._advance()

    def _summary(self) -> Execution:
        return replace(
            self._look,
            execution_count=self._machine.execution_count,
            dropped_bytes=self._log.dropped_bytes,
        )

    def _change(self, **fields: Any) -> None:
        self._look = replace(self._look, **fields)

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
        self._on_change(self)

    def _decorate(self, output: dict[str, Any]) -> dict[str, Any]:
        """Saves a displayed image and names its file. A display that is updated keeps its file."""
        mime = next((mime for mime in IMAGE_SUFFIXES if mime in output.get("data", ())), None)
        if mime is None or self._workspace is None:
            return output
        number = self._images.get(output.get("display_id") or "")
        if number is None:
            if self._image_count >= MAX_IMAGES:
                return output
            self._image_count += 1
            number = self._image_count
            if display_id := output.get("display_id"):
                self._images[display_id] = number
                self._names_memory += NAME + len(display_id)
        file = self._workspace.save_image(image_name(self.id, number), mime, output["data"][mime])
        return {**output, "files": [file]} if file else output
