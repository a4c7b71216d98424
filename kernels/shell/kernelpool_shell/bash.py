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
import re
import select
import signal
import subprocess
import termios
from collections.abc import Callable
from contextlib import suppress

from kernelpool.children import end_of

READ_SIZE = 64 << 10
HIGH = 100
"""Descriptors from here on are ours: scripts use the low ones."""
PIPE_SIZE = 1 << 20
MAX_SETTLED = 64 << 20
"""Bytes that are read at the end of a cell at most, should something in the background go on writing."""

SPARE = 4
"""Loops that wait at the prompt: an interrupt may come while one is being read, and then the next is at hand."""
START_SECONDS = 2.0

# At the first prompt. A prompt that a cell sets is never shown.
# `__kp_start` tells "start" and the last cell's number. `__kp_take` tells "done", the number, and how that cell ended,
# and takes the next: a number and a kind. A number that it has had is passed over.
_SETUP = r"""PS1= PS2= PROMPT_COMMAND='{ PS1= PS2=; } 2>/dev/null'; set +H +o history; __kp_number=0
__kp_as() { return "$1"; }
__kp_start() {
    __kp_status=$? __kp_kind=answer
    builtin printf 'start %d 0\n' "$__kp_number" >&TOLD
}
__kp_take() {
    __kp_ended=$?
    [[ $__kp_kind == answer ]] || __kp_status=$__kp_ended
    builtin printf 'done %d %d\n' "$__kp_number" "$__kp_status" >&TOLD
    IFS=' ' builtin read -r -u ASKED __kp_next __kp_kind || return
    __kp_code= __kp_trace=
    if [[ $__kp_next -gt $__kp_number ]]; then
        __kp_number=$__kp_next
        IFS= builtin read -r -d '' -u FILE __kp_code
    else
        __kp_kind=answer
    fi
    if [[ $__kp_kind == answer ]]; then
        builtin eval "$__kp_code" </dev/null >&FILE ASKED<&- TOLD>&- FILE>&-
        __kp_code=
    fi
    if [[ $- == *x* ]]; then
        builtin set +x
        __kp_trace='{ builtin set -x; __kp_as "$__kp_status" && :; } 2>/dev/null'$'\n'
    fi
    return 0
}
__kp_loop='{ __kp_start; } 2>/dev/null; while { __kp_take; } 2>/dev/null; do __kp_as "$__kp_status" && :
builtin eval "$__kp_trace$__kp_code" </dev/null ASKED<&- TOLD>&- FILE>&-; done'
"""
# What is ours stands in the condition, where neither `set -e` nor an ERR trap sees it, and `continue` in a cell comes
# back to it; its stderr is where `set -x` would show it. `$?` of the cell before is that of this one's beginning:
# `&& :` keeps it, and `set -e` from seeing it.
# An interrupt can cost the first character of what is read at a prompt, and must leave no open quote behind.
_PROMPT = b'  builtin eval "$__kp_loop" #"\n'

_SAID = re.compile(rb"(start|done) (\d{1,18}) (\d{1,18})")

OnText = Callable[[str, str], None]


