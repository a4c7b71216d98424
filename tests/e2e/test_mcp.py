"""MCP clients before a real gateway with real kernels: those of both SDKs, curl, and hosts that start us themselves."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TextIO

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, ImageContent, TextContent

from tests.e2e.conftest import Make
from tests.e2e.gateways import SECONDS, STATE, TOKEN, Gateway, Session, lend_trees, state_of, trees_of, until
from tests.extra import extra
from tests.npm import npm_folder

NPM_SDK = "1.32.2"
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nprint('drawn')"
GROUP = "/subscriptions/s/resourceGroups/g"
FETCH = GROUP + "/providers/Microsoft.App/sessionPools/{pool}/fetchMCPServerCredentials?api-version=2025-02-02-preview"
Mode = Literal["auto", "legacy"]


def text_of(result: CallToolResult) -> str:
    return "".join(part.text for part in result.content if isinstance(part, TextContent))


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_pythons_sdk_runs_code_and_sees_what_it_draws(gateway: Gateway, session: Session, mode: Mode) -> None:
    url = f"{gateway.endpoint}/mcp?identifier={session.identifier}"
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=SECONDS) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        drawn = await client.call_tool("run_code", {"code": PLOT})
        failed = await client.call_tool("run_code", {"code": "def f():\n    return 1 / 0\nf()"})
        await client.call_tool("run_code", {"code": "x = 'of mcp'"})

    [image] = [part for part in drawn.content if isinstance(part, ImageContent)]
    assert image.mime_type == "image/png"
    assert image.data.startswith("iVBOR")
    assert image.data not in json.dumps(drawn.structured_content)
    assert "drawn" in text_of(drawn)
    assert "return 1 / 0" in text_of(failed)
    assert text_of(failed).endswith("ZeroDivisionError: division by zero")
    assert await asyncio.to_thread(session.value, "x") == "of mcp"


def test_npms_sdk_runs_code_and_sees_what_it_draws(gateway: Gateway) -> None:
    folder = npm_folder(STATE.parent / f"{STATE.name}-npm", "@modelcontextprotocol/sdk", NPM_SDK)
    script = shutil.copy(Path(__file__).with_name("mcp_client.mjs"), folder)

    done = subprocess.run(
        ["node", script, f"{gateway.endpoint}/mcp", TOKEN], capture_output=True, timeout=2 * SECONDS, check=False
    )

    assert done.returncode == 0, done.stderr.decode()
    seen = json.loads(done.stdout)
    assert "run_code" in seen["tools"]
    assert [part["type"] for part in seen["plot"]["content"]] == ["text", "image"]
    assert seen["slow"]["structuredContent"]["result"] == "'slept'"
    assert re.fullmatch(r"Running for \d+ s", seen["progress"][0])
    assert "Request timed out" in seen["gaveUp"]
    assert seen["failed"]["isError"]
    assert [resource["mimeType"] for resource in seen["resources"]] == ["image/png"]
    assert seen["contents"][0]["blob"].startswith("iVBOR")
    assert seen["errors"] == []
    # It gave its session back: the code session is gone with it.
    assert gateway.session(seen["session"]).request("GET", "/session").status_code == 404


class Curl:
    """ACA's tutorials, word for word: curl, a key, and no more of the protocol than they have."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.pool = gateway.endpoint.rpartition("/")[2]
        self.key = self(FETCH.format(pool=self.pool), "", f"Authorization: Bearer {TOKEN}")["apiKey"]

    def __call__(self, path: str, body: str = "", *headers: str) -> Any:
        command = ["curl", "-sS", "-X", "POST", f"http://127.0.0.1:{self.gateway.port}{path}"]
        command += [part for header in headers for part in ("-H", header)] + (["-d", body] if body else [])
        return json.loads(subprocess.run(command, capture_output=True, timeout=SECONDS, check=True).stdout)

    def rpc(self, id: str, method: str, params: Any = None) -> Any:
        message = {"jsonrpc": "2.0", "id": id, "method": method, **({"params": params} if params is not None else {})}
        path = f"{GROUP}/sessionPools/{self.pool}/mcp"
        answer = self(path, json.dumps(message), "Content-Type: application/json", f"x-ms-apikey: {self.key}")
        assert answer["id"] == id
        return answer["result"]

    def tool(self, id: str, name: str, **arguments: Any) -> Any:
        return self.rpc(id, "tools/call", {"name": name, "arguments": arguments})["structuredContent"]


