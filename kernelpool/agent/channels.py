"""ZMQ sockets of one kernel on the asyncio loop, read straight from their descriptor: no task, no future a message."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import zmq
from zmq.utils.monitor import parse_monitor_message

BATCH = 100
"""Messages taken before others on the loop get a turn."""

# When we are this many messages behind reading stops, and so, in turn, does whoever writes in the kernel: its socket
# drops nothing. What is beyond it when the kernel ends is lost: ZMQ does not read on from a closed connection.
RECEIVE_MARK = 100

OnFrames = Callable[[list[bytes]], None]


class Channel:
    """One connected socket. `on_frames` is called for each message, in order, on the loop.

    A ZMQ descriptor is edge-triggered: it must be drained until EAGAIN, and looked at again after each send.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        kind: int,
        endpoint: str,
        on_frames: OnFrames,
        identity: bytes = b"",
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_frames = on_frames
        self._socket = context.socket(kind)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, RECEIVE_MARK)
        if kind == zmq.SUB:
            self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        elif identity:
            self._socket.setsockopt(zmq.IDENTITY, identity)
        self._socket.connect(endpoint)
        self.gone: asyncio.Future[None] = self._loop.create_future()
        """Done when the kernel's end is closed and all that came of it, up to RECEIVE_MARK, was handed on."""
        self.connected: asyncio.Future[None] = self._loop.create_future()
        """Done when the kernel knows our end of it: what it sends before that is lost where it goes by name."""
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._closed = self._ended = False
        self._fds = {self._read(self._socket, self._drain), self._read(self._monitor, self._look)}

    def send(self, frames: Sequence[bytes]) -> None:
        """Raises `zmq.Again` when the kernel has stopped reading altogether."""
        self._socket.send_multipart(frames, zmq.NOBLOCK)
        self._loop.call_soon(self._drain)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for fd in self._fds:
                self._loop.remove_reader(fd)
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close()

    def _read(self, socket: zmq.Socket[bytes], action: Callable[[], None]) -> int:
        fd = int(socket.getsockopt(zmq.FD))
        self._loop.add_reader(fd, action)
        self._loop.call_soon(action)
        return fd

    def _drain(self) -> None:
        for _ in range(BATCH):
            if self._closed:
                return
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                if self._ended and not self.gone.done():
                    self.gone.set_result(None)
                return
            self._on_frames(frames)
        self._loop.call_soon(self._drain)

    def _look(self) -> None:
        """ZMQ tells of an end when it has read all that came before it: we may not have, yet."""
        with contextlib.suppress(zmq.Again):
            while not self._closed:
                if parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))["event"] == zmq.EVENT_DISCONNECTED:
                    self._ended = True
                elif not self.connected.done():
                    self.connected.set_result(None)
        if self._ended:
            self._drain()


class Channels:
    """The shell, IOPub, stdin and control channels of one kernel."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        base: str,
        *,
        on_shell: OnFrames,
        on_iopub: OnFrames,
        on_stdin: OnFrames,
        on_control: OnFrames,
    ) -> None:
        """`base` is the address of the kernel, to which `1` … `5` are appended."""
        self.iopub = Channel(context, zmq.SUB, f"{base}2", on_iopub)
        # A kernel asks for input over stdin by the name that the request had on the shell.
        name = secrets.token_hex(8).encode()
        self.shell = Channel(context, zmq.DEALER, f"{base}1", on_shell, name)
        self.stdin = Channel(context, zmq.DEALER, f"{base}3", on_stdin, name)
        self.control = Channel(context, zmq.DEALER, f"{base}4", on_control, name)

    def send(self, channel: str, frames: Sequence[bytes]) -> None:
        """Raises `zmq.Again` when the kernel has stopped reading altogether."""
        {"shell": self.shell, "stdin": self.stdin, "control": self.control}[channel].send(frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for channel in (self.iopub, self.shell, self.stdin, self.control):
            channel.close()
