"""When an execution is over: reply and idle, in either order, forged or not."""

from __future__ import annotations

from typing import Any

import pytest

from kernelpool.models import ErrorOutput, StreamOutput
from kernelpool.protocol.execution import ExecutionMachine, Phase
from kernelpool.protocol.log import EventLog
from kernelpool.protocol.messages import Message
from kernelpool.protocol.outputs import fold


def message(msg_type: str, **content: Any) -> Message:
    return Message(msg_type, "parent", content)


BUSY = message("status", execution_state="busy")
IDLE = message("status", execution_state="idle")
OK = message("execute_reply", status="ok", execution_count=3)
ERROR = message("execute_reply", status="error", ename="E", evalue="v", traceback=["t"])
TEXT = message("stream", name="stdout", text="x")
TOLD = message("error", ename="E", evalue="v", traceback=[])


def machine_after(*messages: Message, pace: float = 0) -> ExecutionMachine:
    """`pace`: seconds from message to message."""
    machine = ExecutionMachine(EventLog(1000))
    for index, each in enumerate(messages):
        receive = machine.receive_reply if each.msg_type.endswith("_reply") else machine.receive_iopub
        receive(each, index * pace)
    return machine


@pytest.mark.parametrize(
    ("messages", "phase"),
    [
        ((), Phase.OPEN),
        ((BUSY, TEXT), Phase.OPEN),
        ((BUSY, TEXT, IDLE), Phase.OPEN),
        ((BUSY, OK), Phase.REPLIED),
        ((BUSY, OK, IDLE), Phase.DONE),
        ((BUSY, IDLE, OK), Phase.DONE),
        ((BUSY, IDLE, TEXT, OK), Phase.SETTLING),  # the idle was forged, or a thread prints
        ((BUSY, IDLE, TEXT, OK, IDLE), Phase.DONE),
        ((BUSY, OK, IDLE, TEXT), Phase.DONE),  # late output takes nothing back
        ((message("status", execution_state=["idle"]), OK), Phase.REPLIED),
    ],
)
def test_phase(messages: tuple[Message, ...], phase: Phase) -> None:
    assert machine_after(*messages).phase is phase


def test_an_idle_long_before_its_reply_was_forged() -> None:
    assert machine_after(IDLE, OK, pace=1).phase is Phase.SETTLING
    assert machine_after(IDLE, OK, IDLE, pace=1).phase is Phase.DONE
    assert machine_after(OK, IDLE, pace=1).phase is Phase.DONE


def test_late_output_is_kept() -> None:
    machine = machine_after(OK, IDLE, TEXT)

    assert fold(machine.log.after(-1)) == (StreamOutput("stdout", "x"),)


def test_only_the_first_reply_counts() -> None:
    machine = machine_after(ERROR, OK)

    assert machine.failed


def test_an_error_that_only_the_reply_tells_becomes_an_output() -> None:
    assert fold(machine_after(ERROR, IDLE).log.after(-1)) == (ErrorOutput("E", "v", ("t",)),)


@pytest.mark.parametrize(
    "messages",
    [(TEXT, TOLD, ERROR, IDLE), (ERROR, TEXT, TOLD, IDLE), (TEXT, ERROR, TOLD, IDLE), (TEXT, TOLD, IDLE, ERROR)],
)
def test_an_error_told_twice_is_one_output_and_in_its_place(messages: tuple[Message, ...]) -> None:
    machine = machine_after(*messages)

    assert fold(machine.log.after(-1)) == (StreamOutput("stdout", "x"), ErrorOutput("E", "v"))


@pytest.mark.parametrize("count", [-5, 2**63, True, "3", None, [1]])
def test_an_absurd_execution_count_is_none(count: object) -> None:
    assert machine_after(message("execute_reply", status="ok", execution_count=count)).execution_count is None


def test_a_status_that_is_none_of_the_protocols_is_a_failure() -> None:
    assert machine_after(message("execute_reply", status={"a": 1})).failed


def test_an_output_that_was_not_read_counts_as_dropped() -> None:
    big = Message("display_data", "parent", {"data": {"text/plain": "a note"}}, unread=10**8)

    machine = machine_after(big, OK, IDLE)

    assert machine.log.dropped_bytes == 10**8
    assert len(fold(machine.log.after(-1))) == 1
