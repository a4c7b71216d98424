"""Start a kernel: the one function that knows how. A later change may fork it from a loaded parent instead."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kernelpool.agent import forwarder
from kernelpool.children import end_of
from kernelpool.models import AgentConfig

# How the ipc "ports" of a kernel are numbered in its connection file, and so in the names of its sockets.
PORTS = {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5}
LOOPBACK = "127.0.0.1"
TRIES = 100


# What programs expect of any Linux account. Nothing of the agent's own environment is handed on.
BASE_ENVIRONMENT = {
    "PATH": "/opt/venv/bin:/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "USER": "sandbox",
    "LOGNAME": "sandbox",
    "SHELL": "/bin/bash",
    "TERM": "dumb",
}


@dataclass(frozen=True, slots=True)
class Connection:
    """How to talk to a kernel."""

    base: str
    """Its addresses are this and "1" … "5"."""
    key: bytes

    def file(self) -> str:
        """What a kernel is told."""
        transport, _, rest = self.base.partition("://")
        ip, _, first = rest.rpartition(":") if transport == "tcp" else (rest.removesuffix("-"), "", "")
        ports = {name: int(f"{first}{number}") for name, number in PORTS.items()}
        facts = {"transport": transport, "ip": ip, "key": self.key.decode(), "signature_scheme": "hmac-sha256"}
        return json.dumps(facts | ports)


class KernelProcess:
    """A running kernel in a process group of its own. Its death is an event, not something to poll for."""

    def __init__(self, popen: subprocess.Popen[bytes], connection: Connection, folder: Path) -> None:
        self.connection = connection
        self.pid = popen.pid
        self._popen = popen
        self._folder = folder
        self._died: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._end = end_of(popen.pid)
        asyncio.get_running_loop().add_reader(self._end, self._reap)

    @property
    def died(self) -> asyncio.Future[int]:
        """Done with the return code (negative: a signal's number) once the process has ended."""
        return self._died

    @property
    def is_alive(self) -> bool:
        return not self._died.done()

    def interrupt(self) -> None:
        """SIGINT to the whole group: what the code has started in the foreground is meant too."""
        self._signal(signal.SIGINT)

    async def kill(self) -> None:
        """SIGKILL to the group, and waits until the kernel is gone."""
        self.kill_soon()
        await asyncio.wait([self._died])

    def kill_soon(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._end)
        os.close(self._end)
        code = self._popen.wait()
        with contextlib.suppress(ProcessLookupError):  # what it left behind in its group must not outlive it
            os.killpg(self.pid, signal.SIGKILL)
        for port in PORTS.values():
            with contextlib.suppress(OSError):
                os.unlink(f"{self.connection.base.removeprefix('ipc://')}{port}")
        with contextlib.suppress(OSError):
            (self._folder / "connection.json").unlink()
            self._folder.rmdir()
        if not self._died.done():
            self._died.set_result(code)


def start_kernel(config: AgentConfig) -> KernelProcess:
    """Starts the kernel's process and returns at once; it is ready when it answers. Raises `OSError`."""
    folder = Path(config.runtime_dir) / f"k{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    base = _free_ports() if config.kernel_transport == "tcp" else f"ipc://{folder}/s-"
    connection = Connection(base, secrets.token_hex(32).encode())
    file = folder / "connection.json"
    file.write_text(connection.file())
    file.chmod(0o600)
    popen = subprocess.Popen(
        [word.replace("{connection_file}", str(file)) for word in config.kernel_argv],
        cwd=config.workspace,
        env=environment(config),
        stdin=subprocess.DEVNULL,
        # Output reaches us as messages. What the kernel writes besides (crashes, its own log) has no reader.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        close_fds=True,
    )
    make_first_victim(popen.pid)
    try:
        return KernelProcess(popen, connection, folder)
    except OSError:
        popen.kill()
        popen.wait()
        raise


def environment(config: AgentConfig) -> dict[str, str]:
    """What a program of the session finds."""
    proxies = forwarder.environment() if config.egress_socket else {}
    return {**BASE_ENVIRONMENT, "HOME": config.workspace, **proxies, **config.kernel_env}


def _free_ports() -> str:
    """For kernels that know nothing else: five ports of the sandbox's own loopback, where only the session itself could
    be in the way. Raises `OSError` when it is."""
    for _ in range(TRIES):
        first = 1025 + secrets.randbelow(5000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for number in PORTS.values():
                stack.enter_context(socket.socket()).bind((LOOPBACK, int(f"{first}{number}")))
            return f"tcp://{LOOPBACK}:{first}"
    raise OSError("no ports are free for a kernel")


def make_first_victim(pid: int) -> None:
    """When memory runs out the kernel goes, not the agent, which lives to tell."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "w") as file:
        file.write("1000")


def describe_death(code: int) -> str:
    """A return code in words for the caller."""
    if code == -signal.SIGKILL:
        return "the kernel was killed (SIGKILL), most likely because it ran out of memory"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"the kernel crashed ({name})"
    return f"the kernel exited with code {code}"
