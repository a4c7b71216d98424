"""Jupyter's own clients against the gateway, unmodified, each in a process of its own as its users run it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest
import requests
import websocket

from kernelpool.protocol.framing import V1
from tests.e2e.conftest import Make
from tests.e2e.gateways import SECONDS, STATE, TOKEN, Gateway, until
from tests.e2e.jupyter import Client, Json, Server, text_of
from tests.extra import extra
from tests.npm import npm_folder

GATEWAY_MANAGER = "jupyter_server.gateway.managers.GatewayKernelManager"
SERVICES = "7.6.6"
"""Of @jupyterlab/services."""


@pytest.fixture(autouse=True)
def warm(gateway: Gateway) -> None:
    """Clients wait for a kernel as long as they like, and no longer."""
    gateway.wait_ready()


@pytest.fixture
def server(gateway: Gateway) -> Server:
    return Server(gateway)


@pytest.fixture
def base(server: Server) -> str:
    """With the token in its path, for clients that send none on the WebSocket."""
    return f"http://127.0.0.1:{server.gateway.port}/k/{TOKEN}"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return environment_in(tmp_path)


def environment_in(folder: Path) -> dict[str, str]:
    """Nothing of the developer's: neither configuration nor kernels nor a home."""
    names = ("config", "data", "runtime")
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        **{f"JUPYTER_{name.upper()}_DIR": str(folder / name) for name in names},
        "PYTHONDONTWRITEBYTECODE": "1",
        "REQUEST_TIMEOUT": "60",  # jupyter_kernel_client's, also of code
    }


def run(program: str, environment: dict[str, str], folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=4 * SECONDS,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


def notebook(folder: Path, *sources: str) -> Path:
    """As from elsewhere: its kernelspec is no pool of ours."""
    cells: list[Json] = [
        {
            "id": f"c{number}",
            "cell_type": "code",
            "source": source,
            "metadata": {},
            "outputs": [],
            "execution_count": None,
        }
        for number, source in enumerate(sources)
    ]
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernelspec}, "cells": cells}
    path = folder / "in.ipynb"
    path.write_text(json.dumps(made))
    return path


NBCLIENT = f"""
import sys, nbformat
from jupyter_server.gateway.gateway_client import GatewayClient
from nbclient import NotebookClient
GatewayClient.instance().url = sys.argv[1]
notebook = nbformat.read(sys.argv[2], 4)
NotebookClient(notebook, kernel_manager_class={GATEWAY_MANAGER!r}, timeout=60, iopub_timeout=60).execute()
nbformat.write(notebook, sys.argv[3])
"""

PAPERMILL = f"""
import sys, papermill
from jupyter_server.gateway.gateway_client import GatewayClient
GatewayClient.instance().url = sys.argv[1]
papermill.execute_notebook(
    sys.argv[2], sys.argv[3], parameters={{"a": 40}}, progress_bar=False, kernel_manager_class={GATEWAY_MANAGER!r},
    iopub_timeout=60,
)
"""


def outputs(path: Path) -> list[Json]:
    made = json.loads(path.read_text())
    nbformat.validate(made)
    return [output for cell in made["cells"] for output in cell.get("outputs", [])]


def test_nbclient_executes_a_notebook(server: Server, base: str, environment: dict[str, str], tmp_path: Path) -> None:
    source = notebook(
        tmp_path, "x = 41", "print(x + 1)", "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()"
    )

    run(NBCLIENT, environment, tmp_path, base, str(source), "out.ipynb")

    made = outputs(tmp_path / "out.ipynb")
    assert "".join(piece for output in made for piece in output.get("text", ())) == "42\n"
    assert "image/png" in made[-1]["data"]


def test_nbclient_runs_in_a_session_of_rest_when_it_is_told_to(
    gateway: Gateway, base: str, environment: dict[str, str], tmp_path: Path
) -> None:
    session = gateway.session(f"notebook-{uuid.uuid4().hex}")
    session.run("shared = 'of rest'")
    environment["KERNEL_KERNELPOOL_IDENTIFIER"] = session.identifier

    run(NBCLIENT, environment, tmp_path, base, str(notebook(tmp_path, "shared")), "out.ipynb")

    [result] = outputs(tmp_path / "out.ipynb")
    assert result["data"]["text/plain"] == ["'of rest'"]


