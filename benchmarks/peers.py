"""jupyter-kernel-gateway, the peer to compare with: stock, in an environment of its own, driven over its WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

from tornado.websocket import WebSocketClientConnection, websocket_connect

REQUIREMENTS = ("jupyter-kernel-gateway==3.0.1", "ipykernel>=7.4,<8")


class KernelGateway:
    """One kernel of a running jupyter-kernel-gateway, over one WebSocket."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: WebSocketClientConnection) -> None:
        self._loop = loop
        self._connection = connection

    def execute(self, code: str) -> str:
        return self._loop.run_until_complete(asyncio.wait_for(self._execute(code), 30))

    async def _execute(self, code: str) -> str:
        id = uuid.uuid4().hex
        header = {"msg_id": id, "msg_type": "execute_request", "username": "", "session": "s", "version": "5.4"}
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "buffers": []}
        await self._connection.write_message(json.dumps({**message, "channel": "shell"}))
        result, missing = "", {"reply", "idle"}
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
            elif got["msg_type"] == "status" and got["content"]["execution_state"] == "idle":
                missing.discard("idle")
        return result


@contextlib.contextmanager
def running_kernel_gateway(state: Path) -> Iterator[KernelGateway]:
    environment = _environment(state / "peers")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [str(environment / "bin/jupyter-kernelgateway"), f"--KernelGatewayApp.port={port}"],
        env={**os.environ, "KG_ALLOW_ROOT": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    loop = asyncio.new_event_loop()
    try:
        id = _create_kernel(port)
        url = f"ws://127.0.0.1:{port}/api/kernels/{id}/channels"
        connection = loop.run_until_complete(_connect(url))
        peer = KernelGateway(loop, connection)
        peer.execute("1")
        yield peer
        connection.close()
    finally:
        process.terminate()
        process.wait(30)
        loop.close()


async def _connect(url: str) -> WebSocketClientConnection:
    return await websocket_connect(url)


def _environment(folder: Path) -> Path:
    done = folder / ".installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(folder / "bin/pip"), "install", "--quiet", *REQUIREMENTS], check=True)
        done.touch()
    return folder


def _create_kernel(port: int) -> str:
    deadline = time.monotonic() + 60
    while True:
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/api/kernels", b"{}", method="POST")
            with urllib.request.urlopen(request, timeout=60) as response:
                return str(json.load(response)["id"])
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
