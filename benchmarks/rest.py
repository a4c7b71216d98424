"""A gateway as its users start it, and a thin REST client that checks every answer."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

TOKEN = "benchmark-token-benchmark"
API = "api-version=2025-10-02-preview"


MODERN = "2026-07-28"
"""The revision of MCP from which on there is no handshake."""


class Client:
    """One keep-alive connection."""

    def __init__(self, port: int, pool: str = "python") -> None:
        self._pool = pool
        self.sandbox = ""
        """The sandbox that answered last."""
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        self._headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}

    def execute(self, identifier: str, code: str) -> Any:
        """`executionResult`. Raises `RuntimeError` when it did not succeed."""
        body = {"codeInputType": "Inline", "executionType": "Synchronous", "code": code, "timeoutInSeconds": 60}
        answer = json.loads(self.request("POST", "/executions", identifier, json.dumps(body)))
        if answer["status"] != "Succeeded":
            raise RuntimeError(str(answer)[:500])
        return answer["result"]["executionResult"]

    def shell(self, identifier: str, command: str, **options: Any) -> str:
        """What it wrote to stdout, all of it. Raises `RuntimeError` when it did not exit with 0."""
        body = {"shellCommand": command, "timeoutInSeconds": 60, "outputStreamsMaxLength": 0, **options}
        answer = json.loads(self.request("POST", "/executions?outputs=false", identifier, json.dumps(body)))
        if answer["status"] != "0":
            raise RuntimeError(str(answer)[:500])
        return str(answer["result"]["stdout"])

    def tool(self, identifier: str, code: str, version: str) -> str:
        """The result of MCP's `run_code`, in this revision. Raises `RuntimeError` when it did not succeed."""
        says = {"protocolVersion": version, "clientCapabilities": {}}
        meta = {f"io.modelcontextprotocol/{name}": value for name, value in says.items()}
        params = {"name": "run_code", "arguments": {"code": code}, **({"_meta": meta} if version >= MODERN else {})}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        headers = {"Mcp-Protocol-Version": version, "Accept": "application/json, text/event-stream"}
        if version >= MODERN:
            headers |= {"Mcp-Method": "tools/call", "Mcp-Name": "run_code"}
        answer = json.loads(self.request("POST", "/mcp", identifier, json.dumps(message), **headers))
        if "result" not in answer or answer["result"]["isError"]:
            raise RuntimeError(str(answer)[:500])
        return str(answer["result"]["structuredContent"]["result"])

    def request(self, method: str, path: str, identifier: str, body: Any = None, **headers: str) -> bytes:
        url = f"/pools/{self._pool}{path}{'&' if '?' in path else '?'}{API}&identifier={quote(identifier)}"
        self._http.request(method, url, body, {**self._headers, **headers})
        response = self._http.getresponse()
        data = response.read()
        self.sandbox = response.headers.get("x-ms-session-guid", "")
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {data[:300]!r}")
        return data

    def stream(self, method: str, path: str, identifier: str) -> int:
        """Reads an answer without keeping it; its length."""
        url = f"/pools/{self._pool}{path}{'&' if '?' in path else '?'}{API}&identifier={quote(identifier)}"
        self._http.request(method, url, None, self._headers)
        response = self._http.getresponse()
        size = 0
        while chunk := response.read(1 << 20):
            size += len(chunk)
        return size

    def close(self) -> None:
        self._http.close()


class Gateway:
    """A `kernelpool serve` process."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, state: Path) -> None:
        self.pid = process.pid
        self.port = port
        self._state = state

    def client(self, pool: str = "python") -> Client:
        return Client(self.port, pool)

    def wait_warm(self, ready: int, timeout: float = 300) -> None:
        """Until the pool has so many ready sandboxes again and none is starting."""
        self._wait(lambda pool: pool["ready"] >= ready and pool["starting"] == 0, timeout)

    def wait_ready(self, ready: int, timeout: float = 900) -> None:
        """Until the pool has so many ready sandboxes."""
        self._wait(lambda pool: pool["ready"] >= ready, timeout)

    def ready(self) -> int:
        """Ready sandboxes now."""
        return int(self._pool(http.client.HTTPConnection("127.0.0.1", self.port))["ready"])

    def _wait(self, holds: Callable[[dict[str, Any]], bool], timeout: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if holds(self._pool(connection)):
                return
            time.sleep(0.05)
        raise TimeoutError("the pool does not fill up")

    def _pool(self, connection: http.client.HTTPConnection) -> dict[str, Any]:
        connection.request("GET", "/pools/python", headers={"Authorization": f"Bearer {TOKEN}"})
        pool: dict[str, Any] = json.loads(connection.getresponse().read())
        return pool

    def sandbox_pids(self, id: str = "*") -> list[list[int]]:
        """Processes of a sandbox, or of each, by the records."""
        return [_tree(pid) for pid in _sandbox_roots(self._state, id)]


@contextlib.contextmanager
def running_gateway(state: Path, others: Mapping[str, dict[str, Any]] | None = None, **pool: Any) -> Iterator[Gateway]:
    """On a free port, with its sandboxes destroyed at the end. Runtime trees stay in `state` for the next run. `others`
    are pools besides, by name."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"ready": 2, "max_sessions": 64, "max_upload": "4Gi", **pool}
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        config.write(_toml({"port": port, "state_dir": str(state), "stop_sessions": True, "log_level": "error"}))
        for name, values in {"python": settings, **(others or {})}.items():
            config.write(f"[pools.{name}]\n" + _toml(values))
        config.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "kernelpool", "serve"],
            env={**os.environ, "KERNELPOOL_TOKEN": TOKEN, "KERNELPOOL_CONFIG": config.name},
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait_ready(port, process)
            yield Gateway(process, port, state)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def new_identifier() -> str:
    return f"bench-{uuid.uuid4().hex}"


def _wait_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    """The first start builds the runtime's tree, which takes minutes."""
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the gateway ended with {process.returncode}")
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise TimeoutError("the gateway does not get ready")


def _toml(values: dict[str, Any]) -> str:
    lines = []
    for name, value in values.items():
        text = (
            "{ " + ", ".join(f"{key} = {json.dumps(item)}" for key, item in value.items()) + " }"
            if isinstance(value, dict)
            else json.dumps(value)
        )
        lines.append(f"{name} = {text}\n")
    return "".join(lines)


def _sandbox_roots(state: Path, id: str) -> list[int]:
    pids = []
    for record in state.glob(f"*/sandboxes/{id}/sandbox.json"):
        processes = json.loads(record.read_text())
        pids += [pid for pid in _pids_in(processes) if Path(f"/proc/{pid}").exists()][:1]
    return pids


def _pids_in(value: Any) -> list[int]:
    """Every "pid" in a record, whatever its shape."""
    if isinstance(value, dict):
        own = [value["pid"]] if isinstance(value.get("pid"), int) else []
        return own + [pid for item in value.values() for pid in _pids_in(item)]
    if isinstance(value, list):
        return [pid for item in value for pid in _pids_in(item)]
    return []


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found
