"""What Jupyter clients send: cells join the session's executions, the rest goes to the kernel or is answered here.

What goes to the kernel is the client's own message, signed and otherwise unchanged, so replies name it as their parent.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from kernelpool.agent.client import Client
from kernelpool.agent.clients import Clients
from kernelpool.agent.executions import Executions
from kernelpool.agent.kernel import SUBSHELLS_ON_CONTROL, KernelNotReady
from kernelpool.agent.requests import Request
from kernelpool.agent.run import Asked
from kernelpool.errors import Conflict, ExecutionQueueFull
from kernelpool.models import Cell, ExecuteRequest, Origin
from kernelpool.protocol import past
from kernelpool.protocol.framing import Head, WireMessage, decode_v1, read_head, read_object
from kernelpool.protocol.messages import ProtocolError

log = logging.getLogger(__name__)

MAX_HEADER = 8 << 10
"""Bytes of a client's header, which is kept while there is no answer. Those of today's clients have a few hundred."""
ON_CONTROL = {
    "kernel_info_request",
    "usage_request",
    "create_subshell_request",
    "delete_subshell_request",
    "list_subshell_request",
}
"""What the kernel itself answers on control. Cells have no business there: they would run beside those in order."""


class Relay:
    """Everything that a client may send, in its place."""

    def __init__(self, clients: Clients, executions: Executions) -> None:
        self._clients = clients
        self._executions = executions

    def receive(self, client: Client, frame: bytes) -> None:
        """Never waits, never raises: what makes no sense is dropped, what cannot be done is answered with an error."""
        try:
            message = decode_v1(frame)
            if len(message.header) > MAX_HEADER:
                raise ProtocolError(f"a header of more than {MAX_HEADER} bytes")
            head = read_head(message.header)
            # The kernel gives no answer to what is none, and whoever waits for it waits for ever.
            content, _, _ = map(read_object, (message.content, message.metadata, message.parent_header))
        except ProtocolError as error:
            log.warning("message of a client dropped", extra={"reason": str(error)})
            return
        self._executions.touch()
        if message.channel == "stdin":
            self._answer_input(client, message, head)
        elif message.channel in ("shell", "control"):
            self._ask(client, message, head, content)

    def _answer_input(self, client: Client, message: WireMessage, head: Head) -> None:
        if head.msg_type == "input_reply" and self._clients.may_answer_input(client):
            with suppress(KernelNotReady):  # then nobody waits for it any more
                self._forward(message)

    def _ask(self, client: Client, message: WireMessage, head: Head, content: dict[str, Any]) -> None:
        request = self._clients.ask(client, message, head)
        if request is None:
            log.warning("message of a client not passed on", extra={"reason": "too many, or its id is in use"})
            return
        handle = _HANDLERS[message.channel].get(head.msg_type)
        if handle is not None:
            handle(self, request, message, content)
        elif message.channel == "control" and head.msg_type not in ON_CONTROL:
            self._clients.refuse(request, f"{head.msg_type[:100]} is not for the control channel")
        else:
            self._pass_on(request, message, content)

    def _pass_on(self, request: Request, message: WireMessage, _content: dict[str, Any]) -> None:
        if request.head.subshell_id is not None and self._executions.kernel.has(SUBSHELLS_ON_CONTROL):
            message = replace(message, channel="control")
        try:
            self._forward(message)
        except KernelNotReady as error:
            self._clients.refuse(request, str(error))

    def _execute(self, request: Request, message: WireMessage, content: dict[str, Any]) -> None:
        if request.head.subshell_id is not None:
            self._pass_on(request, message, content)  # runs beside the others, which is what subshells are for
            return
        is_silent = content.get("silent") is True
        is_recorded = not is_silent and content.get("store_history") is not False
        asked = Asked(request, is_silent, content.get("stop_on_error") is not False, is_recorded)
        code = content.get("code")
        if not isinstance(code, str):
            self._clients.refuse(request, "code must be a string", "InvalidRequest")
            return
        try:
            what = ExecuteRequest(
                execution_id(request.head.msg_id),
                code,
                math.inf,  # a person watches, and may interrupt
                origin=Origin.JUPYTER,
                cell=_cell_of(message),
            )
            self._executions.submit_cell(what, asked, message)
        except (ExecutionQueueFull, Conflict) as error:
            self._clients.refuse(request, error.message, error.code)

    def _tell_kernel_info(self, request: Request, message: WireMessage, content: dict[str, Any]) -> None:
        """A kernel that is busy cannot, and a client that opens it would wait for its cell to end."""
        info = self._executions.kernel.info
        if info is None or not self._executions.running:
            self._pass_on(request, message, content)
            return
        self._clients.answer(request, info)
        self._clients.say("status", {"execution_state": "busy"})

    def _tell_history(self, request: Request, _message: WireMessage, content: dict[str, Any]) -> None:
        runs = ((run.number, run.code) for run in self._executions.after(0))
        entries = [(number, code) for number, code in runs if code is not None]
        self._clients.answer(request, past.answer(content, entries))

    def _debug(self, request: Request, message: WireMessage, content: dict[str, Any]) -> None:
        if self._executions.kernel.has("debugger"):
            self._pass_on(request, message, content)
        else:
            self._clients.refuse(request, "this kernel has no debugger")

    def _interrupt(self, request: Request, _message: WireMessage, _content: dict[str, Any]) -> None:
        self._executions.interrupt()
        self._clients.answer(request, {"status": "ok"})

    def _shutdown(self, request: Request, _message: WireMessage, content: dict[str, Any]) -> None:
        """Either way a fresh kernel takes its place: that the session ends is for the gateway to say."""
        self._clients.answer(request, {"status": "ok", "restart": content.get("restart") is True})
        self._executions.restart_soon()

    def _forward(self, message: WireMessage) -> None:
        self._executions.kernel.forward(message)


def execution_id(msg_id: str) -> str:
    """The id of the execution that a message is. One that may not be called so is called by its hash."""
    id = f"jupyter-{msg_id}"
    return id if ExecuteRequest.is_id(id) else f"jupyter-{hashlib.sha256(msg_id.encode()).hexdigest()}"


def _cell_of(message: WireMessage) -> Cell | None:
    """The cell that JupyterLab and VS Code name in the metadata."""
    id = read_object(message.metadata).get("cellId")
    return Cell(id) if Cell.is_id(id) else None


_Handle = Callable[[Relay, Request, WireMessage, dict[str, Any]], None]
_HANDLERS: dict[str, dict[str, _Handle]] = {
    "shell": {
        "execute_request": Relay._execute,
        "kernel_info_request": Relay._tell_kernel_info,
        "history_request": Relay._tell_history,
    },
    "control": {
        "debug_request": Relay._debug,
        "interrupt_request": Relay._interrupt,
        "shutdown_request": Relay._shutdown,
    },
}
