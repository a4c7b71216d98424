"""What was printed before `os._exit` is sent before the process is gone, which is at once: sockets are not closed."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Any, NoReturn

import zmq
from zmq.utils.monitor import recv_monitor_message

from .iopub import EventfdIOPubThread
from .streams import Streams

LINGER = 1000
"""Milliseconds for a reader to take what it has not read yet."""


def install(streams: Streams, thread: EventfdIOPubThread) -> None:
    leave, kernel = os._exit, os.getpid()

    def send_and_leave(status: int) -> NoReturn:
        if os.getpid() == kernel:
            with suppress(BaseException):  # the session may be in any state, and this must end it
                _send_all(streams, thread)
        leave(status)

    os._exit = send_and_leave


def _send_all(streams: Streams, thread: EventfdIOPubThread) -> None:
    streams.finish()
    gone = threading.Event()

    def close() -> None:
        # That a socket has gone is only told by its monitor, which stops when all was written or the time is over.
        monitor: Any = thread.socket.get_monitor_socket(zmq.EVENT_MONITOR_STOPPED)
        thread.socket.close(LINGER)
        while monitor.poll(LINGER) and recv_monitor_message(monitor)["event"] != zmq.EVENT_MONITOR_STOPPED:
            pass
        gone.set()

    thread.schedule(close)
    gone.wait(2 * LINGER / 1000)
