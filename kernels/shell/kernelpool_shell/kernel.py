"""The kernel: one request after the other, outputs under the request that they belong to, an end to every wait."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

import zmq

from kernelpool.wire import Request, Wire
from kernelpool_shell.bash import Bash
from kernelpool_shell.words import completeness, matches_of, question

NAME, VERSION = "kernelpool-shell", "1.0"
TEXT_INTERVAL = 0.02
"""Seconds between two messages of text, when there is a lot of it."""
INTERRUPTED = 130
INSIST = (0.5, 1.5)
"""Seconds after an interrupt that nothing came of at which it is repeated: a program that bash is just starting hears
nothing of the first."""


def run(connection_file: Path) -> None:
    """Until a client says so."""
    signal.signal(signal.SIGINT, lambda *_: None)  # for bash, which is in the same group; here it is only noted
    with Wire(connection_file) as wire:
        Kernel(wire).serve()


class Kernel:
    """Single-threaded: a loop over the sockets and what comes of bash. While a request is served the next one stays
    in its socket."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._wakeup, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(self._wakeup, False)
        signal.set_wakeup_fd(wake)
        self._bash = Bash(self._on_text)
        # The mutable state: what is served, what came before its time, whose output comes, where a completion began.
        self._request: Request | None = None
        self._kept: deque[Request] = deque()
        self._cell: Request | None = None
        self._start = 0
        self._count = 0
        self._text_at = 0.0
        self._interrupted: Request | None = None
        self._insist_at: list[float] = []
        self._is_over = False
        self._actions: dict[str, Callable[[Request], None]] = {
            "execute_request": self._execute,
            "complete_request": self._complete,
            "is_complete_request": self._is_complete,
            "inspect_request": lambda request: self._answer(
                request, {"status": "ok", "found": False, "data": {}, "metadata": {}}
            ),
            "kernel_info_request": lambda request: self._answer(request, _info()),
            "history_request": lambda request: self._answer(request, {"status": "ok", "history": []}),
            "comm_info_request": lambda request: self._answer(request, {"status": "ok", "comms": {}}),
            "interrupt_request": self._interrupt,
            "shutdown_request": self._shutdown,
        }

    def serve(self) -> None:
        self._wire.publish("status", {"execution_state": "starting"}, None)
        while not self._is_over:
            self._turn()
        self._bash.close()

    def _turn(self) -> None:
        while self._kept and self._request is None:
            self._begin(self._kept.popleft())
        now = monotonic()
        waits = [at - now for at in (*self._insist_at[:1], *([self._text_at] if self._text_at > now else []))]
        poller = self._poller(text=self._text_at <= now)
        ready = dict(poller.poll(max(0, int(min(waits) * 1000) + 1) if waits else None))
        self._insist(self._wakeup in ready)
        self._serve_sockets(ready)
        if self._is_over:
            return
        self._bash.read()
        if (status := self._bash.status()) is not None and self._request is not None:
            self._bash.settle()
            self._done(status)
        elif self._bash.died in ready:
            self._renew()

    def _insist(self, is_interrupted: bool) -> None:
        if is_interrupted:
            os.read(self._wakeup, 1000)
            self._bash.refill()
            if self._request not in (None, self._interrupted):  # what we repeat ourselves comes here, too
                self._interrupted = self._request
                self._insist_at = [monotonic() + seconds for seconds in INSIST]
        if self._request is None or self._request is not self._interrupted:
            self._insist_at = []
        elif self._insist_at and self._insist_at[0] <= monotonic():
            self._insist_at.pop(0)
            self._bash.interrupt()

    def _poller(self, *, text: bool) -> zmq.Poller:
        poller = zmq.Poller()
        for name in ("control", "hb", "iopub", *(["shell"] if self._request is None else [])):
            poller.register(self._wire.sockets[name], zmq.POLLIN)
        for descriptor in (self._wakeup, *self._bash.sources(text=text)):
            poller.register(descriptor, zmq.POLLIN)
        return poller

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
        action = self._actions.get(request.kind)
        if action is not None:
            action(request)
        else:  # comms, of which there are none
            self._status("idle", request)

    def _answer(self, request: Request, content: dict[str, Any]) -> None:
        self._wire.reply(request, content)
        self._status("idle", request)
        if request is self._request:
            self._request = None

    def _status(self, state: str, request: Request) -> None:
        self._wire.publish("status", {"execution_state": state}, request)

    # --- requests

    def _execute(self, request: Request) -> None:
        content = request.content
        code, silent = str(content.get("code", "")), bool(content.get("silent"))
        if not silent and content.get("store_history", True):
            self._count += 1
        if not silent:
            self._wire.publish("execute_input", {"code": code, "execution_count": self._count}, request)
        self._bash.settle()  # what is there by now is the last cell's
        self._request = self._cell = request
        if "\0" in code:
            self._fail("ValueError", "the code has a NUL character, which a shell cannot read")
        else:
            self._bash.begin(code)

    def _complete(self, request: Request) -> None:
        code = str(request.content.get("code", ""))
        position = request.content.get("cursor_pos")
        asked, self._start = question(code, position if isinstance(position, int) else len(code))
        self._request = request
        self._bash.begin(asked, kind="answer")

    def _is_complete(self, request: Request) -> None:
        self._answer(request, {"status": completeness(str(request.content.get("code", ""))), "indent": "  "})

    def _interrupt(self, request: Request) -> None:
        self._bash.interrupt()
        self._answer(request, {"status": "ok"})

    def _shutdown(self, request: Request) -> None:
        self._answer(request, {"status": "ok", "restart": bool(request.content.get("restart"))})
        self._is_over = True

    # --- what comes of bash

    def _on_text(self, name: str, text: str) -> None:
        """Of the cell that runs, or ran last."""
        self._wire.publish("stream", {"name": name, "text": text}, self._cell)
        self._text_at = monotonic() + TEXT_INTERVAL

    def _done(self, status: int) -> None:
        request = self._request
        assert request is not None
        if request.kind == "complete_request":
            self._answer(request, self._completed(request, self._bash.answer()))
        elif status == 0:
            self._answer(request, self._executed({"status": "ok", "user_expressions": {}, "payload": []}))
        elif status == INTERRUPTED:
            self._fail("KeyboardInterrupt", "")
        else:
            self._fail("ExitStatus", str(status))

    def _renew(self) -> None:
        """The shell ended: by `exit`, by `set -e`, by a signal. The next cell has a new one."""
        self._bash.settle()
        status = self._bash.close()
        self._bash = Bash(self._on_text)
        request = self._request
        if request is not None and request.kind == "execute_request":
            self._fail(
                "ShellExited", f"the shell exited with {status}; a new one takes its place, without its variables"
            )
        elif request is not None:
            self._answer(request, self._completed(request, ""))

    def _fail(self, name: str, value: str) -> None:
        request = self._request
        assert request is not None
        error = {"ename": name, "evalue": value, "traceback": [f"{name}: {value}" if value else name]}
        # As the protocol has it: what was sent before the failure was known is not run.
        waiting = self._wire.waiting("shell") if request.content.get("stop_on_error", True) else []
        self._wire.publish("error", error, request)
        self._answer(request, self._executed({"status": "error", **error}))
        for request in waiting:
            if request.kind != "execute_request":
                self._kept.append(request)
                continue
            self._status("busy", request)
            self._wire.reply(request, self._executed({"status": "aborted"}))
            self._status("idle", request)

    def _executed(self, content: dict[str, Any]) -> dict[str, Any]:
        return {"execution_count": self._count, **content}

    def _completed(self, request: Request, text: str) -> dict[str, Any]:
        code = str(request.content.get("code", ""))
        end = request.content.get("cursor_pos")
        end = end if isinstance(end, int) else len(code)
        return {
            "status": "ok",
            "matches": matches_of(text),
            "cursor_start": self._start,
            "cursor_end": end,
            "metadata": {},
        }


@cache
def _version() -> str:
    answer = subprocess.run(
        ["/bin/bash", "-c", "echo ${BASH_VERSION%%(*}"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip()


def _info() -> dict[str, Any]:
    version = _version()
    return {
        "status": "ok",
        "protocol_version": "5.3",
        "implementation": NAME,
        "implementation_version": VERSION,
        "banner": f"bash {version}",
        "help_links": [{"text": "Bash", "url": "https://www.gnu.org/software/bash/manual/bash.html"}],
        "language_info": {
            "name": "bash",
            "version": version,
            "mimetype": "text/x-sh",
            "file_extension": ".sh",
            "codemirror_mode": "shell",
            "pygments_lexer": "bash",
        },
    }