def test_curl_as_acas_tutorial_for_python_has_it(gateway: Gateway) -> None:
    curl = Curl(gateway)
    opened = curl.rpc("1", "initialize")
    listed = curl.rpc("2", "tools/list")
    environment = curl.tool("3", "launchPythonEnvironment")["environmentId"]
    code = "x = 41; print('hello')\nx + 1"
    ran = curl.tool("4", "runPythonCodeInRemoteEnvironment", environmentId=environment, pythonCode=code)
    command = curl.tool("5", "runShellCommandInRemoteEnvironment", environmentId=environment, shellCommand="pwd")

    assert opened["protocolVersion"] == "2025-03-26"
    assert "runPythonCodeInRemoteEnvironment" in [tool["name"] for tool in listed["tools"]]
    assert ran["stdout"] == "hello\n"
    assert command["stdout"] == "/mnt/data\n"
    session = gateway.session(environment)
    assert session.value("x") == 41
    session.delete()


def test_curl_as_acas_tutorial_for_shell_has_it(shell_gateway: Gateway) -> None:
    curl = Curl(shell_gateway)
    opened = curl.rpc("1", "initialize")
    environment = curl.tool("2", "launchShell")["environmentId"]
    line = "echo hello > a.txt; cat a.txt; echo careful >&2; exit 3"
    ran = curl.tool("3", "runShellCommandInRemoteEnvironment", environmentId=environment, shellCommand=line)
    words = curl.tool(
        "4", "runShellCommandInRemoteEnvironment", environmentId=environment, execCommandAndArgs=["cat", "a.txt"]
    )
    kernel = curl.tool("5", "run_code", session=environment, code="x=41; echo $((x + 1))")

    assert opened["serverInfo"]["title"] == "kernelpool: Bash"
    assert (ran["stdout"], ran["stderr"], ran["exitCode"]) == ("hello\n", "careful\n", 3)
    assert words["stdout"] == "hello\n"
    assert kernel["stdout"] == "42\n"
    shell_gateway.session(environment).delete()


async def test_an_mcp_session_goes_on_after_the_gateway_was_killed(make_gateway: Make) -> None:
    gateway = await asyncio.to_thread(make_gateway, ready=1)
    await asyncio.to_thread(gateway.wait_warm)
    endpoint, headers = f"{gateway.endpoint}/mcp", {"Authorization": f"Bearer {TOKEN}"}
    async with httpx2.AsyncClient(headers=headers, timeout=SECONDS) as http:

        async def ask(method: str, params: Any = None) -> httpx2.Response:
            message = {"jsonrpc": "2.0", "id": 1, "method": method, **({"params": params} if params else {})}
            return await http.post(endpoint, json=message)

        http.headers["Mcp-Session-Id"] = (await ask("initialize")).headers["Mcp-Session-Id"]
        await ask("tools/call", {"name": "run_code", "arguments": {"code": "x = 'still here'"}})
        fetched = await http.post(f"http://127.0.0.1:{gateway.port}{FETCH.format(pool='python')}")
        await asyncio.to_thread(gateway.kill)
        await asyncio.to_thread(gateway.start)
        key = {"x-ms-apikey": fetched.json()["apiKey"]}
        by_key = await http.post(endpoint, json={"jsonrpc": "2.0", "id": 1, "method": "ping"}, headers=key)
        ran = await ask("tools/call", {"name": "run_code", "arguments": {"code": "x"}})
        assert (await http.delete(endpoint)).status_code == 204

    assert ran.json()["result"]["structuredContent"]["result"] == "'still here'"
    assert by_key.status_code == 404  # the key is good, but the session of the header is another caller's


