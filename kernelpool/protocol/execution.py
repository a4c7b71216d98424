"""One execution as the kernel tells it: a machine fed with messages, which says when it is over. No I/O, no clock.

Theory of operation. A kernel answers an `execute_request` on two sockets that know nothing of each other's order:

    IOPub   status: busy · execute_input · outputs … · status: idle
    shell   execute_reply

It is over when the reply *and* the idle status are both in, in either order (measured: the reply first 7 of 8 times).
Code in the kernel can forge an early idle. So an idle is believed only if the reply comes close to it and no output
comes between: else it is taken back. A thread of the code may rightly print after the real idle, so this must not wait
for ever: then the execution is `settling`, and the driver, who has the clock, gives it a moment before it ends it.
Output that comes after the end belongs to the execution all the same: it is kept, and never shown in the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from kernelpool.models import ErrorOutput
from kernelpool.protocol import outputs
from kernelpool.protocol.log import EventLog
from kernelpool.protocol.messages import Message

CLOSE = 0.05
"""Seconds by which an honest idle precedes its reply at most; the longest seen was 0.006."""


class Phase(Enum):
    """Where an execution stands between its request and its end."""

    OPEN = auto()  # no reply yet
    REPLIED = auto()  # the reply is in, the idle status is not
    SETTLING = auto()  # both were in, but output came after the idle: wait a moment for another
    DONE = auto()


class ExecutionMachine:
    """Feed it every message whose parent is the execution's request; read `phase` and the log.

    `decorate` sees each output (as JSON) before it is logged and returns what is logged: the place to name files.
    """

    def __init__(self, log: EventLog, decorate: Callable[[dict[str, Any]], dict[str, Any]] = lambda output: output):
        self.log = log
        self._decorate = decorate
        self.execution_count: int | None = None
        self.reply_status: str | None = None
        self._idle = False
        self._idle_at: float | None = None
        self._ended = False
        self._error_seen = False
        self._reply_error: ErrorOutput | None = None

    @property
    def phase(self) -> Phase:
        if self._ended or (self.reply_status is not None and self._idle):
            return Phase.DONE
        if self.reply_status is None:
            return Phase.OPEN
        return Phase.SETTLING if self._idle_at is not None else Phase.REPLIED

    @property
    def failed(self) -> bool:
        return self.reply_status != "ok"

    def end(self) -> None:
        """The driver's word that nothing more is waited for: the kernel died, or it settled long enough."""
        self._ended = True
        self._tell_reply_error()

    def receive_reply(self, message: Message, now: float) -> None:
        """The shell's `execute_reply`. A second one changes nothing: it is forged."""
        if self.reply_status is not None or message.msg_type != "execute_reply":
            return
        if self._idle_at is not None and now - self._idle_at > CLOSE:
            self._idle = False
        status = message.content.get("status")
        self.reply_status = status if status in ("ok", "error", "aborted") else "error"
        self.execution_count = self.execution_count or outputs.count_of(message.content)
        if self.reply_status == "error":
            self._reply_error = outputs.error_output(message.content)
        self._tell_reply_error()

    def receive_iopub(self, message: Message, now: float) -> None:
        """`now` is on any clock that only goes forward, in seconds."""
        if message.msg_type == "status":
            if message.content.get("execution_state") == "idle":
                self._idle, self._idle_at = True, now
                self._tell_reply_error()
            return
        handle = _HANDLERS.get(message.msg_type)
        if handle is None:
            return
        if self.phase is not Phase.DONE:
            self._idle = False
        handle(self, message)
        self.log.dropped_bytes += message.unread

    def _input(self, message: Message) -> None:
        self.execution_count = self.execution_count or outputs.count_of(message.content)

    def _output(self, message: Message) -> None:
        output = outputs.output_of(message)
        if isinstance(output, ErrorOutput):
            self._error(output)
        elif output:
            self.log.output(self._decorate(outputs.to_json(output)))

    def _error(self, error: ErrorOutput) -> None:
        self._error_seen = True
        self.log.output(outputs.to_json(error))

    def _tell_reply_error(self) -> None:
        """The reply repeats the error that IOPub tells, and often comes before it: only at the end is it known
        whether it was told."""
        if self.phase is Phase.DONE and self._reply_error is not None and not self._error_seen:
            self._error(self._reply_error)

    def _clear(self, message: Message) -> None:
        self.log.clear_output(message.content.get("wait") is True)

    def _update(self, message: Message) -> None:
        display = outputs.display_output(message.content)
        if display.display_id is not None:
            update = self._decorate(outputs.to_json(display))
            self.log.update_display(display.display_id, update["data"], update["metadata"], update["files"])


_HANDLERS = {
    "execute_input": ExecutionMachine._input,
    "stream": ExecutionMachine._output,
    "display_data": ExecutionMachine._output,
    "execute_result": ExecutionMachine._output,
    "error": ExecutionMachine._output,
    "clear_output": ExecutionMachine._clear,
    "update_display_data": ExecutionMachine._update,
}
