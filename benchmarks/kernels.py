"""Kernels without a gateway: started as processes, called over their ZMQ sockets by the thinnest client there is."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import zmq

from kernelpool.agent.process import PORTS
from kernelpool.protocol.messages import Codec, Message

LAUNCHER = Path(__file__).parent.parent / "kernels" / "python" / "launch.py"
OURS = (sys.executable, "-Xfrozen_modules=off", str(LAUNCHER), "-f", "{file}")
STOCK = (sys.executable, "-m", "ipykernel_launcher", "-f", "{file}")


class Kernel:
    """A connected kernel: `execute` sends code and reads until reply and idle are both in."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], base: str, key: bytes) -> None:
        self._codec = Codec(key, secrets.token_hex(8))
        self._shell = context.socket(zmq.DEALER)
        self._shell.connect(f"ipc://{base}-{PORTS['shell_port']}")
        self._iopub = context.socket(zmq.SUB)
        self._iopub.setsockopt(zmq.SUBSCRIBE, b"")
        self._iopub.setsockopt(zmq.RCVHWM, 0)
        self._iopub.connect(f"ipc://{base}-{PORTS['iopub_port']}")
        self._poller = zmq.Poller()
        self._poller.register(self._shell, zmq.POLLIN)
        self._poller.register(self._iopub, zmq.POLLIN)

    def execute(self, code: str, timeout: float = 30) -> str:
        """The result's text/plain, "" when there is none. Raises `TimeoutError`."""
        id = self._send("execute_request", {"code": code, "silent": False, "allow_stdin": False})
        result, missing = "", {"reply", "idle"}
        for message in self._messages(id, timeout):
            if message.msg_type == "execute_reply":
                missing.discard("reply")
            elif message.msg_type == "execute_result":
                result = message.content["data"]["text/plain"]
            elif message.msg_type == "status" and message.content["execution_state"] == "idle":
                missing.discard("idle")
            if not missing:
                return result
        raise TimeoutError(code)

    def wait_ready(self, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                if self.execute("1", timeout=0.5) == "1":
                    return
        raise TimeoutError("the kernel does not start")

    def close(self) -> None:
        self._shell.close(linger=0)
        self._iopub.close(linger=0)

    def _send(self, msg_type: str, content: dict[str, object]) -> str:
        id = secrets.token_hex(8)
        self._shell.send_multipart(self._codec.encode(msg_type, content, msg_id=id, date="2026-01-01T00:00:00Z"))
        return id

    def _messages(self, id: str, timeout: float) -> Iterator[Message]:
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            for socket, _ in self._poller.poll(int(left * 1000)):
                message = self._codec.decode(socket.recv_multipart())
                if message.parent_id == id:
                    yield message


@contextlib.contextmanager
def running_kernel(argv: Sequence[str]) -> Iterator[Kernel]:
    """A kernel process with directories of its own, outside of any sandbox."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with tempfile.TemporaryDirectory(prefix="kpb-") as folder:
        key, base, file = secrets.token_hex(16), f"{folder}/s", f"{folder}/connection.json"
        connection = {"transport": "ipc", "ip": base, "key": key, "signature_scheme": "hmac-sha256", **PORTS}
        Path(file).write_text(json.dumps(connection))
        env = {"PATH": os.environ["PATH"], "HOME": folder, "IPYTHONDIR": f"{folder}/i", "MPLCONFIGDIR": f"{folder}/m"}
        process = subprocess.Popen(
            [word.replace("{file}", file) for word in argv],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        kernel = Kernel(context, base, key.encode())
        try:
            kernel.wait_ready()
            yield kernel
        finally:
            kernel.close()
            process.kill()
            process.wait()
            context.destroy(linger=0)
