"""stdout and stderr of the kernel: what Python writes, what C and child processes write, in one order.

The file descriptors 1 and 2 lead into pipes. A thread reads them while the main thread is busy, and the main thread
empties them itself before each write and before each reply, so output of `os.system` is neither late nor misplaced.
Nothing is echoed to the process's real stdout, which nobody may be reading.
"""

from __future__ import annotations

import codecs
import ctypes
import fcntl
import os
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ipykernel.iostream import OutStream

from .iopub import EventfdIOPubThread
from .subshells import in_main_thread

READ_SIZE = 1 << 16
PIPE_SIZE = 1 << 20
LONGEST_TEXT = 1 << 18
"""Characters after which a stream is sent without waiting for the interval."""

libc = ctypes.CDLL(None)
IOLBF = 1


class CapturedStream(OutStream):
    flush_interval = 0.05

    lent = False
    """Does kernel code have `sys.stdout`? It flushes often, and `Streams.finish` is all that is needed."""

    other: CapturedStream | None = None
    """stderr for stdout and the reverse: what one holds back is sent before the other writes."""

    def __init__(self, session: Any, pub_thread: EventfdIOPubThread, name: str, **options: Any) -> None:
        self._pipe_lock = threading.RLock()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = 0
        self._ends_line = self._was_due = False
        self._forks_line = ""
        super().__init__(session, pub_thread, name, **options)
        pub_thread.add_stream(self)
        os.register_at_fork(after_in_child=self._after_fork)

    def pair_with(self, other: CapturedStream) -> None:
        self.other, other.other = other, self
        # One lock for both, held while text becomes messages: their order on the wire is that of the writes.
        other._buffer_lock = self._buffer_lock

    def fileno(self) -> int:
        """The captured descriptor: `subprocess.run(…, stdout=sys.stdout)` belongs to the output too."""
        return int(self._original_stdstream_fd)

    def close(self) -> None:
        """The next cell needs it."""
        self.flush()

    def write(self, string: str) -> int:
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string)}")
        if os.getpid() != self._master_pid:
            return self._write_from_fork(string)
        self.read_pipe()
        for start in range(0, len(string), LONGEST_TEXT):
            self._hold(string[start : start + LONGEST_TEXT])
            self._wait_for_room()
        return len(string)

    def flush(self) -> None:
        """Send what is held back, and come back when the socket has it. Costs nothing when there is nothing."""
        if self.lent or not self.flush_nowait() or self.pub_thread is None or self.pub_thread.in_this_thread():
            return
        sent = threading.Event()
        self.pub_thread.schedule(sent.set)
        sent.wait(self.flush_timeout)

    def flush_nowait(self) -> bool:
        """Put what is held back in line for sending. Whether there was anything."""
        if os.getpid() != self._master_pid:
            self._write_descriptor(self._forks_line)
            self._forks_line = ""
            return False
        self.read_pipe()
        with self._buffer_lock:
            if not self._held:
                return False
            self._flush()
            return True

    def flush_when_due(self) -> None:
        """By the clock. A line without an end gets one more interval: `print` writes the end of its line apart, and may
        be held up before it."""
        with self._buffer_lock:
            if self._held and not self._ends_line and not self._was_due and self.pub_thread is not None:
                self._was_due = True
                self.pub_thread.flush_within(self.flush_interval)
            else:
                self._flush()

    def read_pipe(self) -> bool:
        """Take over what the pipe holds now, no matter who goes on writing. False at its end."""
        if self._fid is None:
            return True
        with self._pipe_lock:
            for _ in range(PIPE_SIZE // READ_SIZE + 1):
                try:
                    data = os.read(self._fid, READ_SIZE)
                except BlockingIOError:
                    return True
                if text := self._decoder.decode(data, final=not data):
                    self._hold(text)
                if len(data) < READ_SIZE:
                    return bool(data)
        return True

    def _hold(self, text: str) -> None:
        with self._buffer_lock:
            if self.other is not None and self.other._held:
                self.other._flush()
            super().write(text)
            self._held += len(text)
            self._ends_line = text.endswith("\n")
            if self._held > LONGEST_TEXT:
                self._flush()

    def _wait_for_room(self) -> None:
        if self.pub_thread is not None:
            self.pub_thread.wait_for_room()

    def _flush(self) -> None:
        with self._buffer_lock:
            self._held = 0
            self._was_due = False
            super()._flush()

    def _schedule_flush(self) -> None:
        if not self._flush_pending and self.pub_thread is not None:
            self._flush_pending = True
            self.pub_thread.flush_within(self.flush_interval)

    def _setup_stream_redirects(self, name: str) -> None:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        with suppress(OSError):  # a larger pipe only makes it rarer that a writer must wait for us
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self._original_stdstream_fd = getattr(sys, f"__{name}__").fileno()
        self._original_stdstream_copy = os.dup(self._original_stdstream_fd)
        os.dup2(writing, self._original_stdstream_fd)
        os.close(writing)
        self._fid = reading
        self.watch_fd_thread = threading.Thread(target=self._watch_pipe_fd, name=f"read {name}", daemon=True)
        self.watch_fd_thread.start()

    def _watch_pipe_fd(self) -> None:
        assert self._fid is not None
        poller = select.poll()
        poller.register(self._fid, select.POLLIN)
        while self._should_watch:
            poller.poll()
            if not self.read_pipe():
                return
            self._wait_for_room()

    def _write_from_fork(self, string: str) -> int:
        """A forked child has no thread to send for it; its parent reads the pipe. Whole lines, for there are others."""
        lines, newline, rest = string.rpartition("\n")
        if newline:
            self._write_descriptor(self._forks_line + lines + newline)
            self._forks_line = ""
        self._forks_line += rest
        return len(string)

    def _write_descriptor(self, text: str) -> None:
        data = text.encode(errors="replace")
        while data:
            data = data[os.write(self._original_stdstream_fd, data) :]

    def _after_fork(self) -> None:
        self._forks_line = ""
        # Another thread of the parent may have held them.
        self._pipe_lock = threading.RLock()
        self._buffer_lock = threading.RLock()


class Streams:
    """Both streams, and who has `sys.stdout` and `sys.stderr` at the moment: the user's code or the kernel."""

    def __init__(self, stdout: CapturedStream, stderr: CapturedStream) -> None:
        self.stdout, self.stderr = stdout, stderr
        stdout.pair_with(stderr)
        self._users: tuple[Any, Any] = (stdout, stderr)
        self._c_stdout = ctypes.c_void_p.in_dll(libc, "stdout")
        # By default C holds back what it prints into a pipe until 4 kB have come together.
        libc.setvbuf(self._c_stdout, None, IOLBF, 0)
        for original in (sys.__stdout__, sys.__stderr__):
            if original is not None:
                original.reconfigure(write_through=True)

    def finish(self) -> None:
        """Put everything that was written in line for sending, whichever way it was written."""
        libc.fflush(self._c_stdout)
        self.stdout.flush_nowait()
        self.stderr.flush_nowait()

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """Kernel code runs inside: it flushes `sys.stdout`, which the user may have replaced by anything."""
        if not in_main_thread():
            yield
            return
        before = self.stdout.lent
        self._users = (sys.stdout, sys.stderr)
        self._take()
        try:
            yield
        finally:
            self.stdout.lent = self.stderr.lent = before
            sys.stdout, sys.stderr = self._users

    @contextmanager
    def users(self) -> Iterator[None]:
        """The user's code runs inside, with the streams that it chose. Those that are broken end with it."""
        self.stdout.lent = self.stderr.lent = False
        sys.stdout, sys.stderr = self._users
        try:
            yield
        finally:
            self._users = (_usable(sys.stdout, self.stdout), _usable(sys.stderr, self.stderr))
            self._take()

    def _take(self) -> None:
        self.stdout.lent = self.stderr.lent = True
        sys.stdout, sys.stderr = self.stdout, self.stderr


def _usable(stream: Any, ours: CapturedStream) -> Any:
    if stream is ours:
        return ours
    try:
        if stream is None or stream.closed:  # IPython prints too
            return ours
        stream.flush()
    except BaseException:  # code of the user, which may raise whatever it likes
        return ours
    return stream