class Bash:
    """`on_text(stream, text)` is called by `read` and `settle`, in the order in which they find it."""

    def __init__(self, on_text: OnText) -> None:
        self._on_text = on_text
        asked, self._ask = _high(*os.pipe())
        self._told, told = _high(*os.pipe())
        (self._file,) = _high(os.memfd_create("code"))  # not in a folder that a cell may clear
        outputs = {"stdout": os.pipe(), "stderr": os.pipe()}
        self._process = subprocess.Popen(
            ["/bin/bash", "--noprofile", "--norc", "--noediting", "-i"],
            stdin=subprocess.PIPE,
            stdout=outputs["stdout"][1],
            stderr=outputs["stderr"][1],
            pass_fds=(asked, told, self._file),
            bufsize=0,
        )
        os.close(asked)
        os.close(told)
        assert self._process.stdin is not None
        self._prompt = self._process.stdin
        self._pipes = {name: ends[0] for name, ends in outputs.items()}
        # Kept open: after `exec >log` there would be no writer, and a pipe without one is always ready.
        self._writers = [ends[1] for ends in outputs.values()]
        self.died = end_of(self._process.pid)
        """Readable once it has ended."""
        for pipe in (*self._pipes.values(), self._told, self._ask, self._prompt.fileno()):
            os.set_blocking(pipe, False)
        for pipe in self._pipes.values():
            with suppress(OSError):  # more than an ordinary user may have
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        setup = _SETUP.replace("ASKED", str(asked)).replace("TOLD", str(told)).replace("FILE", str(self._file))
        # On one line of the prompt, from which bash counts those of a cell. Where bash was only slow to start, the line
        # is there twice, and an interrupt makes it read the second: that changes nothing then, and keeps `$?`.
        escaped = setup.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
        once = f"[[ ${{__kp_loop-}} ]] || builtin eval $'{escaped}'"
        self._setup = f'  {{ __kp_was=$?; {once}; __kp_as "$__kp_was" && :; }} 2>/dev/null #\'\n'.encode()
        # The mutable state: the last cell's number, what it was asked, and the length of its code.
        self._number = 0
        self._asked = b""
        self._size = 0
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in self._pipes}
        self._line = b""
        self._start()

    def _start(self) -> None:
        """What it says of having no terminal is nobody's output."""
        is_told: list[int] = []
        while self.status() is None and self.died not in is_told:
            if not is_told:  # at first, and when an interrupt took it
                with suppress(BrokenPipeError):
                    self._prompt.write(self._setup + _PROMPT * SPARE)
            is_told = select.select([self._told, self.died], [], [], START_SECONDS)[0]
        for pipe in self._pipes.values():
            _read(pipe)

    def sources(self, *, text: bool) -> list[int]:
        """Descriptors to poll for reading; those of text only when it is wanted."""
        return [self._told, self.died, *(self._pipes.values() if text else ())]

    def begin(self, code: str, *, kind: str = "cell") -> None:
        """Runs a cell; `status` tells of its end, or `died`. What one of the kind answer writes is in `answer`."""
        data = code.encode(errors="replace")
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, data, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        self._number += 1
        self._size = len(data)
        self._asked = f"{self._number} {kind}\n".encode()
        self._write_asked()

    def _write_asked(self) -> None:
        with suppress(BrokenPipeError, BlockingIOError):  # of a full pipe no more is needed
            os.write(self._ask, self._asked)

    def answer(self) -> str:
        """Written behind the code that asked for it."""
        size = os.fstat(self._file).st_size - self._size
        return os.pread(self._file, max(0, size), self._size).decode(errors="replace")

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
            if not (said := _SAID.fullmatch(line)):  # of the user's code, which can find it
                continue
            kind, number, status = said.groups()
            if kind == b"start":
                self.refill()
                if int(number) < self._number:  # what began it again may have taken what was asked
                    self._write_asked()
            elif int(number) == self._number:
                found = int(status)
        return found

    def refill(self) -> None:
        """One more loop for its prompt. Spare ones do no harm, and of a full pipe no more is needed."""
        with suppress(BrokenPipeError):
            self._prompt.write(_PROMPT)

    def interrupt(self) -> None:
        """As Ctrl-C: to it and to what it waits for."""
        os.killpg(os.getpgrp(), signal.SIGINT)

    def close(self) -> int:
        """Ends it if need be. Returns what it ended with, as shells have it."""
        self._process.kill()
        code = self._process.wait()
        self._prompt.close()
        for descriptor in (self._ask, self._told, self._file, self.died, *self._pipes.values(), *self._writers):
            os.close(descriptor)
        return code if code >= 0 else 128 - code

    def _tell(self, name: str, data: bytes, *, final: bool = False) -> None:
        if text := self._decoders[name].decode(data, final):
            self._on_text(name, text)


def _high(*low: int) -> list[int]:
    """The same ones with numbers of ours."""
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, HIGH) for descriptor in low]
    for descriptor in low:
        os.close(descriptor)
    return high


def _waiting(pipe: int) -> int:
    size = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, size)
    return size[0]


def _read(pipe: int, most: int = READ_SIZE) -> bytes:
    with suppress(BlockingIOError):
        return os.read(pipe, min(most, READ_SIZE))
    return b""