# --- hosts that start us


@pytest.fixture(autouse=True)
def patient_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK kills in two steps of 2 s who does not end at once, and with him what would have cleaned up."""
    monkeypatch.setattr("mcp.client.stdio.PROCESS_TERMINATION_TIMEOUT", SECONDS)


def parameters(folder: Path, *arguments: str, **variables: str) -> StdioServerParameters:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KERNELPOOL_", "XDG_"))}
    return StdioServerParameters(
        command=sys.executable,
        args=["-m", "kernelpool", *arguments],
        env={**kept, "HOME": str(folder), **variables},
        cwd=folder,
    )


def at(gateway: Gateway) -> dict[str, str]:
    return {"KERNELPOOL_URL": f"http://127.0.0.1:{gateway.port}", "KERNELPOOL_TOKEN": TOKEN}


@pytest.mark.parametrize("mode", ["auto", pytest.param("legacy", marks=extra)])
async def test_a_host_speaks_to_a_gateway_over_pipes(gateway: Gateway, tmp_path: Path, mode: Mode) -> None:
    heard: list[str | None] = []
    runs = asyncio.Event()
    code = "import os, time\nwhile not os.path.exists('/tmp/go'): time.sleep(0.05)\n6 * 7"

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message)
        runs.set()

    async with Client(parameters(tmp_path, "mcp", **at(gateway)), mode=mode) as client:
        call = asyncio.create_task(client.call_tool("run_code", {"code": code}, progress_callback=hear))
        await asyncio.wait_for(runs.wait(), SECONDS)
        await client.call_tool("run_command", {"command": "touch /tmp/go"})
        ran = await call
        written = await client.call_tool("write_file", {"path": "a.txt", "text": "hello"})
        [resource] = (await client.list_resources()).resources
        [content] = (await client.read_resource(resource.uri)).contents
        unknown = await client.call_tool("run_code", {})

    assert text_of(ran) == "42"
    assert re.fullmatch(r"Running for \d+ s", heard[0] or "")
    assert content.text == "hello"  # type: ignore[union-attr]
    assert unknown.is_error
    session = gateway.session(written.structured_content["session"])
    assert await asyncio.to_thread(lambda: session.request("GET", "/session").status_code) == 404


async def test_a_named_session_outlives_its_host(gateway: Gateway, session: Session, tmp_path: Path) -> None:
    async with Client(parameters(tmp_path, "mcp", "-s", session.identifier, **at(gateway))) as client:
        await client.call_tool("run_code", {"code": "x = 'kept'"})

    assert await asyncio.to_thread(session.value, "x") == "kept"


async def test_a_host_needs_no_gateway(gateway: Gateway, tmp_path: Path) -> None:
    """`gateway` has made what sandboxes see; this one borrows it, and leaves nothing."""
    state = state_of(uuid.uuid4().hex[:8])
    lend_trees(state)
    try:
        async with Client(parameters(tmp_path, "--state-dir", str(state), "mcp")) as client:
            ran = await client.call_tool("run_code", {"code": "6 * 7"})

        assert text_of(ran) == "42"
        assert [*state.glob("**/sessions/*.json"), *state.glob("**/sandboxes/*")] == []
    finally:
        shutil.rmtree(state)


@pytest.fixture
def unfinished() -> Iterator[tuple[Path, TextIO]]:
    """A state directory in which somebody else seems to be making trees, for as long as the file is locked."""
    state = state_of(uuid.uuid4().hex[:8])
    shelf = state / "bubblewrap" / "runtimes"
    shelf.mkdir(parents=True)
    for folder in (state, shelf.parent, shelf):
        folder.chmod(0o711)
    with (shelf / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        yield state, other
    shutil.rmtree(state)


async def test_a_host_is_answered_before_there_is_a_sandbox(
    gateway: Gateway, tmp_path: Path, unfinished: tuple[Path, TextIO]
) -> None:
    """`gateway` has made what sandboxes see."""
    state, lock = unfinished
    heard: list[str | None] = []
    waiting, waits = "waiting for another gateway that is preparing runtimes", asyncio.Event()

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message)
        if message == waiting:
            waits.set()

    async with Client(parameters(tmp_path, "--state-dir", str(state), "mcp"), mode="legacy") as client:
        tools = (await client.list_tools()).tools
        resources = (await client.list_resources()).resources
        call = asyncio.create_task(client.call_tool("run_code", {"code": "6 * 7"}, progress_callback=hear))
        await asyncio.wait_for(waits.wait(), SECONDS)
        for folder in (trees_of("python") / "runtimes").iterdir():
            if not folder.name.startswith("."):
                (state / "bubblewrap" / "runtimes" / folder.name).symlink_to(folder)
        fcntl.flock(lock, fcntl.LOCK_UN)
        ran = await call
        templates = (await client.list_resource_templates()).resource_templates

    assert {"run_code", "launchPythonEnvironment"} <= {tool.name for tool in tools}
    assert resources == []
    assert waiting in heard
    assert text_of(ran) == "42"
    assert len(templates) == 2


@pytest.mark.parametrize("how", ["eof", "signal"])
def test_a_host_may_leave_before_there_is_a_sandbox(
    gateway: Gateway, tmp_path: Path, unfinished: tuple[Path, TextIO], how: str
) -> None:
    given = parameters(tmp_path, "--state-dir", str(unfinished[0]), "mcp")
    process = subprocess.Popen(
        [given.command, *given.args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=given.env,
        cwd=tmp_path,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}).encode())
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert b'"result"' in process.stdout.readline()

    if how == "signal":
        process.send_signal(signal.SIGTERM)
        process.wait(SECONDS)
    _, told = process.communicate(timeout=SECONDS)

    assert (process.returncode, told) == (0, b"")


async def test_a_host_is_told_why_there_is_no_sandbox(tmp_path: Path) -> None:
    variables = {"KERNELPOOL_POOLS__PYTHON__RUNTIME": "cobol"}
    given = parameters(tmp_path, "--state-dir", str(tmp_path / "state"), "mcp", **variables)
    async with Client(given) as client:
        for _ in range(2):
            with pytest.raises(MCPError, match="no runtime 'cobol'"):
                await client.call_tool("run_code", {"code": "1"})


def test_a_signal_ends_it_and_its_session(gateway: Gateway, tmp_path: Path) -> None:
    given = parameters(tmp_path, "mcp", **at(gateway))
    process = subprocess.Popen(
        [given.command, *given.args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=given.env, cwd=tmp_path
    )
    assert process.stdin is not None
    assert process.stdout is not None
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    call = {**message, "params": {"name": "run_code", "arguments": {"code": "1"}}}
    process.stdin.write(
        json.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}).encode() + b"\n"
    )
    process.stdin.write(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\n')
    process.stdin.write(json.dumps(call).encode() + b"\n")
    process.stdin.flush()
    process.stdout.readline()
    session = json.loads(process.stdout.readline())["result"]["structuredContent"]["session"]

    process.send_signal(signal.SIGTERM)

    assert process.wait(SECONDS) == 0
    process.stdin.close()
    process.stdout.close()
    until(lambda: gateway.session(session).request("GET", "/session").status_code == 404)


HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


def test_a_gateway_that_is_not_there_is_told_in_a_line(tmp_path: Path) -> None:
    given = parameters(tmp_path, "mcp", KERNELPOOL_URL="http://127.0.0.1:9", KERNELPOOL_TOKEN="x")

    done = subprocess.run([given.command, *given.args], env=given.env, input=b"", capture_output=True, check=False)

    assert done.returncode == 1
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    assert done.stderr.startswith(b"Error: ")
