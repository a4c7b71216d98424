"""A gateway as its users run it: the real command, real sandboxes, plain HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests

from kernelpool.backends.docker.labels import GATEWAY
from tests.engine import engine_client

TOKEN = "a-token-for-tests-only"
STATE = Path(os.environ.get("KPTEST_STATE") or f"/var/tmp/kernelpool-test-{os.getuid()}")
TREES = Path(os.environ.get("KPTEST_TREES") or f"/var/tmp/kernelpool-test-trees-{os.getuid()}")
"""Kept between runs, and for all that run at once: making the tree of a runtime takes a minute."""


def trees_of(runtime: str) -> Path:
    """What is a backend's state, but only for trees of that runtime: who serves another would remove them."""
    folder = TREES / runtime
    (folder / "runtimes").mkdir(parents=True, exist_ok=True)
    return folder


def state_of(name: str) -> Path:
    """For the gateway of that name in these tests."""
    return STATE.with_name(f"{STATE.name}-{name}")


VERSION = "2025-10-02-preview"
SECONDS = 60.0
"""No wait of these tests is longer, but for the first build of a tree."""


class Gateway:
    """A `kernelpool serve` process; it can be killed and started again on the same state and port."""

    def __init__(
        self,
        folder: Path,
        *,
        state: Path = STATE,
        environment: dict[str, str] | None = None,
        name: str = "python",
        **pool: Any,
    ) -> None:
        """`environment` is for settings of the whole gateway; the rest are the pool's, which has that name.

        Its sandboxes are not warmed up, which is most of the work in starting one. Those of `test_docker` are.
        """
        self.port = free_port()
        self.state = state
        self.log = folder / f"gateway-{self.port}.log"
        self.name = name
        settings = {"ready": 2, "max_sessions": 12, "warmup": False, "allocation_timeout": 120, **pool}
        if settings.get("backend") != "docker":
            lend_trees(state, str(settings.get("runtime", "python")))
        ours = {"host": "127.0.0.1", "port": self.port, "state_dir": str(state), "token": TOKEN}
        self._environment = {
            # Not what the developer has set, the folder for this state included.
            **{name: value for name, value in os.environ.items() if not name.startswith("KERNELPOOL_")},
            **{f"KERNELPOOL_{name.upper()}": str(value) for name, value in ours.items()},
            **{f"KERNELPOOL_POOLS__{name.upper()}__{key.upper()}": str(value) for key, value in _flat(settings)},
            "CANARY": canary,
            **(environment or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.seen: set[str] = set()
        """Sandboxes that answered."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/pools/{self.name}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kernelpool", "serve"],
                env=self._environment,
                cwd=self.log.parent,
                stdout=log,
                stderr=log,
            )
        until(self._is_ready, seconds=600, pause=0.2)  # it has work to do meanwhile

    def _is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the gateway ended: {self.log.read_text()[-3000:]}")
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/readyz", timeout=600).ok
        except requests.ConnectionError:
            return False

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> None:
        assert self.process is not None
        self.process.wait(SECONDS)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> None:
        """Ends it and everything that it left alive."""
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGTERM)
            self.wait()
        command = [sys.executable, "-m", "kernelpool", "--log-level", "error", "cleanup"]
        subprocess.run(command, env=self._environment, cwd=self.log.parent, check=True, timeout=4 * SECONDS)

    def traces(self) -> list[str]:
        """What it must not have left once it was stopped: records, groups, mounts, sockets, processes."""
        tag = hashlib.sha256(os.fsencode(self.state / "bubblewrap")).hexdigest()[:8]
        left = [*self.state.glob("*/sandboxes/*"), *self.state.glob("sessions/*.json")]
        # Not by glob, which fails when a group of somebody else's goes meanwhile.
        left += [Path(folder) for folder, _, _ in os.walk("/sys/fs/cgroup") if f"/{tag}-" in folder]
        tables = [Path(name).read_text().splitlines() for name in ("/proc/self/mountinfo", "/proc/net/unix")]
        lines = [line for lines in tables for line in lines if re.search(rf"{self.state}[/\s]", f"{line}\n")]
        processes = [_command(pid) for sandbox in self.seen for pid in sandbox_processes(sandbox)]
        return [*map(str, left), *lines, *processes, *self._containers()]

    def _containers(self) -> list[str]:
        tag = self.state / "docker" / "tag"
        if not tag.exists():
            return []
        with engine_client() as client:
            filters = {"label": f"{GATEWAY}={tag.read_text().strip()}"}
            networks, volumes = client.networks(filters=filters), client.volumes(filters=filters)["Volumes"] or []
            return [str(each) for each in (*client.containers(all=True, filters=filters), *networks, *volumes)]

    def pool(self) -> dict[str, Any]:
        answer: dict[str, Any] = requests.get(self.endpoint, headers=_headers(), timeout=SECONDS).json()
        return answer

    def wait_warm(self) -> None:
        until(lambda: (now := self.pool())["ready"] > 0 and now["starting"] == 0, seconds=2 * SECONDS)

    def wait_ready(self) -> None:
        """Until the next session would not have to wait."""
        until(lambda: self.pool()["ready"] > 0, seconds=2 * SECONDS)

    def session(self, identifier: str) -> Session:
        return Session(self, identifier)

    @property
    def memory(self) -> int:
        """Resident bytes."""
        assert self.process is not None
        return _status(self.process.pid, "VmRSS") * 1024


class Session:
    """One identifier, as a client sees it."""

    def __init__(self, gateway: Gateway, identifier: str) -> None:
        self.gateway = gateway
        self.identifier = identifier
        self.sandbox = ""
        """That answered last."""

    def request(self, method: str, path: str, **rest: Any) -> requests.Response:
        query = {"api-version": VERSION, "identifier": self.identifier, **rest.pop("params", {})}
        headers = {**_headers(), **rest.pop("headers", {})}
        rest = {"timeout": 300, **rest}
        response = requests.request(method, self.gateway.endpoint + path, params=query, headers=headers, **rest)
        self.sandbox = response.headers.get("x-ms-session-guid", self.sandbox)
        self.gateway.seen.add(self.sandbox)
        return response

    def run(self, code: str, **options: Any) -> dict[str, Any]:
        """The execution resource."""
        headers = options.pop("headers", {})
        response = self.request("POST", "/executions", json={"code": code, **options}, headers=headers)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def shell(self, command: str, **options: Any) -> dict[str, Any]:
        """The execution resource of a shell command."""
        response = self.request("POST", "/executions", json={"shellCommand": command, **options})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def value(self, code: str, **options: Any) -> Any:
        """Of the last expression. The code must succeed."""
        answer = self.run(code, **options)
        assert answer["status"] == "Succeeded", answer["result"]["stderr"]
        return answer["result"]["executionResult"]

    def submit(self, code: str, id: str, **options: Any) -> dict[str, Any]:
        return self.run(code, executionType="Asynchronous", headers={"operation-id": id}, **options)

    def poll(self, id: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.request("GET", f"/executions/{id}").json()
        return answer

    def upload(self, name: str, data: Any) -> requests.Response:
        return self.request("POST", "/files", files={"file": (name, data)})

    def download(self, name: str) -> bytes:
        response = self.request("GET", f"/files/{name}/content")
        assert response.ok, response.text
        return response.content

    def names(self) -> list[str]:
        return [entry["name"] for entry in self.request("GET", "/files").json()["value"]]

    def delete(self) -> int:
        return self.request("DELETE", "/session").status_code


canary = "canary-4f1b7d0e93"
"""In the gateway's environment; nothing in a sandbox may ever see it."""


def until(holds: Callable[[], object], *, seconds: float = SECONDS, pause: float = 0.05) -> None:
    """Polls a condition, which is what there is between processes."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError("the condition did not come true")
        time.sleep(pause)


class Background:
    """A call in a thread; calling it waits for the result."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._result: list[Any] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def is_running(self, seconds: float) -> bool:
        """After so many at most."""
        self._thread.join(seconds)
        return self._thread.is_alive()

    def __call__(self) -> Any:
        self._thread.join(2 * SECONDS)
        assert self._result, "it does not come back"
        if isinstance(self._result[0], BaseException):
            raise self._result[0]
        return self._result[0]

    def _run(self) -> None:
        try:
            self._result.append(self._call())
        except BaseException as error:
            self._result.append(error)


def free_port() -> int:
    """Below those that the kernel gives away: whoever connects somewhere meanwhile does not get it by chance."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def in_background(call: Callable[[], Any]) -> Background:
    return Background(call)


def sandbox_processes(sandbox: str) -> list[int]:
    """Of the host's numbers, all processes of a sandbox."""
    roots = [pid for pid in _pids() if sandbox and _is_of(pid, sandbox)]
    found = set(roots)
    while True:
        children = {pid for pid in _pids() if _parent(pid) in found} - found
        if not children:
            return sorted(found)
        found |= children


def server_sent(response: requests.Response) -> Iterator[tuple[str, str, Any]]:
    """(id, event, data) of a stream."""
    id = event = data = ""
    for raw in response.iter_lines(chunk_size=1):
        line = raw.decode()
        name, _, value = line.partition(": ")
        if name == "id":
            id = value
        elif name == "event":
            event = value
        elif name == "data":
            data = value
        elif not line and event:
            yield id, event, json.loads(data)
            id = event = data = ""


def lend_trees(state: Path, runtime: str = "python") -> None:
    """So that a gateway of that state makes none of its own."""
    backend = state / "bubblewrap"
    for folder in (state, backend):
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    if not (backend / "runtimes").exists():
        (backend / "runtimes").symlink_to(trees_of(runtime) / "runtimes")


def _headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}"}


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}__")
        else:
            yield f"{prefix}{name}", value


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _is_of(pid: int, sandbox: str) -> bool:
    """By the mark in bubblewrap's command line, or by what a container has mounted."""
    return f"kernelpool-{sandbox}" in _command(pid) or f"/{sandbox} /run/kp " in _read(pid, "mountinfo")


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _parent(pid: int) -> int:
    try:
        return _status(pid, "PPid")
    except (OSError, LookupError):
        return 0


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise LookupError(name)
