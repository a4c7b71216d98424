"""The executions of one connection, as operators see them: a span, a count and a line of the audit log for each."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from datetime import UTC, datetime

from kernelpool.errors import KernelpoolError
from kernelpool.kernel import Kernel
from kernelpool.models import EndCause, ExecuteRequest, Execution, ExecutionState, Origin
from kernelpool.protocol.framing import Head, WireMessage, read_head, read_object
from kernelpool.protocol.messages import ProtocolError
from kernelpool.tasks import Tasks
from kernelpool.telemetry.words import outcome

MAX_OPEN = 1000
"""Executions under way that are followed; of more only the latest are."""
_ENDS = {
    "ok": (ExecutionState.SUCCEEDED, EndCause.COMPLETED),
    "error": (ExecutionState.FAILED, EndCause.RAISED),
}
_ABORTED = (ExecutionState.CANCELED, EndCause.CANCELED)

Reply = asyncio.Future[str | None]
"""The status of an execution's reply; None when the client left before it came."""


class Ledger:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._open: OrderedDict[str, Reply] = OrderedDict()
        self._tasks = Tasks("jupyter executions")

    async def aclose(self) -> None:
        """What is still under way runs on; its end is told when somebody asks after it."""
        for reply in self._open.values():
            reply.set_result(None)
        self._open.clear()
        await self._tasks.aclose(grace=1.0)

    def submit(self, head: Head, message: WireMessage) -> None:
        """An `execute_request` is about to be sent. Raises what it is refused with."""
        if head.msg_id in self._open:
            return
        self._kernel.admit()
        code = read_object(message.content).get("code")
        reply: Reply = asyncio.get_running_loop().create_future()
        self._open[head.msg_id] = reply
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)[1].set_result(None)
        text = code if isinstance(code, str) else ""
        self._tasks.spawn(self._watch(execution_id(head.msg_id), text, reply), "execution")

    def reply(self, message: WireMessage) -> None:
        """On shell. What a sandbox says there is no more than its word, and a time is not even asked for."""
        if not self._open:
            return
        try:
            parent = read_head(message.parent_header)
            if (reply := self._open.get(parent.msg_id)) is not None:
                reply.set_result(str(read_object(message.content).get("status")))
                del self._open[parent.msg_id]
        except ProtocolError:
            return

    async def _watch(self, id: str, code: str, reply: Reply) -> None:
        began = time.time()
        with self._kernel.watch.relaying(id, code) as act:
            status = await reply
            if status is None:
                act.outcome = ExecutionState.RUNNING.value
                return
            state, cause = _ENDS.get(status, _ABORTED)
            started = None if cause is EndCause.CANCELED else began
            execution = Execution(id, state, began, started, time.time(), cause=cause, origin=Origin.JUPYTER)
            act.outcome = outcome(execution)
            self._kernel.watch.ended(execution)


def refusal(message: WireMessage, error: KernelpoolError, session: str, now: float) -> Iterator[WireMessage]:
    """What a kernel would say to an `execute_request` that failed at once."""
    content = {"ename": error.code, "evalue": f"{error.message} {error.remedy}", "traceback": []}
    date = datetime.fromtimestamp(now, UTC).isoformat()
    said = [
        ("iopub", "status", {"execution_state": "busy"}),
        ("iopub", "error", content),
        ("shell", "execute_reply", {"status": "error", "execution_count": None, **content}),
        ("iopub", "status", {"execution_state": "idle"}),
    ]
    for channel, kind, fields in said:
        yield made(channel, kind, fields, session, date, message.header)


def made(channel: str, kind: str, content: object, session: str, date: str, parent: bytes = b"{}") -> WireMessage:
    """A message of the gateway's own."""
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": kind,
        "session": session,
        "username": "kernelpool",
        "version": "5.4",
        "date": date,
    }
    return WireMessage(channel, json.dumps(header).encode(), parent, b"{}", json.dumps(content).encode())


def execution_id(msg_id: str) -> str:
    """As the agent names the execution."""
    id = f"jupyter-{msg_id}"
    return (
        id
        if ExecuteRequest.is_id(id)
        else f"jupyter-{hashlib.sha256(msg_id.encode(errors='surrogatepass')).hexdigest()}"
    )
