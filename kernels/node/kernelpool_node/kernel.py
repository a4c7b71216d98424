"""The kernel: one request after the other, outputs under the request that they belong to, an end to every wait."""

from __future__ import annotations

import os
import signal
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import zmq

from kernelpool.wire import Request, Wire

from .host import Host

NAME, VERSION = "kernelpool-node", "1.0"
OPTIONS = ("--no-force-async-hooks-checks", "--disable-warning=ExperimentalWarning", "--inspect-port=127.0.0.1:0")
"""What is stopped by force leaves out what those checks count on, and they would end the process."""
TEXT_INTERVAL = 0.02
"""Seconds between two messages of text, when there is a lot of it."""
REMEMBERED = 1000
"""Cells whose late output still finds its way home."""
LOOK_INTERVAL = 0.05
"""Seconds between two looks at whether an interrupted cell has ended."""
DEAF = 0.2
"""Seconds of work since the interrupt, from which on JavaScript is stopped by force: that is the user's code, and not
the host that is about to look up."""
PATIENCE = 1.0
"""Seconds from which on it is stopped by force however little it has worked: what prints more than is read waits most
of its time."""
BLOCKED = 0.3
"""Seconds in which it has neither worked so much nor looked up: it waits for a program, and that has SIGINT."""

BESIDE_THE_HEAP = 256 << 20
"""Bytes of a session's memory that are not JavaScript's, but half of it at most: so JavaScript is told that there is no
more, and says so, before the kernel of the machine ends it."""

ON_CONTROL = frozenset({"interrupt_request", "kernel_info_request", "shutdown_request"})
OUTPUTS = {
    "execute_result": ("data", "metadata", "execution_count"),
    "display_data": ("data", "metadata", "transient"),
    "update_display_data": ("data", "metadata", "transient"),
    "clear_output": ("wait",),
    "stream": ("name", "text"),
    "error": ("ename", "evalue", "traceback"),
}


