"""Jupyter servers to compare with, stock, in an environment of their own; and one client for them and for us."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from benchmarks.rest import TOKEN

REQUIREMENTS = ("jupyter-kernel-gateway==3.0.1", "jupyter_server==2.21.1", "ipykernel>=7.4,<8")
UNLIMITED = 1 << 30
"""Bytes of a message, and bytes and messages a second, where a server drops output by default."""
_RATES = ("iopub_data_rate_limit", "iopub_msg_rate_limit")
_ALL_OUTPUT = tuple(f"--ZMQChannelsWebsocketConnection.{rate}={UNLIMITED}" for rate in _RATES)
KERNEL_GATEWAY = (
    *("jupyter-kernelgateway", "--KernelGatewayApp.port={port}", "--KernelGatewayApp.auth_token={token}"),
    *_ALL_OUTPUT,
)
JUPYTER_SERVER = (
    *("jupyter-server", "--port={port}", "--IdentityProvider.token={token}", "--no-browser", "--allow-root"),
    *_ALL_OUTPUT,
)


class JupyterServer:
    """Its REST API."""

    def __init__(self, port: int) -> None:
        self._port = port

    def create(self) -> str:
        """The id of a new kernel."""
        return str(self._ask("POST", "/api/kernels", 201)["id"])

    def delete(self, kernel: str) -> None:
        self._ask("DELETE", f"/api/kernels/{kernel}", 204)

    def is_up(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return bool(self._ask("GET", "/api", 200))
        return False

    @contextlib.contextmanager
    def connected(self, kernel: str) -> Iterator[JupyterKernel]:
        with JupyterKernel(f"ws://127.0.0.1:{self._port}/api/kernels/{kernel}/channels") as made:
            yield made

    def _ask(self, method: str, path: str, status: int) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        body = "{}" if method == "POST" else None
        connection.request(method, path, body, {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        if response.status != status:
            raise RuntimeError(f"{method} {path}: {response.status} {data[:300]!r}")
        return json.loads(data) if data else None


class JupyterKernel:
    """A kernel over one WebSocket, in the framing of JSON, which all servers speak."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._loop = asyncio.new_event_loop()
        self._connection: WebSocketClientConnection

    def __repr__(self) -> str:
        return f"<JupyterKernel {self._url}>"

    def __enter__(self) -> Self:
        self._connection = self._loop.run_until_complete(self._connect())
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._loop.close()

    def execute(self, code: str) -> str:
        """The result, or the length of what was printed."""
        return self._loop.run_until_complete(asyncio.wait_for(self._execute(code), 60))

    async def _connect(self) -> WebSocketClientConnection:
        request = HTTPRequest(self._url, headers={"Authorization": f"token {TOKEN}"})
        return await websocket_connect(request, max_message_size=UNLIMITED)

    async def _execute(self, code: str) -> str:
        id = uuid.uuid4().hex
        header = {"msg_id": id, "msg_type": "execute_request", "username": "", "session": "s", "version": "5.4"}
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "buffers": []}
        await self._connection.write_message(json.dumps({**message, "channel": "shell"}))
        result, printed, missing = "", 0, {"reply", "idle"}
        while missing:
            raw = await self._connection.read_message()
            assert raw is not None
            got = json.loads(raw)
            if got["parent_header"].get("msg_id") != id:
                continue
            if got["msg_type"] == "execute_reply":
                missing.discard("reply")
            elif got["msg_type"] == "execute_result":
                result = got["content"]["data"]["text/plain"]
            elif got["msg_type"] == "stream":
                printed += len(got["content"]["text"])
            elif got["msg_type"] == "status" and got["content"]["execution_state"] == "idle":
                missing.discard("idle")
        return result or str(printed)


@contextlib.contextmanager
def running_peer(state: Path, command: tuple[str, ...]) -> Iterator[JupyterServer]:
    environment = _environment(state / "peers")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program, *arguments = (each.format(port=port, token=TOKEN) for each in command)
    process = subprocess.Popen(
        [str(environment / "bin" / program), *arguments],
        env={**os.environ, "KG_ALLOW_ROOT": "1"},
        cwd=state,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        peer = JupyterServer(port)
        deadline = time.monotonic() + 120
        while not peer.is_up():
            if time.monotonic() > deadline or process.poll() is not None:
                raise TimeoutError(f"{program} does not come up")
            time.sleep(0.2)
        yield peer
    finally:
        process.terminate()
        process.wait(30)


def _environment(folder: Path) -> Path:
    done = folder / ".installed"
    wanted = "\n".join(REQUIREMENTS)
    if not done.exists() or done.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(folder / "bin/pip"), "install", "--quiet", *REQUIREMENTS], check=True)
        done.write_text(wanted)
    return folder
