"""What operators see of a real gateway: a trace from the caller into the kernel, and nothing that is not theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import websocket

from tests.e2e import gateways
from tests.e2e.collector import Collector, attributes
from tests.e2e.conftest import Make
from tests.e2e.gateways import Gateway, Session, sandbox_processes, until
from tests.e2e.jupyter import Client

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


@dataclass
class Watched:
    gateway: Gateway
    collector: Collector
    audit: Path

    def audited(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()]

    def metrics(self) -> str:
        response = requests.get(f"http://127.0.0.1:{self.gateway.port}/metrics", timeout=60)
        response.raise_for_status()
        return response.text


@pytest.fixture
def watched(make_gateway: Make, tmp_path: Path) -> Iterator[Watched]:
    with Collector() as collector:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "KERNELPOOL_AUDIT_LOG": str(tmp_path / "audit.jsonl"),
            "KERNELPOOL_METRICS_PUBLIC": "true",
            "KERNELPOOL_LOG_LEVEL": "debug",
        }
        gateway = make_gateway(environment=environment, ready=1, max_sessions=4)
        gateway.wait_warm()
        yield Watched(gateway, collector, tmp_path / "audit.jsonl")


def test_one_trace_from_the_caller_into_the_kernel(watched: Watched) -> None:
    session = watched.gateway.session("trace-me-1")

    session.run("import time; time.sleep(0.2)", headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
    until(lambda: len(watched.collector.of_trace(TRACE)) >= 4)
    until(watched.audited)  # written beside the answer

    spans = watched.collector.of_trace(TRACE)
    server, allocate, execute, kernel = (
        spans[name] for name in ("POST /pools/{pool}/executions", "allocate", "execute", "kernel")
    )
    assert watched.collector.service == "kernelpool"
    assert server.parent_span_id.hex() == CALLER
    assert allocate.parent_span_id == server.span_id
    assert execute.parent_span_id == server.span_id
    assert kernel.parent_span_id == execute.span_id
    assert execute.start_time_unix_nano <= kernel.start_time_unix_nano
    assert kernel.end_time_unix_nano <= execute.end_time_unix_nano
    assert kernel.end_time_unix_nano - kernel.start_time_unix_nano > 0.2e9
    assert attributes(server)["http.response.status_code"] == 200
    assert attributes(server)["http.route"] == "/pools/{pool}/executions"
    assert attributes(allocate)["kernelpool.start"] == "warm"
    assert attributes(kernel)["kernelpool.outcome"] == "succeeded"
    assert [line["trace_id"] for line in watched.audited()] == [TRACE]


def test_files_and_refills_are_traced_too(watched: Watched) -> None:
    session = watched.gateway.session("trace-me-2")

    session.upload("a.txt", b"x" * 1000)
    session.download("a.txt")
    names = ("upload", "download", "start sandbox")
    until(lambda: all(watched.collector.named(name) for name in names))

    assert [attributes(watched.collector.named(name)[0])["kernelpool.bytes"] for name in names[:2]] == [1000, 1000]
    assert {span.parent_span_id for span in watched.collector.named("start sandbox")} == {b""}


def test_without_the_extra_a_wish_for_traces_is_an_error_that_says_so(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['opentelemetry.exporter.otlp.proto.http.trace_exporter'] = None\n"
        "from kernelpool.cli import main; main(['serve', '--port', '0'])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KERNELPOOL_")}
    environment |= {"KERNELPOOL_OTLP_ENDPOINT": "http://127.0.0.1:9/v1/traces", "KERNELPOOL_STATE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, timeout=60
    )

    assert done.returncode == 1
    assert b"pip install 'kernelpool[otel]'" in done.stderr


# --- canaries: a secret of each kind, sent through everything that may go well or wrong

IDENTIFIER = "canary-identifier-7c1e"
CODE = "canary_code_51fd"
CONTENT = "canary-content-90ab"
BAD_TOKEN = "canary-bad-token-33e0"
CANARIES = (gateways.TOKEN, IDENTIFIER, CODE, CONTENT, BAD_TOKEN)


def live_through_everything(session: Session) -> None:
    session.run(f"{CODE} = 1")
    session.run(f"raise ValueError('{CODE}')")
    session.run(f"print('{CODE}' * 100)", timeoutInSeconds=5)
    session.submit(f"{CODE} = 2", "operation-1")
    until(lambda: session.poll("operation-1")["status"] == "Succeeded")
    session.upload("a.txt", CONTENT.encode() * 100)
    session.download("a.txt")
    session.run(f"while True: '{CODE}'", timeoutInSeconds=1)
    session.run(f"'{CODE}'; import os; os._exit(1)")
    for path, method in (("/files/missing", "GET"), ("/executions/none", "GET"), ("/nowhere", "POST")):
        session.request(method, path, data=CONTENT)
    session.request("POST", "/executions", data=f'{{"code": "{CODE}"')
    session.request("POST", "/executions", json={"code": CODE, "timeoutInSeconds": "no"})
    session.request("GET", "/files", headers={"Authorization": f"Bearer {BAD_TOKEN}"})
    other = session.gateway.session(IDENTIFIER + "\x00")
    other.request("GET", "/files")
    session.request("DELETE", "/session")
    session.request("DELETE", "/session")
    live_as_a_jupyter_client(session)
    live_as_an_mcp_client(session)
    # A sandbox that dies at once: what is told of it, and of the call that it took along.
    session.run(f"{CODE} = 3")
    for pid in sandbox_processes(session.sandbox):
        with suppress(ProcessLookupError):  # it went with the one before it
            os.kill(pid, 9)
    session.request("POST", "/executions", json={"code": CODE})


def live_as_a_jupyter_client(session: Session) -> None:
    """With tokens, right and wrong ones, in all places where such clients have them."""
    root = f"http://127.0.0.1:{session.gateway.port}"
    body = {"env": {"KERNEL_KERNELPOOL_IDENTIFIER": IDENTIFIER}}
    kernel = requests.post(f"{root}/k/{gateways.TOKEN}/api/kernels", json=body, timeout=60).json()
    channels = f"/api/kernels/{kernel['id']}/channels"
    for path in (f"/k/{gateways.TOKEN}{channels}?x", f"{channels}?token={gateways.TOKEN}"):
        client = Client(websocket.create_connection(root.replace("http", "ws") + path, timeout=60))
        client.run(f"{CODE} = 5")
        client.run(f"raise ValueError('{CODE}')")
        client.socket.send(CONTENT)
        client.socket.close()
    for path in (f"/k/{BAD_TOKEN}{channels}", f"{channels}?token={BAD_TOKEN}", f"/k/{gateways.TOKEN}/nowhere"):
        requests.get(root + path, timeout=60)
    requests.post(f"{root}/api/sessions?token={gateways.TOKEN}", json={"path": CONTENT, "kernel": kernel}, timeout=60)
    requests.get(f"{root}/k/{gateways.TOKEN}/api/me", timeout=60)


def live_as_an_mcp_client(session: Session) -> None:
    """In both eras, with what is well and what is not."""
    url = f"{session.gateway.endpoint}/mcp?identifier={IDENTIFIER}"
    said = {"protocolVersion": "2026-07-28", "clientCapabilities": {}}
    meta = {f"io.modelcontextprotocol/{name}": value for name, value in said.items()}
    for version in ("2025-11-25", "2026-07-28"):
        for tool, arguments in (
            ("run_code", {"code": f"{CODE} = 6", "session": IDENTIFIER}),
            ("run_code", {"code": f"raise ValueError('{CODE}')"}),
            ("run_code", {"code": [CODE]}),
            ("run_command", {"command": f"echo {CODE}"}),
            ("write_file", {"path": "b.txt", "text": CONTENT}),
            ("read_file", {"path": f"{CONTENT}/.."}),
            (CODE, {}),
        ):
            params = {"name": tool, "arguments": arguments, "_meta": meta}
            headers = {"Mcp-Protocol-Version": version, "Mcp-Method": "tools/call", "Mcp-Name": tool}
            for token in (gateways.TOKEN, BAD_TOKEN):
                requests.post(
                    url,
                    json={"jsonrpc": "2.0", "id": CODE, "method": "tools/call", "params": params},
                    headers={"x-ms-apikey": token, "Accept": "application/json, text/event-stream", **headers},
                    timeout=60,
                )
    for body in (f'{{"{CODE}"', f'["{CODE}"]', f'{{"jsonrpc": "2.0", "id": 1, "method": "{CODE}"}}'):
        requests.post(url, data=body, headers={"x-ms-apikey": gateways.TOKEN}, timeout=60)


def test_no_canary_is_found_in_anything_that_is_kept(watched: Watched) -> None:
    session = watched.gateway.session(IDENTIFIER)

    live_through_everything(session)
    assert watched.gateway.process is not None
    session.run(f"{CODE} = 4")
    processes = [*_below(watched.gateway.process.pid), *sandbox_processes(session.sandbox)]
    told = {f"process {pid} {what}": text for pid in processes for what, text in _of_process(pid).items()}
    told["metrics"] = watched.metrics()
    watched.gateway.stop()
    told["log"] = watched.gateway.log.read_text()
    told["audit log"] = watched.audit.read_text()
    told["spans"] = "\n".join(map(str, watched.collector.spans))

    assert len(processes) > 1
    assert [line["outcome"] for line in watched.audited()].count("Unauthorized") == 4 + 14
    assert '"level": "debug"' in told["log"]
    assert len(watched.collector.spans) > 20
    found = [(canary, where) for where, text in told.items() for canary in CANARIES if canary in text]
    assert not found


def _below(pid: int) -> list[int]:
    """Its children, and theirs; it was itself given its token by whoever started it."""
    parents = {child: gateways._parent(child) for child in gateways._pids()}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {pid})


def _of_process(pid: int) -> dict[str, str]:
    try:
        return {
            what: Path(f"/proc/{pid}/{what}").read_bytes().decode(errors="replace") for what in ("cmdline", "environ")
        }
    except OSError:  # it is gone
        return {}
