"""Puts the kernel together: sockets that drop nothing, no history, no configuration but this."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import zmq
from traitlets import Type
from traitlets.config import Config

from .debugging import without_debugpy

with without_debugpy():
    import ipykernel.debugger  # noqa: F401
    from ipykernel.kernelapp import IPKernelApp

from . import exits, libraries, nested, packages, packing, threads
from .iopub import EventfdIOPubThread
from .kernel import NoShellChannelThread, SessionKernel
from .streams import CapturedStream, Streams

IOPUB_MARK = 100

CONFIG = {
    # 1: no watch over the parent process, no hints for humans on stdout.
    "IPKernelApp": {
        "parent_handle": 1,
        "log_level": "CRITICAL",
        "outstream_class": f"{CapturedStream.__module__}.{CapturedStream.__name__}",
    },
    "Session": {"packer": f"{packing.__name__}.pack", "unpacker": f"{packing.__name__}.unpack"},
    "HistoryManager": {"enabled": False},
    "InteractiveShell": {"colors": "nocolor", "xmode": "Context", "autoawait": True, "separate_in": ""},
    "IPCompleter": {"use_jedi": False},
    "InlineBackend": {"figure_formats": {"png"}},
}


class KernelApp(IPKernelApp):
    kernel_class = Type(SessionKernel)

    def load_config_file(self, *args: Any, **kwargs: Any) -> None:
        """The session's own files configure nothing that a later cell could not."""
        self.update_config(Config(CONFIG))

    def _bind_socket(self, s: zmq.Socket[bytes], port: int) -> Any:
        # Before the bind, or they do not count.
        s.sndhwm = s.rcvhwm = 0
        if s.socket_type == zmq.XPUB:
            # Drop nothing: when the reader is this far behind, whoever writes waits. Its memory stays bounded, too.
            s.sndhwm = IOPUB_MARK
            s.setsockopt(zmq.XPUB_NODROP, 1)
        return super()._bind_socket(s, port)

    def init_control(self, context: zmq.Context[Any]) -> None:
        super().init_control(context)
        self.shell_channel_thread.io_loop.close(all_fds=True)
        self.shell_channel_thread = NoShellChannelThread()

    def init_iopub(self, context: zmq.Context[Any]) -> None:
        self.iopub_socket = context.socket(zmq.XPUB)
        self.iopub_socket.linger = 1000
        self.iopub_port = self._bind_socket(self.iopub_socket, self.iopub_port)
        self.configure_tornado_logger()
        self.iopub_thread = EventfdIOPubThread(self.iopub_socket, self.session, f"ipc://{self.ip}-fork")
        self.iopub_thread.start()
        self.iopub_socket = self.iopub_thread.background_socket

    def init_io(self) -> None:
        # Whoever reads it, here or in a program that a cell starts, gets an end of file instead of waiting for ever.
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        super().init_io()
        stdout: Any = sys.stdout
        stderr: Any = sys.stderr
        self.streams = Streams(stdout, stderr)

        def after_fork() -> None:
            # A session sends nothing from a process that it does not know.
            self.session.pid = os.getpid()

        os.register_at_fork(after_in_child=after_fork)

    def init_kernel(self) -> None:
        super().init_kernel()
        self.log.setLevel(logging.CRITICAL)  # else every message is formatted to be thrown away
        threads.follow(self.kernel.shell)
        exits.install(self.streams, self.iopub_thread)
        nested.install()
        packages.install()
        libraries.install()
