"""The thread that owns the IOPub socket. It sends what other threads hand over, in the order they did.

Stock ipykernel wakes this thread through a ZMQ pipe and an asyncio loop, which costs more than the sending. Here
an eventfd wakes a plain loop. Sending stays in this thread on purpose: a message is several frames, and in the main
thread any signal handler of the user (SIGINT, `signal.alarm`) may raise between two of them, which would
join half of one message to the next.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Protocol

import zmq
from ipykernel.iostream import IOPubThread, logger
from jupyter_client.session import Session

MOST_WAITING = 32
"""Messages in line for the socket beyond which writers of text wait. Each is of bounded length (`streams`)."""
FORK_WAITS = 3000
"""Milliseconds at most for which a forked child waits until what it displays has been taken."""


class Flushed(Protocol):
    def flush_when_due(self) -> None: ...


class EventfdIOPubThread(IOPubThread):
    def __init__(self, socket: zmq.Socket[bytes], session: Session, fork_address: str) -> None:
        """`fork_address`: where forked children send what they display. An ipc path: the kernel opens no port."""
        self._fork_address = fork_address
        # The mutable state besides IOPubThread's queue of events: is a
        # wake-up under way, may messages wait, and when to flush what.
        self._woken = False
        self._corked = False
        self._emptied = threading.Event()
        self._flush_at: float | None = None
        self._streams: list[Flushed] = []
        super().__init__(socket, pipe=True, session=session)
        self.io_loop.close(all_fds=True)  # made by the base class, not used here

    def add_stream(self, stream: Flushed) -> None:
        self._streams.append(stream)

    def flush_within(self, seconds: float) -> None:
        """Have all streams flushed by this thread, at the latest in so many seconds."""
        at, due = monotonic() + seconds, self._flush_at
        if due is None or at < due:
            self._flush_at = at
            self._wake()

    @contextmanager
    def corked(self, corked: bool = True) -> Iterator[None]:
        """Messages of the code inside may wait for its end. Waking this thread costs the other one the interpreter."""
        before, self._corked = self._corked, corked
        if not corked and self._events:
            self._wake()
        try:
            yield
        finally:
            self._corked = before
            if not before and self._events:
                self._wake()

    def schedule(self, f: Callable[[], Any]) -> None:
        if not self.thread.is_alive():
            f()
            return
        self._events.append(f)
        if not self._corked:
            self._wake()

    def wait_for_room(self) -> None:
        """Text is written faster than it can be sent: without this it would pile up until memory is full. The caller
        must hold no lock that this thread takes."""
        while len(self._events) > MOST_WAITING and self.thread.is_alive() and not self.in_this_thread():
            self._wake()
            self._emptied.clear()
            if len(self._events) > MOST_WAITING:
                self._emptied.wait(1)

    def stop(self) -> None:
        self._stopped = True
        if self.thread.is_alive():
            self._wake()
            self.thread.join(timeout=30)

    def _wake(self) -> None:
        # The loop clears the flag before it empties the queue: whoever still sees it set is served by that round.
        if not self._woken:
            self._woken = True
            os.eventfd_write(self._eventfd, 1)

    def _setup_event_pipe(self) -> None:
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def _setup_xpub_listener(self) -> None:
        """Subscriptions are read in the loop."""

    def _setup_pipe_in(self) -> None:
        self._pipe_uuid = os.urandom(16)
        self._from_forks = self.socket.context.socket(zmq.REP)
        self._from_forks.linger = 0
        self._from_forks.bind(self._fork_address)

    def _setup_pipe_out(self) -> tuple[zmq.Context[Any], zmq.Socket[bytes]]:
        context: zmq.Context[Any] = zmq.Context()
        pipe = context.socket(zmq.REQ)
        pipe.linger = 0
        pipe.connect(self._fork_address)
        return context, pipe

    def _really_send(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """A forked child goes on once its message is in line: its parent, which may wait for its end, ends the cell."""
        if self._is_master_process():
            super()._really_send(msg, *args, **kwargs)
            return
        context, pipe = self._setup_pipe_out()
        try:
            pipe.send_multipart([self._pipe_uuid, *msg], *args, **kwargs)
            pipe.poll(FORK_WAITS)
        finally:
            pipe.close()
            context.term()

    def _thread_main(self) -> None:
        poller = zmq.Poller()
        for source in (self._eventfd, self.socket, self._from_forks):
            poller.register(source, zmq.POLLIN)
        while not self._stopped:
            ready = dict(poller.poll(self._milliseconds_to_flush()))
            _without_end(self._receive, ready)
            _without_end(self._flush_due)
            self._woken = False
            self._send_events()
        self._from_forks.close()

    def _receive(self, ready: dict[Any, int]) -> None:
        if self._eventfd in ready:
            os.eventfd_read(self._eventfd)
        if self.socket in ready:
            self._handle_subscription(self.socket.recv_multipart(zmq.NOBLOCK))
        if self._from_forks in ready:
            message = self._from_forks.recv_multipart(zmq.NOBLOCK)
            try:
                self._handle_pipe_msg(message)
            finally:
                self._from_forks.send(b"")

    def _flush_due(self) -> None:
        if self._flush_at is not None and self._flush_at <= monotonic():
            self._flush_at = None
            for stream in self._streams:
                stream.flush_when_due()

    def _send_events(self) -> None:
        while self._events:
            _without_end(self._events.popleft())
        self._emptied.set()

    def _milliseconds_to_flush(self) -> int | None:
        if self._flush_at is None:
            return None
        return max(0, int((self._flush_at - monotonic()) * 1000) + 1)

    def in_this_thread(self) -> bool:
        return threading.current_thread() is self.thread


def _without_end(action: Callable[..., Any], *args: Any) -> None:
    """One message that cannot be sent must not end the thread that sends all others."""
    try:
        action(*args)
    except Exception:
        logger.exception("IOPub: a message was lost")
