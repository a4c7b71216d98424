"""What a command writes, on its way into the log: read to its end, put together, and never waited for too long.

Nothing that a command wrote before it ended is lost: a write to a pipe is over when its bytes are in the pipe, so what
the pipe holds when the command's end is seen is all there was. What it left running in the background may hold the pipe
open for ever; that goes on being read, slowly, into the same log.
"""

from __future__ import annotations

import array
import asyncio
import codecs
import contextlib
import fcntl
import os
import termios
import time
from collections.abc import Callable, Mapping

CHUNK = 64 << 10
LINGER = 0.1
"""Seconds for which the end of the streams is waited for once the command has ended: what it started without waiting
for, as `> >(tee log)` does, has its last words then, too."""
ROUNDS = 5
"""Times LINGER at most for a terminal. Its buffers hold more than can be asked for at once: a process that was held up
while it lingered has not seen it all, as long as there was something new."""
LATE_PAUSE = 0.05
"""Seconds between two looks at what processes in the background write: a flood of it is not worth our time."""
GATHER = 0.02
"""Seconds in which what is written becomes one event: a line each would be many."""


class Pipe:
    """One stream, by the end of it that is read. `put` gets its text."""

    def __init__(self, descriptor: int, put: Callable[[str], None]) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._put = put
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._is_late = False
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done when nobody holds its other end any more."""
        self.rounds = ROUNDS if os.isatty(descriptor) else 1
        self._loop.add_reader(descriptor, self._readable)

    def take_waiting(self) -> int:
        """What it holds at this moment, however much is written meanwhile: so many bytes."""
        if self.ended.done():
            return 0
        size = array.array("i", [0])
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._descriptor, termios.FIONREAD, size)
        left = size[0]
        while left > 0 and not self.ended.done():
            left -= self._read(min(left, CHUNK)) or left
        return size[0]

    def slow_down(self) -> None:
        """From now on there is no hurry."""
        self._is_late = True

    def close(self) -> None:
        """Whoever still writes gets SIGPIPE."""
        if self.ended.done():
            return
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self.ended.set_result(None)

    def _readable(self) -> None:
        self._read(CHUNK)
        if self._is_late and not self.ended.done():
            self._loop.remove_reader(self._descriptor)
            self._timer = self._loop.call_later(LATE_PAUSE, self._look_again)

    def _look_again(self) -> None:
        self._loop.add_reader(self._descriptor, self._readable)

    def _read(self, most: int) -> int:
        try:
            data = os.read(self._descriptor, most)
        except BlockingIOError:
            return 0
        except OSError:  # a terminal whose other side is closed
            data = b""
        if text := self._decoder.decode(data, final=not data):
            self._put(text)
        if not data:
            self.close()
        return len(data)


class Transcript:
    """The streams of one command as they become events, in the order in which they were read."""

    def __init__(self, descriptors: Mapping[str, int], write: Callable[[str, str], None]) -> None:
        """`descriptors`: by the name of the stream; owned from now on. `write` gets a stream's name and its text."""
        self._write = write
        self._name = ""
        self._parts: list[str] = []
        self._written_at = -GATHER
        self._timer: asyncio.TimerHandle | None = None
        self._pipes = [Pipe(descriptor, self._putter(name)) for name, descriptor in descriptors.items()]

    @property
    def is_over(self) -> bool:
        return all(pipe.ended.done() for pipe in self._pipes)

    async def settle(self) -> None:
        """The command has ended: all that it wrote is written on when this returns."""
        rounds = max(pipe.rounds for pipe in self._pipes)
        for pipe in self._pipes:
            pipe.take_waiting()
        while rounds and not self.is_over:
            rounds -= 1
            await asyncio.wait([pipe.ended for pipe in self._pipes], timeout=LINGER)
            if not sum(pipe.take_waiting() for pipe in self._pipes):
                break
        self.flush()
        for pipe in self._pipes:
            pipe.slow_down()

    def forget(self) -> None:
        """Nobody will ask for what still comes. It is read all the same, so that its writer lives on."""
        self._write = _ignore

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        self.flush()

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._parts:
            text, self._parts = "".join(self._parts), []
            self._written_at = time.monotonic()
            self._write(self._name, text)

    def _putter(self, name: str) -> Callable[[str], None]:
        def put(text: str) -> None:
            if name != self._name:
                self.flush()
                self._name = name
            self._parts.append(text)
            if len(text) >= CHUNK or time.monotonic() - self._written_at >= GATHER:
                self.flush()
            elif self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(GATHER, self.flush)

        return put


def _ignore(name: str, text: str) -> None:
    """What nobody reads."""
