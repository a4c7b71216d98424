"""The process of Node.js: commands to it, and what comes of it, in the order in which it came about.

Its descriptor 1 is the order: text, with a mark where each message belongs, which comes by a pipe of its own. So a
picture stands between the lines that were printed before and after it, whoever printed them.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import secrets
import select
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import zmq

from kernelpool.children import end_of

from .inspector import LEAVING, LISTENING, NOISE, STARTS, Inspector

MAIN = Path(__file__).resolve().parents[1] / "host" / "main.cjs"
READ_SIZE = 1 << 16
TURN = 0.02
"""Seconds of reading text before others have their turn."""
LONGEST_NOISE = 1024
"""Characters of a line of the inspector's."""
MARK_LOST = 1.0
"""Seconds of silence after which a message is taken without its mark: the user's code may have closed what it is
written to."""

OnText = Callable[[str, str], None]
OnMessage = Callable[[dict[str, Any]], None]


class Host:
    """`on_text(stream, text)` and `on_message(message)` are called by `read`, in order."""

    def __init__(self, node: Sequence[str], on_text: OnText, on_message: OnMessage) -> None:
        """`node`: the command, without the script."""
        self._on_text, self._on_message = on_text, on_message
        mark = secrets.token_hex(8)
        self._mark = f"\0{mark}:".encode()
        commands, self._commands = os.pipe()
        self._messages, messages = os.pipe()
        self._process = subprocess.Popen(
            [*node, str(MAIN), mark, str(commands), str(messages)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(commands, messages),
        )
        os.close(commands)
        os.close(messages)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._stdout, self._stderr = self._process.stdout.fileno(), self._process.stderr.fileno()
        self._died = end_of(self._process.pid)
        for pipe in (self._commands, self._messages, self._stdout, self._stderr):
            os.set_blocking(pipe, False)
        # The mutable state: what could not be written yet; what was read of messages and of text; messages whose mark
        # is still to come, and since when the first waits.
        self._unwritten = bytearray()
        self._line = bytearray()
        self._text = bytearray()
        self._waiting: deque[dict[str, Any]] = deque()
        self._since: float | None = None
        self._listens = self._forces = False
        self._told: re.Match[str] | None = None
        self._inspector: Inspector | None = None
        self._begun_line = ""
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}

    def sources(self, *, text: bool) -> dict[int, int]:
        """Descriptors to poll, and for what in the words of ZMQ; those of text only when it is wanted."""
        found = {self._messages: zmq.POLLIN, self._died: zmq.POLLIN}
        if text:
            found |= {self._stdout: zmq.POLLIN, self._stderr: zmq.POLLIN}
        if self._unwritten:
            found[self._commands] = zmq.POLLOUT
        return found

    @property
    def patience(self) -> float | None:
        """Seconds until `read` has something to do by itself."""
        return None if self._since is None else max(0.0, self._since + MARK_LOST - monotonic())

    def command(self, do: str, **values: Any) -> None:
        self._unwritten += json.dumps({"do": do, **values}).encode() + b"\n"
        self.write()

    def write(self) -> None:
        """Goes on with what could not be written at once."""
        with suppress(BlockingIOError, BrokenPipeError):
            while self._unwritten:
                del self._unwritten[: os.write(self._commands, self._unwritten)]

    def read(self) -> None:
        """What there is now, or as much of it as is read in a turn."""
        until = monotonic() + TURN
        data = None
        while data is None or (len(data) == READ_SIZE and monotonic() < until):
            data = _read(self._stdout)
            self._text += data
            self._take_text()
        self._read_messages()
        self._read_stderr()
        if not self._waiting or data:
            self._since = monotonic() if self._waiting else None
        elif self._since is None:
            self._since = monotonic()
        elif not self.patience:
            self._hand_on(self._waiting[-1]["number"])

    def busy_seconds(self) -> float:
        """How long the thread that runs JavaScript was busy so far."""
        with suppress(OSError):
            stat = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/stat").read_text()
            user, system = stat.rpartition(")")[2].split()[11:13]
            return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def stop_by_force(self) -> None:
        """JavaScript that has not looked up since the interrupt is ended; `read` does the rest."""
        self._forces = self._listens = True
        if self._inspector is None and self._told is not None:
            self._open(self._told)
        if self._inspector is None:
            os.kill(self._process.pid, signal.SIGUSR1)
        else:
            self._terminate()

    def settle(self) -> None:
        """What came out until now is all of a cell, which has ended."""
        if self._forces and self._inspector is not None:
            try:
                self._inspector.absorb()
            except TimeoutError:  # something of the user's still runs
                pass
            except OSError:
                self._close()
        self._forces = False
        self._read_stderr()
        rest, self._begun_line = self._begun_line, ""
        self._tell("stderr", rest)
        for name, decoder in self._decoders.items():
            self._tell(name, decoder.decode(b"", final=True))

    def died(self) -> int | None:
        """The return code of the process, once it has ended and all that it said is read."""
        if not select.select([self._died], [], [], 0)[0]:
            return None
        while data := _read(self._stdout):
            self._text += data
        self._take_text()
        self._hand_on()
        self._tell_bytes("stdout", bytes(self._text))
        self.settle()
        return self._process.wait()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _take_text(self) -> None:
        while (start := self._text.find(self._mark)) >= 0 and (end := self._text.find(b"\n", start)) >= 0:
            self._tell_bytes("stdout", bytes(self._text[:start]))
            number = bytes(self._text[start + len(self._mark) : end])
            del self._text[: end + 1]
            if number.isdigit():
                self._hand_on(int(number))
        kept = self._begun_mark()
        self._tell_bytes("stdout", bytes(self._text[: len(self._text) - kept]))
        del self._text[: len(self._text) - kept]

    def _begun_mark(self) -> int:
        """How many bytes at the end may be of a mark."""
        if (start := self._text.find(self._mark)) >= 0:
            return len(self._text) - start
        start = self._text.rfind(b"\0", -len(self._mark))
        return len(self._text) - start if start >= 0 and self._mark.startswith(self._text[start:]) else 0

    def _hand_on(self, number: float = math.inf) -> None:
        """Messages up to that one, which were written before their mark was."""
        while (not self._waiting or self._waiting[-1]["number"] < number) and self._read_messages():
            pass
        while self._waiting and self._waiting[0]["number"] <= number:
            message = self._waiting.popleft()
            self._read_stderr()
            self._on_message(message)

    def _read_messages(self) -> bool:
        """Whether there was anything."""
        data = _read(self._messages)
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._line += line
            if message := _parse(self._line):
                self._waiting.append(message)
            self._line.clear()
        self._line += rest
        return bool(data)

    def _read_stderr(self) -> None:
        data = _read(self._stderr)
        if data and self._listens:
            self._listen(self._decoders["stderr"].decode(data))
        elif data:
            self._tell_bytes("stderr", data)

    def _listen(self, text: str) -> None:
        """For where the inspector is, from the first time on: it says so when it likes. JavaScript does not write here,
        so what it says is known from what the user's programs say."""
        *lines, rest = (self._begun_line + text).split("\n")
        for line in lines:
            if told := LISTENING.search(line):
                self._told = told
                if self._inspector is None and self._open(told) and self._forces:
                    self._terminate()
            elif LEAVING in line:  # it does not end before we do
                self._close()
            if noise := NOISE.search(line):
                self._tell("stderr", line[: noise.start()])
            else:
                self._tell("stderr", line + "\n")
        held = _begun_noise(rest)
        self._tell("stderr", rest[:held])
        self._begun_line = rest[held:]

    def _open(self, told: re.Match[str]) -> bool:
        with suppress(OSError):
            self._inspector = Inspector(told)
        return self._inspector is not None

    def _terminate(self) -> None:
        assert self._inspector is not None
        try:
            self._inspector.terminate()
        except OSError:  # the user's code has closed it: another is opened
            self._close()

    def _close(self) -> None:
        if self._inspector is not None:
            self._inspector.close()
        self._inspector = None

    def _tell_bytes(self, name: str, data: bytes) -> None:
        self._tell(name, self._decoders[name].decode(data))

    def _tell(self, name: str, text: str) -> None:
        if text:
            self._on_text(name, text)


def _begun_noise(text: str) -> int:
    """Where in an unfinished line begins what the inspector may be saying; its end when that is nowhere."""
    for start in STARTS:
        if (at := text.find(start)) >= 0:
            return at if len(text) - at < LONGEST_NOISE else len(text)
    lengths = range(min(len(text), max(map(len, STARTS))), 0, -1)
    begun = next((n for n in lengths if any(start.startswith(text[-n:]) for start in STARTS)), 0)
    return len(text) - begun


def _read(pipe: int) -> bytes:
    with suppress(BlockingIOError):
        return os.read(pipe, READ_SIZE)
    return b""


def _parse(line: bytes | bytearray) -> dict[str, Any] | None:
    """None for a torn one, and for what the user's code writes there, which may be anything."""
    with suppress(ValueError, RecursionError):
        message = json.loads(line)
        if isinstance(message, dict) and type(message.get("number")) is int and isinstance(message.get("type"), str):
            return message
    return None