def test_papermill_executes_with_parameters(
    server: Server, base: str, environment: dict[str, str], tmp_path: Path
) -> None:
    run(PAPERMILL, environment, tmp_path, base, str(notebook(tmp_path, "a + 2")), "out.ipynb")

    [result] = outputs(tmp_path / "out.ipynb")
    assert result["data"]["text/plain"] == ["42"]


KERNEL_CLIENT = """
import sys
from jupyter_kernel_client import JupyterKernelClient
with JupyterKernelClient(server_url=sys.argv[1], token=sys.argv[2]) as kernel:
    kernel.execute("x = 41")
    print(kernel.execute("x + 1")["outputs"][0]["data"]["text/plain"])
    kernel.restart()
    print(kernel.execute("'x' in globals()")["outputs"][0]["data"]["text/plain"])
"""


@pytest.mark.parametrize("path", ["", "/pools/python/jupyter"])
def test_jupyter_kernel_client(server: Server, environment: dict[str, str], tmp_path: Path, path: str) -> None:
    url = f"http://127.0.0.1:{server.gateway.port}{path}"

    assert run(KERNEL_CLIENT, environment, tmp_path, url, TOKEN) == "42\nFalse\n"


# --- jupyter_server, which has its kernels here


class Lab:
    """A jupyter_server with --gateway-url, and its own API."""

    def __init__(self, gateway_url: str, environment: dict[str, str], folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.log = folder / "server.log"
        arguments = [
            *(
                "-m",
                "jupyter_server",
                f"--port={self.port}",
                "--no-browser",
                "--allow-root",
                f"--notebook-dir={folder}",
            ),
            *(f"--gateway-url={gateway_url}", f"--GatewayClient.auth_token={TOKEN}", "--IdentityProvider.token=local"),
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments], env=environment, cwd=folder, stdout=log, stderr=log
            )

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        response = requests.request(
            method,
            f"http://127.0.0.1:{self.port}{path}",
            json=body,
            headers={"Authorization": "token local"},
            timeout=SECONDS,
        )
        assert response.ok, response.text
        return response.json() if response.content else None

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/api", timeout=SECONDS).ok
        except requests.ConnectionError:
            return False

    @contextmanager
    def connected(self, kernel: str) -> Iterator[Client]:
        url = f"ws://127.0.0.1:{self.port}/api/kernels/{kernel}/channels?session_id=one"
        made = websocket.create_connection(url, timeout=SECONDS, header={"Authorization": "token local"})
        try:
            yield Client(made)
        finally:
            made.close()