def run(connection_file: Path, memory: int) -> None:
    """To its end, which is that of Node.js: what ended that is seen from here."""
    heap = max(memory // 2, memory - BESIDE_THE_HEAP) >> 20
    limit = [f"--max-old-space-size={heap}"] if memory else []
    node = ["node", *limit, *OPTIONS]
    with Wire(connection_file) as wire:
        code = Kernel(wire, node).serve()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    sys.exit(code)


@dataclass(slots=True)
class Interrupt:
    """Of the cell that runs."""

    busy: float
    """Seconds that JavaScript was busy before."""
    force_at: float
    signal_at: float


class Kernel:
    """Single-threaded: a loop over the sockets and what comes of Node.js. While a request is served the next one stays
    in its socket."""

    def __init__(self, wire: Wire, node: Sequence[str]) -> None:
        self._wire = wire
        # For the programs that a cell waits for, which are in the same group.
        signal.signal(signal.SIGINT, lambda *_: None)
        self._host = Host(node, self._on_text, self._on_message)
        # The mutable state: what is served, what came before its time, and the cells that there were.
        self._request: Request | None = None
        self._kept: deque[Request] = deque()
        self._cells: OrderedDict[int, Request] = OrderedDict()
        self._cell = self._command = self._begun = 0
        self._count = 0
        self._version = ""
        self._insist_at: float | None = None
        self._interrupt: Interrupt | None = None
        self._text_at = 0.0
        self._exit: int | None = None
        self._on_shell: dict[str, Callable[[Request], None]] = {
            "execute_request": self._execute,
            "complete_request": lambda request: self._ask(request, "complete"),
            "inspect_request": lambda request: self._ask(request, "inspect"),
            "is_complete_request": lambda request: self._ask(request, "is_complete"),
            "kernel_info_request": lambda request: self._answer(request, self._info()),
            "history_request": lambda request: self._answer(request, {"status": "ok", "history": []}),
            "comm_info_request": lambda request: self._answer(request, {"status": "ok", "comms": {}}),
            "interrupt_request": self._be_interrupted,
            "shutdown_request": self._shutdown,
        }

    def serve(self) -> int:
        """Until Node.js ends or a client says so. Returns what to exit with."""
        self._wire.publish("status", {"execution_state": "starting"}, None)
        while self._exit is None:
            self._turn()
        return self._exit

    def _turn(self) -> None:
        while self._kept and self._request is None:
            self._begin(self._kept.popleft())
        ready = dict(self._poller().poll(self._milliseconds()))
        self._serve_sockets(ready)
        self._host.write()
        self._host.read()
        if self._exit is None and (code := self._host.died()) is not None:
            self._exit = code
        elif self._insist_at is not None and self._insist_at <= monotonic():
            self._insist()

    def _interrupted(self) -> None:
        if self._request is not None and self._interrupt is None:
            now = monotonic()
            self._interrupt = Interrupt(self._host.busy_seconds(), now + PATIENCE, now + BLOCKED)
            self._insist()

    def _insist(self) -> None:
        """What waits is told by name, again and again: too early it is not heard, and too late it means nothing."""
        interrupt = self._interrupt
        if interrupt is None:
            return
        now = monotonic()
        self._insist_at = now + LOOK_INTERVAL
        self._host.command("interrupt", id=self._command)
        busy = self._host.busy_seconds() - interrupt.busy
        if busy >= DEAF or now >= interrupt.force_at:
            self._host.stop_by_force()
            interrupt.busy, interrupt.force_at = self._host.busy_seconds(), now + PATIENCE
        elif now >= interrupt.signal_at:
            interrupt.signal_at += BLOCKED
            os.killpg(os.getpgrp(), signal.SIGINT)

    def _poller(self) -> zmq.Poller:
        poller = zmq.Poller()
        is_idle = self._request is None and bool(self._version)
        for name in ("control", "hb", "iopub", *(["shell"] if is_idle else [])):
            poller.register(self._wire.sockets[name], zmq.POLLIN)
        for descriptor, events in self._host.sources(text=monotonic() >= self._text_at).items():
            poller.register(descriptor, events)
        return poller

    def _milliseconds(self) -> int | None:
        now = monotonic()
        waits = [self._text_at - now] if self._text_at > now else []
        if self._insist_at is not None:
            waits.append(self._insist_at - now)
        if (patience := self._host.patience) is not None:
            waits.append(patience)
        return max(0, int(min(waits) * 1000) + 1) if waits else None

    def _serve_sockets(self, ready: dict[Any, int]) -> None:
        sockets = self._wire.sockets
        if sockets["hb"] in ready:
            sockets["hb"].send_multipart(sockets["hb"].recv_multipart())
        if sockets["iopub"] in ready:
            sockets["iopub"].recv_multipart()  # somebody subscribes
        for channel in ("control", "shell"):
            if sockets[channel] in ready and (request := self._wire.receive(channel)):
                self._begin(request)

    def _begin(self, request: Request) -> None:
        self._status("busy", request)
        action = self._on_shell.get(request.kind)
        if request.channel == "control" and request.kind not in ON_CONTROL:
            action = None  # Node.js has one command at a time
        if request.channel == "shell" and action is not None:
            self._request = request
        if action is not None:
            action(request)
        else:  # comms, of which there are none
            self._finish(request)

    def _finish(self, request: Request) -> None:
        self._status("idle", request)
        if request is self._request:
            self._request = self._interrupt = self._insist_at = None

    def _answer(self, request: Request, content: dict[str, Any]) -> None:
        self._wire.reply(request, content)
        self._finish(request)

    def _status(self, state: str, request: Request) -> None:
        self._wire.publish("status", {"execution_state": state}, request)

    # --- requests

    def _execute(self, request: Request) -> None:
        content = request.content
        code, silent = str(content.get("code", "")), bool(content.get("silent"))
        self._cell += 1
        self._cells[self._cell] = request
        if len(self._cells) > REMEMBERED:
            self._cells.popitem(last=False)
        if not silent and content.get("store_history", True):
            self._count += 1
        if not silent:
            self._wire.publish("execute_input", {"code": code, "execution_count": self._count}, request)
        expressions = content.get("user_expressions") or {}
        self._command = self._cell
        self._host.command(
            "execute", id=self._cell, code=code, count=self._count, silent=silent, expressions=expressions
        )

    def _ask(self, request: Request, do: str) -> None:
        content = request.content
        code = str(content.get("code", ""))
        position = _units(code, content.get("cursor_pos"))
        self._command = 0
        self._host.command(do, id=0, code=code, position=position, detail=bool(content.get("detail_level")))

    def _be_interrupted(self, request: Request) -> None:
        self._interrupted()
        self._answer(request, {"status": "ok"})

    def _shutdown(self, request: Request) -> None:
        self._answer(request, {"status": "ok", "restart": bool(request.content.get("restart"))})
        self._host.kill()
        self._exit = 0

    def _info(self) -> dict[str, Any]:
        version = self._version.removeprefix("v")
        return {
            "status": "ok",
            "protocol_version": "5.3",
            "implementation": NAME,
            "implementation_version": VERSION,
            "banner": f"Node.js {version}, with TypeScript",
            "help_links": [{"text": "Node.js", "url": "https://nodejs.org/docs/latest/api/"}],
            "language_info": {
                "name": "javascript",
                "version": version,
                "mimetype": "text/javascript",
                "file_extension": ".js",
                "codemirror_mode": "javascript",
                "pygments_lexer": "javascript",
            },
        }

    # --- what comes of Node.js

    def _on_text(self, name: str, text: str) -> None:
        """Of the cell that runs, or ran last: what was still on its way when the next was sent is not the next's."""
        self._wire.publish("stream", {"name": name, "text": text}, self._cells.get(self._begun))
        self._text_at = monotonic() + TEXT_INTERVAL

    def _on_message(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "ready":
            self._version = str(message.get("version"))
        elif kind == "begun":
            self._begun = self._cell
        elif kind == "done":
            self._done(message)
        elif kind in OUTPUTS:
            self._output(kind, message)

    def _output(self, kind: str, message: dict[str, Any]) -> None:
        content = {name: message[name] for name in OUTPUTS[kind] if name in message}
        if kind == "execute_result":
            content["execution_count"] = self._count
        cell = message.get("cell")
        request = self._cells.get(cell if isinstance(cell, int) else self._begun)
        self._wire.publish(kind, content, request)

    def _done(self, message: dict[str, Any]) -> None:
        request = self._request
        if request is None or message.get("id") != self._command:
            return
        self._host.settle()
        if request.kind == "execute_request":
            self._executed(request, self._execute_reply(message))
        else:
            self._answer(request, _reply_to(request, message))

    def _executed(self, request: Request, reply: dict[str, Any]) -> None:
        stops = reply["status"] == "error" and request.content.get("stop_on_error", True)
        # As the protocol has it: what was sent before the failure was known is not run. It is known with the reply.
        waiting = self._wire.waiting("shell") if stops else []
        self._answer(request, reply)
        for request in waiting:
            if request.kind != "execute_request":
                self._kept.append(request)
                continue
            self._status("busy", request)
            self._wire.reply(request, {"status": "aborted", "execution_count": self._count})
            self._status("idle", request)

    def _execute_reply(self, message: dict[str, Any]) -> dict[str, Any]:
        if message.get("status") == "ok":
            expressions = message.get("expressions", {})
            return {
                "status": "ok",
                "execution_count": self._count,
                "user_expressions": expressions,
                "payload": [],
            }
        error = {"ename": "Error", "evalue": str(message.get("error", "")), "traceback": []}
        error |= {name: message[name] for name in error if name in message}
        return {"status": "error", "execution_count": self._count, "user_expressions": {}, "payload": [], **error}


def _reply_to(request: Request, message: dict[str, Any]) -> dict[str, Any]:
    code = str(request.content.get("code", ""))
    if request.kind == "is_complete_request":
        return {"status": message.get("status", "unknown"), "indent": "  "}
    if request.kind == "inspect_request":
        text = message.get("text")
        return {"status": "ok", "found": bool(text), "data": {"text/plain": text} if text else {}, "metadata": {}}
    start = _characters(code, int(message.get("start", 0)))
    end = request.content.get("cursor_pos")
    end = end if isinstance(end, int) else len(code)
    matches = message.get("matches", [])
    return {"status": "ok", "matches": matches, "cursor_start": start, "cursor_end": end, "metadata": {}}


def _units(code: str, position: object) -> int:
    """JavaScript counts in halves of what is beyond the first 65,536 characters."""
    text = code if not isinstance(position, int) else code[:position]
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _characters(code: str, units: int) -> int:
    return len(code.encode("utf-16-le", "surrogatepass")[: units * 2].decode("utf-16-le", "replace"))
