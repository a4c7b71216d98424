"""ZMQ sockets of one kernel on the asyncio loop, read straight from their descriptor: no task, no future a message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import zmq

BATCH = 100
"""Messages taken before others on the loop get a turn."""

# When we are this many messages behind reading stops, and so, in turn, does whoever writes in the kernel: its socket
# drops nothing.
RECEIVE_MARK = 100

OnFrames = Callable[[list[bytes]], None]


class Channel:
    """One connected socket. `on_frames` is called for each message, in order, on the loop.

    A ZMQ descriptor is edge-triggered: it must be drained until EAGAIN, and looked at again after each send.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], kind: int, endpoint: str, on_frames: OnFrames) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_frames = on_frames
        self._socket = context.socket(kind)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, RECEIVE_MARK)
        if kind == zmq.SUB:
            self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(endpoint)
        self._fd = int(self._socket.getsockopt(zmq.FD))
        self._closed = False
        self._loop.add_reader(self._fd, self._drain)
        self._loop.call_soon(self._drain)

    def send(self, frames: Sequence[bytes]) -> None:
        """Raises `zmq.Again` when the kernel has stopped reading altogether."""
        self._socket.send_multipart(frames, zmq.NOBLOCK)
        self._loop.call_soon(self._drain)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            self._socket.close()

    def _drain(self) -> None:
        for _ in range(BATCH):
            if self._closed:
                return
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._on_frames(frames)
        self._loop.call_soon(self._drain)


class Channels:
    """The shell, control and IOPub channels of one kernel."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        base: str,
        *,
        on_shell: OnFrames,
        on_control: OnFrames,
        on_iopub: OnFrames,
    ) -> None:
        """`base` is the ipc path that the kernel appends `-1` … `-5` to."""
        self.iopub = Channel(context, zmq.SUB, f"ipc://{base}-2", on_iopub)
        self.shell = Channel(context, zmq.DEALER, f"ipc://{base}-1", on_shell)
        self.control = Channel(context, zmq.DEALER, f"ipc://{base}-4", on_control)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for channel in (self.iopub, self.shell, self.control):
            channel.close()
