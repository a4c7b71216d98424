"""Entry point of the agent: `python -I /opt/kernelpool --listen fd:3 --config fd:4`.

It reads no environment and nothing of the workspace. Listener: an inherited descriptor, a Unix socket or a TCP port.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets, bind_unix_socket

from kernelpool.agent.app import make_app
from kernelpool.agent.base import Sandbox, Transfers
from kernelpool.agent.clients import Clients
from kernelpool.agent.executions import Executions
from kernelpool.agent.forwarder import Forwarder
from kernelpool.agent.jupyter import Jupyter
from kernelpool.agent.lease import Lease
from kernelpool.agent.relay import Relay
from kernelpool.agent.usage import Usage
from kernelpool.agent.workspace import Workspace
from kernelpool.models import AgentConfig

PR_SET_DUMPABLE = 4
BACKLOG = 4096
"""Connections that may wait to be accepted. Past it they are refused, which looks like a dead agent."""
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every log record has; the rest are the facts of the event."""


class Facts(logging.Formatter):
    """`LEVEL logger event {"fact": …}`, on one line whatever the kernel said."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {name: value for name, value in vars(record).items() if name not in _OWN}
        if record.exc_info:
            facts["exception"] = self.formatException(record.exc_info)
        return f"{record.levelname} {record.name} {record.getMessage()} {json.dumps(facts, default=str)}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="kernelpool agent", description="The program inside every sandbox.")
    parser.add_argument("--listen", required=True, help="fd:N, unix:PATH or tcp:HOST:PORT")
    parser.add_argument("--config", required=True, help="fd:N or a path: AgentConfig as JSON")
    options = parser.parse_args(argv)
    handler = logging.StreamHandler()
    handler.setFormatter(Facts())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    config = read_config(options.config)
    heed_signals()
    protect_self(config)
    sockets = listen(options.listen)
    with contextlib.suppress(OSError):
        os.chdir("/")
    asyncio.run(serve(config, sockets))
    return 0


def read_config(source: str) -> AgentConfig:
    kind, _, number = source.partition(":")
    with open(int(number) if kind == "fd" else source, encoding="utf-8") as file:
        fields: dict[str, Any] = json.load(file)
    if source == "fd:0":
        os.open(os.devnull, os.O_RDONLY)  # in its place, which the next file or socket would have
    fields["kernel_argv"] = tuple(fields["kernel_argv"])
    return AgentConfig(**fields)


def heed_signals() -> None:
    """A gateway that a script started in the background ignores some, and every program of the session would."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def protect_self(config: AgentConfig) -> None:
    """The kernel runs beside us under our uid: keep it from reading our memory, and bound what we and it may start."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if config.processes:
        resource.setrlimit(resource.RLIMIT_NPROC, (config.processes, config.processes))


def listen(where: str) -> list[socket.socket]:
    kind, _, rest = where.partition(":")
    if kind == "fd":
        inherited = socket.socket(fileno=int(rest))
        inherited.setblocking(False)
        os.set_inheritable(inherited.fileno(), False)
        return [inherited]
    if kind == "unix":
        # Whom the directory lets through may connect: the gateway need not have our uid.
        return [bind_unix_socket(rest, mode=0o666, backlog=BACKLOG)]
    if kind == "tcp":
        host, _, port = rest.rpartition(":")
        return bind_sockets(int(port), host, backlog=BACKLOG)
    sys.exit(f"--listen: fd:N, unix:PATH or tcp:HOST:PORT, not {where}")


async def serve(config: AgentConfig, sockets: list[socket.socket]) -> None:
    """Until the lease has run out or SIGTERM comes."""
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    workspace = Workspace(config.workspace)
    async with AsyncExitStack() as stack:
        if config.egress_socket:
            await stack.enter_async_context(Forwarder(config.egress_socket))
        clients = Clients(config.relay_bytes, config.relay_messages)
        executions = await stack.enter_async_context(Executions(config, workspace, clients))
        transfers = Transfers(executions.touch)
        lease = Lease(config.lease, lambda: bool(executions.running or executions.queued or transfers.count))
        jupyter = Jupyter(clients, Relay(clients, executions))
        app = make_app(Sandbox(config.secret, executions, workspace, lease, transfers, Usage()), jupyter)
        server = HTTPServer(app, max_body_size=64 << 20, chunk_size=256 << 10)
        server.add_sockets(sockets)
        ends = [asyncio.create_task(lease.wait_expired()), asyncio.create_task(terminated.wait())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in ends:
            task.cancel()
        server.stop()


if __name__ == "__main__":
    sys.exit(main())
