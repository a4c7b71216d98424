"""Agents' libraries that have their code run by a Jupyter server, unmodified.

They are of the extra `clients`, as those of test_clients.py. What they send is also written out in
test_jupyter_clients.py, for those who have not installed them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.gateways import TOKEN, Gateway
from tests.e2e.jupyter import Server
from tests.e2e.test_clients import client

PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nprint('drawn')"


@pytest.fixture(autouse=True)
def ends_its_kernels(gateway: Gateway) -> Iterator[Server]:
    """And has one ready, for clients that wait for a second."""
    gateway.wait_ready()
    server = Server(gateway)
    before = {kernel["id"] for kernel in server.ask("GET", "/api/kernels")}
    yield server
    for kernel in server.ask("GET", "/api/kernels"):
        if kernel["id"] not in before:
            server.end(kernel)


# --- smolagents: its DockerExecutor, but for the container


@pytest.fixture
def smolagents(gateway: Gateway) -> Any:
    remote, monitoring = client("smolagents.remote_executors"), client("smolagents.monitoring")

    class Executor(remote.DockerExecutor):  # type: ignore[misc, name-defined]
        def __init__(self, address: str, token: str) -> None:
            logger = monitoring.AgentLogger(level=monitoring.LogLevel.OFF)
            remote.RemotePythonExecutor.__init__(self, [], logger)
            self.base_url = f"http://{address}"
            self._wait_for_server(token)
            self.kernel_id = remote._create_kernel_http(f"{self.base_url}/api/kernels?token={token}", self.logger)
            self.ws_url = f"ws://{address}/api/kernels/{self.kernel_id}/channels?token={token}"

    return Executor(f"127.0.0.1:{gateway.port}", TOKEN)


def test_smolagents_keeps_variables_and_sees_errors(smolagents: Any) -> None:
    smolagents.send_variables({"sent": {"a": (1, 2), "b": {3}}})
    first = smolagents("x = 41\nprint('written')\nx + 1")
    second = smolagents("sent['a'], x")
    with pytest.raises(client("smolagents").AgentError, match="ZeroDivisionError"):
        smolagents("1 / 0")
    installed = smolagents("!echo of the shell")

    assert (first.output, first.logs, first.is_final_answer) == ("42", "written\n", False)
    assert second.output == "((1, 2), 41)"
    assert installed.logs.splitlines() == ["of the shell"]


def test_smolagents_hears_of_each_run_what_is_its_own(smolagents: Any) -> None:
    """Each has a WebSocket of its own, which it leaves before the reply has come."""
    runs = [smolagents(f"print({n})\n{n}") for n in range(30)]

    assert [(run.logs, run.output) for run in runs] == [(f"{n}\n", str(n)) for n in range(30)]


def test_an_agent_of_smolagents_calls_its_tools_and_answers_from_here(smolagents: Any) -> None:
    package = client("smolagents")
    steps = iter(["numbers = [double(n) for n in (1, 20)]\nprint(numbers)", "final_answer({'sum': sum(numbers)})"])
    asked: list[str] = []

    class Model(package.Model):  # type: ignore[misc, name-defined]
        def generate(self, messages: Any, **rest: Any) -> Any:
            asked.append(str(messages[-1].content))
            text = f"Thought: go on.\n<code>\n{next(steps)}\n</code>"
            return package.ChatMessage(role=package.MessageRole.ASSISTANT, content=text)

    tool = package.tool

    @tool  # type: ignore[untyped-decorator]
    def double(n: int) -> int:
        """Doubles.

        Args:
            n: Of what.
        """
        return n * 2

    agent = package.CodeAgent(tools=[double], model=Model(), executor=smolagents, verbosity_level=0)
    answer = agent.run("What is the sum?")

    assert answer == {"sum": 42}
    assert "[2, 40]" in asked[1]


# --- autogen: its executor for a Jupyter server, which only its name ties to Docker


@pytest.fixture
async def autogen(gateway: Gateway, tmp_path: Path) -> AsyncIterator[Any]:
    package = client("autogen_ext.code_executors.docker_jupyter")
    server = client("autogen_ext.code_executors.docker_jupyter._jupyter_server")
    at = server.JupyterConnectionInfo(host="127.0.0.1", use_https=False, port=gateway.port, token=TOKEN)
    options = {"kernel_name": "python", "timeout": 120, "output_dir": tmp_path}
    async with package.DockerJupyterCodeExecutor(at, **options) as executor:
        yield executor


async def run(executor: Any, *codes: str, token: Any = None) -> Any:
    core, block = client("autogen_core"), client("autogen_core.code_executor").CodeBlock
    blocks = [block(code=code, language="python") for code in codes]
    return await executor.execute_code_blocks(blocks, token or core.CancellationToken())


async def test_autogen_keeps_variables_until_it_restarts(autogen: Any) -> None:
    first = await run(autogen, "x = 41\nprint('written')", "x + 1")
    failed = await run(autogen, "print('before')", "1 / 0", "print('never')")
    await autogen.restart()
    restarted = await run(autogen, "'x' in globals()")

    assert (first.exit_code, first.output) == (0, "written\n\n42")
    assert failed.exit_code == 1
    assert "before" in failed.output
    assert "ERROR: ZeroDivisionError" in failed.output
    assert "never" not in failed.output
    assert (restarted.exit_code, restarted.output) == (0, "False")


async def test_autogen_saves_figures_and_pages(autogen: Any) -> None:
    drawn = await run(autogen, PLOT, "import pandas as pd\npd.DataFrame({'a': [1]})")

    assert drawn.exit_code == 0
    assert [path.suffix for path in drawn.output_files] == [".png", ".html"]
    assert drawn.output_files[0].read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "<table" in drawn.output_files[1].read_text()


async def test_autogen_stops_waiting_and_ends_the_session(autogen: Any, ends_its_kernels: Server) -> None:
    token = client("autogen_core").CancellationToken()
    asyncio.get_running_loop().call_later(1, token.cancel)
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await run(autogen, "while True: pass", token=token)
    took = time.monotonic() - began
    id = autogen._kernel_id
    await autogen.stop()

    assert took < 60  # and not until the code is out of time
    left = await asyncio.to_thread(ends_its_kernels.ask, "GET", "/api/kernels")
    assert id not in [kernel["id"] for kernel in left]
    autogen._kernel_id = None  # it would be ended a second time