@pytest.fixture(scope="module", params=["", "/pools/python/jupyter"])
def lab(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    made = Lab(f"http://127.0.0.1:{gateway.port}{request.param}", environment_in(folder), folder)
    until(made.is_up, seconds=2 * SECONDS)
    made.ask("GET", "/api/kernelspecs")  # the first answer names its own default, before it learns ours
    yield made
    made.process.terminate()
    made.process.wait(SECONDS)


def test_jupyter_server_has_its_kernels_here(gateway: Gateway, lab: Lab) -> None:
    body = {"path": "a.ipynb", "name": "", "type": "notebook", "kernel": {"name": "python"}}
    session = lab.ask("POST", "/api/sessions", body)
    id = session["kernel"]["id"]

    with lab.connected(id) as client:
        client.run("x = 41")
        assert client.value("x + 1") == "42"
        busy = client.execute("print('runs', flush=True)\nwhile True: pass")
        client.until("stream", busy)
        lab.ask("POST", f"/api/kernels/{id}/interrupt")
        assert "KeyboardInterrupt" in str(client.finish(busy))
        lab.ask("POST", f"/api/kernels/{id}/restart")
        assert client.value("'x' in globals()") == "False"
    [listed] = [each for each in lab.ask("GET", "/api/kernels") if each["id"] == id]
    specs = lab.ask("GET", "/api/kernelspecs")
    logo = specs["kernelspecs"]["python"]["resources"]["logo-svg"]
    local = {"Authorization": "token local"}
    picture = requests.get(f"http://127.0.0.1:{lab.port}{logo}", headers=local, timeout=SECONDS).content
    lab.ask("DELETE", f"/api/sessions/{session['id']}")

    assert specs["default"] == listed["name"] == "python"
    assert list(specs["kernelspecs"]) == ["python"]
    assert picture.startswith(b"<svg")
    until(lambda: id not in [each["id"] for each in Server(gateway).ask("GET", "/api/kernels")])
    wrong = [line for line in lab.log.read_text().splitlines() if line.startswith(("[E", "Traceback"))]
    # Tornado looks for the etag of the logo in a file of that name.
    assert not [line for line in wrong if "Could not open static file" not in line]


def test_a_message_with_buffers_does_not_cost_jupyter_server_its_connection(lab: Lab) -> None:
    """Its client reads every frame as text: ipywidgets#3798."""
    kernel = lab.ask("POST", "/api/kernels", {"name": "python"})
    with lab.connected(kernel["id"]) as client:
        client.run("from comm import create_comm\nc = create_comm('t', data={}, buffers=[b'\\xff' * 100])")

        assert client.value("1 + 1") == "2"
    lab.ask("DELETE", f"/api/kernels/{kernel['id']}")


def test_more_than_jupyter_server_takes_at_once_ends_no_cell(lab: Lab) -> None:
    kernel = lab.ask("POST", "/api/kernels", {"name": "python"})
    with lab.connected(kernel["id"]) as client:
        seen = client.run("from IPython.display import display\ndisplay({'text/plain': 'x' * 12_000_000}, raw=True)")

        assert "bytes of output left out" in str(seen)
    lab.ask("DELETE", f"/api/kernels/{kernel['id']}")


# --- what agents' libraries send, as it was recorded: they are too heavy to be installed for it


class Raw:
    """Sends what it is told to, and nothing that a well-behaved client would add."""

    def __init__(self, server: Server) -> None:
        self.http = server.url
        self.ws = server.url.replace("http", "ws", 1)

    def execute(self, socket: websocket.WebSocket, message: Json) -> list[Json]:
        """As both libraries do: everything until the idle of it, by `msg["msg_type"]`."""
        socket.send(json.dumps(message))
        seen: list[Json] = []
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            answer = json.loads(socket.recv())
            if answer["parent_header"].get("msg_id") != message["header"]["msg_id"]:
                continue
            seen.append(answer)
            if answer["msg_type"] == "status" and answer["content"]["execution_state"] == "idle":
                return seen
        raise TimeoutError


def test_as_smolagents(server: Server) -> None:
    """Everything by `?token=`, a WebSocket for each run, no channel, no date, and gone at the idle."""
    raw = Raw(server)
    created = requests.post(f"{raw.http}/api/kernels", params={"token": TOKEN}, timeout=SECONDS)
    assert created.status_code == 201
    url = f"{raw.ws}/api/kernels/{created.json()['id']}/channels?token={TOKEN}"

    told = []
    for code in ("x = 41", "print(x + 1)"):
        socket = websocket.create_connection(url, timeout=SECONDS)
        header = {"msg_id": str(uuid.uuid4()), "username": "anonymous", "session": str(uuid.uuid4())}
        header |= {"msg_type": "execute_request", "version": "5.0"}
        content: Json = {"code": code, "silent": False, "store_history": True, "user_expressions": {}}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        told += raw.execute(socket, message)
        socket.close()
    server.end(created.json())

    assert text_of(told) == "42\n"


def test_as_autogen(server: Server) -> None:
    raw, headers = Raw(server), {"Authorization": f"token {TOKEN}"}
    specs = requests.get(f"{raw.http}/api/kernelspecs", headers=headers, timeout=SECONDS).json()
    octets = {**headers, "Content-Type": "application/octet-stream"}
    name = {"name": next(iter(specs["kernelspecs"]))}
    kernel = requests.post(f"{raw.http}/api/kernels", headers=headers, json=name, timeout=SECONDS).json()
    url = f"{raw.ws}/api/kernels/{kernel['id']}/channels"
    socket = websocket.create_connection(url, timeout=SECONDS, header=headers)
    header = {"msg_id": uuid.uuid4().hex, "username": "autogen", "session": "", "msg_type": "execute_request"}
    header |= {"version": "5.0", "date": "2026-11-22T21:30:02.5+00:00"}
    content: Json = {"code": "print(6 * 7)", "silent": False, "store_history": True, "stop_on_error": True}
    message: Json = {"header": header, "parent_header": {}, "channel": "shell", "content": content, "metadata": {}}

    told = raw.execute(socket, {**message, "buffers": {}})
    restarted = requests.post(f"{raw.http}/api/kernels/{kernel['id']}/restart", headers=octets, timeout=SECONDS)
    socket.close()
    ended = requests.delete(f"{raw.http}/api/kernels/{kernel['id']}", headers=headers, timeout=SECONDS)

    assert text_of(told) == "42\n"
    assert (restarted.status_code, ended.status_code) == (200, 204)
    assert restarted.headers["Content-Type"].startswith("application/json")


PUBLIC_SUITE = """\
import sys, unittest
import jupyter_kernel_test
from jupyter_kernel_client.manager import KernelHttpManager

url, token = sys.argv[1:]


class Suite(jupyter_kernel_test.KernelTests):
    language_name, file_extension = "python", ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('to stderr', file=sys.stderr)"
    code_stdin = "input('> ')"
    code_generate_error = "raise ValueError"
    code_execute_result = ({"code": "6 * 7", "result": "42"},)
    code_display_data = ({"code": "from IPython.display import HTML; display(HTML('<b>'))", "mime": "text/html"},)
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"
    code_page_something = "zip?"
    code_history_pattern = "6?*?7*"
    supported_history_operations = ("tail", "range", "search")
    completion_samples = ({"text": "zi", "matches": {"zip"}},)
    complete_code_samples = ("1", "print('x')")
    incomplete_code_samples = ("def f(x):",)
    invalid_code_samples = ("import = 7q",)

    @classmethod
    def setUpClass(cls):
        cls.km = KernelHttpManager(server_url=url, token=token)
        cls.km.start_kernel(name="python")
        cls.kc = cls.km.client
        cls.kc.start_channels()
        cls.kc.wait_for_ready(timeout=60)

    @classmethod
    def tearDownClass(cls):
        cls.km.shutdown_kernel()
        cls.kc.stop_channels()


result = unittest.TestResult()
unittest.defaultTestLoader.loadTestsFromTestCase(Suite).run(result)
print(result.testsRun, len(result.skipped), result.skipped)
sys.exit("\\n".join(f"{test}\\n{trace}" for test, trace in result.failures + result.errors) or 0)
"""


@extra
def test_the_public_test_suite_for_kernels_passes_over_the_gateway(
    server: Server, environment: dict[str, str], tmp_path: Path
) -> None:
    said = run(PUBLIC_SUITE, environment, tmp_path, f"http://127.0.0.1:{server.gateway.port}", TOKEN)

    assert int(said.split()[0]) >= 12
    assert int(said.split()[1]) <= 2, said


# --- @jupyterlab/services: what JupyterLab in a browser and VS Code have kernels with


def services(script: str) -> list[str]:
    folder = npm_folder(STATE.parent / f"{STATE.name}-npm", "@jupyterlab/services", SERVICES)
    return ["node", str(shutil.copy(Path(__file__).with_name(script), folder))]


@pytest.fixture(scope="module")
def seen(gateway: Gateway) -> Any:
    """Of everything that the client does, in one go: each test looks at a part."""
    command = [*services("jupyter_client.mjs"), f"http://127.0.0.1:{gateway.port}", TOKEN]
    done = subprocess.run(command, capture_output=True, timeout=4 * SECONDS, check=False)
    assert done.returncode == 0, done.stdout.decode()[-3000:] + done.stderr.decode()[-6000:]
    return json.loads(done.stdout)


def test_jupyterlab_services_starts_a_session_of_the_default_pool(seen: Any) -> None:
    assert seen["specs"] == {"default": "python", "names": ["python"]}
    assert seen["session"] == {"path": seen["path"], "protocol": V1, "subshells": True}
    assert seen["language"] == "python"


def test_jupyterlab_services_runs_cells(seen: Any) -> None:
    assert (seen["first"]["text"], seen["first"]["result"], seen["first"]["execution_count"]) == ("written\n", "42", 1)
    assert (seen["failed"]["status"], seen["failed"]["ename"]) == ("error", "ZeroDivisionError")
    assert (seen["stdin"]["status"], seen["stdin"]["result"]) == ("ok", "'Hello Ada'")
    assert seen["completed"] == [".bit_length"]


def test_jupyterlab_services_has_comms_with_buffers_while_a_cell_runs(seen: Any) -> None:
    assert seen["listening"]["result"] == "['00ff01', '0102fe']"
    assert seen["echo"] == {"data": {"at": "message"}, "buffers": ["fe0201"], "subshell": True}
    assert seen["offered"] == {"data": {"n": 1}, "buffers": ["ff00", "000000"]}


def test_jupyterlab_services_looks_into_a_busy_kernel_and_interrupts_it(seen: Any) -> None:
    assert seen["beside"]["result"] == "42"
    assert (seen["subshells"], seen["deleted"]) == (True, "ok")
    assert (seen["interrupted"]["status"], seen["interrupted"]["ename"]) == ("error", "KeyboardInterrupt")


def test_jupyterlab_services_misses_nothing_when_its_connection_breaks(seen: Any) -> None:
    """What arrived in the last moments may come twice."""
    told = [int(line) for line in seen["reconnected"]["text"].split()]

    assert sorted(set(told)) == list(range(150))
    assert sorted(set(seen["reconnected"]["counted"])) == list(range(150))
    assert seen["reconnected"]["result"] == "'said'"


def test_jupyterlab_services_debugs_a_cell(seen: Any) -> None:
    debugged = seen["debugged"]
    assert (debugged["breakpoints"], debugged["frame"]) == ([True], ["double", 3])
    assert ["twice", "42"] in debugged["variables"]
    assert (debugged["cell"]["status"], debugged["cell"]["text"]) == ("ok", "42\n")


def test_jupyterlab_services_sees_ends_as_what_they_are(seen: Any) -> None:
    """It said so at the ends that it awaited: autorestarting, dead."""
    assert (seen["restarted"]["result"], seen["restarted"]["execution_count"]) == ("False", 1)
    assert seen["died"]["result"] == "42"
    assert seen["running"] == [f"{seen['path']}-moved"]
    assert not set(seen["ids"]) & set(seen["left"])


def test_jupyterlab_services_finds_nothing_to_complain_of(seen: Any) -> None:
    assert [each for each in seen["complaints"] if not each.startswith("Connection lost, reconnecting")] == []


@extra
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_jupyterlab_services_comes_back_to_its_cell_when_the_gateway_does(
    make_gateway: Make, how: signal.Signals
) -> None:
    gateway = make_gateway(ready=1)
    gateway.wait_warm()
    command = [*services("jupyter_waiting_client.mjs"), f"{gateway.endpoint}/jupyter", TOKEN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "runs\n"
        gateway.signal(how)
        gateway.wait()
        gateway.start()
        [kernel] = Server(gateway).ask("GET", "/api/kernels")
        session = gateway.session(kernel["identifier"])
        session.upload("go", b"")
        try:
            said, _ = waiting.communicate(timeout=2 * SECONDS)
        finally:
            waiting.kill()
    session.delete()

    # What came just before the gateway was killed is told again.
    assert said.removeprefix("runs\n") == "ends\n42"
