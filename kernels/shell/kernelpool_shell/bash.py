"""The bash of a session: one process for all cells, so that variables, functions and folder stay.

It is an interactive one, because only those go back to their prompt when they are interrupted. What it reads at that
prompt is a loop of ours, which runs one cell after the other; whatever ends the loop (an interrupt, `break`, an
expansion that fails) makes it read the same loop again. Cells get no terminal and nothing on stdin: what asks is told
that there is nothing more, and goes on.
"""

from __future__ import annotations

import array
import codecs
import fcntl
import os
import select
import signal
import subprocess
import tempfile
import termios
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

READ_SIZE = 64 << 10
HIGH = 100
"""Descriptors from here on are ours: scripts use the low ones."""
PIPE_SIZE = 1 << 20
MAX_SETTLED = 64 << 20
"""Bytes that are read at the end of a cell at most, should something in the background go on writing."""

# At the first prompt. A prompt that a cell sets is never shown.
_SETUP = "PS1= PS2= PROMPT_COMMAND='PS1= PS2='; set +H +o history; __kp_as() {{ return $1; }}\n"
# `$?` of the cell before is that of this one's beginning.
_LOOP = (
    '{{ __kp_status=$?; printf "start %d\\n" $__kp_status >&{told}; '
    'while IFS= read -r -u {asked} __kp_line; do IFS= read -r -d "" __kp_code <{file}; __kp_as $__kp_status; '
    'eval "$__kp_code" </dev/null {asked}<&- {told}>&-; '
    '__kp_status=$?; printf "done %d\\n" $__kp_status >&{told}; done; }}\n'
)

OnText = Callable[[str, str], None]


class Bash:
    """`on_text(stream, text)` is called by `read` and `settle`, in the order in which they find it."""

    def __init__(self, on_text: OnText) -> None:
        self._on_text = on_text
        self._folder = tempfile.TemporaryDirectory(prefix="kp-shell-")
        self._file = Path(self._folder.name, "code")
        asked, self._ask = _high_pipe()
        self._told, told = _high_pipe()
        self._process = subprocess.Popen(
            ["/bin/bash", "--noprofile", "--norc", "--noediting", "-i"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(asked, told),
            bufsize=0,
        )
        os.close(asked)
        os.close(told)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._prompt = self._process.stdin
        self._pipes = {"stdout": self._process.stdout.fileno(), "stderr": self._process.stderr.fileno()}
        self.died = os.pidfd_open(self._process.pid)
        """Readable once it has ended."""
        for pipe in (*self._pipes.values(), self._told):
            os.set_blocking(pipe, False)
        for pipe in self._pipes.values():
            with suppress(OSError):  # more than an ordinary user may have
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self._loop = _LOOP.format(asked=asked, told=told, file=self._file).encode()
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in self._pipes}
        self._line = b""
        self._start()

    def _start(self) -> None:
        """What it says of having no terminal is nobody's output."""
        with suppress(BrokenPipeError):
            self._prompt.write(_SETUP.format().encode() + self._loop)
        while self.status() is None and not select.select([self.died], [], [], 0)[0]:
            select.select([self._told, self.died], [], [])
        for pipe in self._pipes.values():
            _read(pipe)

    def sources(self, *, text: bool) -> list[int]:
        """Descriptors to poll for reading; those of text only when it is wanted."""
        return [self._told, self.died, *(self._pipes.values() if text else ())]

    def begin(self, code: str) -> None:
        """Runs a cell; `status` tells of its end, or `died`."""
        self._file.write_text(code, errors="replace")
        with suppress(BrokenPipeError):
            os.write(self._ask, b"\n")

    def read(self) -> None:
        """Some of what was written."""
        for name, pipe in self._pipes.items():
            self._tell(name, _read(pipe))

    def settle(self) -> None:
        """All that has been written by now: a cell's own, once it has ended."""
        for name, pipe in self._pipes.items():
            left = min(_waiting(pipe), MAX_SETTLED)
            while left > 0 and (data := _read(pipe, left)):
                left -= len(data)
                self._tell(name, data)
            self._tell(name, b"", final=True)

    def status(self) -> int | None:
        """What the cell that ran has ended with, if it has."""
        data = _read(self._told)
        *lines, self._line = (self._line + data).split(b"\n")
        found = None
        for line in lines:
            kind, _, number = line.partition(b" ")
            if kind == b"start":  # its prompt has taken the loop that was there: the next for the next time
                with suppress(BrokenPipeError):
                    self._prompt.write(self._loop)
            if number.isdigit():
                found = int(number)
        return found

    def interrupt(self) -> None:
        """As Ctrl-C: to it and to what it waits for."""
        os.killpg(os.getpgrp(), signal.SIGINT)

    def close(self) -> int:
        """Ends it if need be. Returns what it ended with, as shells have it."""
        self._process.kill()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        for descriptor in (self._ask, self._told, self.died):
            os.close(descriptor)
        self._folder.cleanup()
        return code if code >= 0 else 128 - code

    def _tell(self, name: str, data: bytes, *, final: bool = False) -> None:
        if text := self._decoders[name].decode(data, final):
            self._on_text(name, text)


def _high_pipe() -> tuple[int, int]:
    """Its ends for reading and for writing."""
    low = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, HIGH) for end in low]
    for end in low:
        os.close(end)
    return high[0], high[1]


def _waiting(pipe: int) -> int:
    size = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, size)
    return size[0]


def _read(pipe: int, most: int = READ_SIZE) -> bytes:
    with suppress(BlockingIOError):
        return os.read(pipe, min(most, READ_SIZE))
    return b""
