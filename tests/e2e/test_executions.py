"""Executions over real HTTP in real sandboxes: state, streaming, time, and everything that can go wrong in a cell."""

from __future__ import annotations

import http.client
import json
import signal
import uuid
from typing import Any
from urllib.parse import urlencode

import pytest

from kernelpool.backends.cgroups import CgroupRoot
from tests.e2e.gateways import (
    SECONDS,
    TOKEN,
    VERSION,
    Gateway,
    Session,
    in_background,
    sandbox_processes,
    server_sent,
    until,
)
from tests.extra import extra

needs_memory_limit = pytest.mark.skipif(
    "memory" not in CgroupRoot.open("0").controllers, reason="this user has no memory control group on this machine"
)


def test_calls_share_an_interpreter_and_sessions_do_not(gateway: Gateway, session: Session) -> None:
    other = gateway.session(f"other-{uuid.uuid4().hex}")
    session.run("secret = 'mine'")

    assert session.value("secret") == "mine"
    assert "NameError" in other.run("secret")["result"]["stderr"]
    other.delete()


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("import asyncio\nasync def f(): return 5\nasyncio.run(f())", 5),
        ("import asyncio\nawait asyncio.sleep(0, 7)", 7),
        ("import pkg_resources\n'pip' in [d.project_name for d in pkg_resources.working_set]", True),
        ("import subprocess; subprocess.run(['echo', 'hi'], capture_output=True, text=True).stdout", "hi\n"),
        ("from multiprocessing import Pool\nwith Pool(2) as p: r = p.map(abs, [-1, -2])\nr == [1, 2]", True),
        ("import multiprocessing as m\nwith m.get_context('spawn').Pool(1) as p: r = p.map(abs, [-3])\nr[0]", 3),
        ("from concurrent.futures import ThreadPoolExecutor\nsum(ThreadPoolExecutor(4).map(abs, range(-5, 0)))", 15),
        ("import numpy, pandas, scipy, sklearn, sympy, PIL, openpyxl, requests, seaborn, networkx, lxml; 1", 1),
        ("import os; os.getcwd() + ' ' + os.environ['HOME']", "/mnt/data /mnt/data"),
        ("import sqlite3, ssl, zlib, lzma, bz2, ctypes, curses; 2", 2),
    ],
)
def test_what_generated_code_does_works(same_session: Session, code: str, value: object) -> None:
    assert same_session.value(code) == value


@pytest.mark.parametrize(
    ("code", "mime"),
    [
        ("import pandas as pd; pd.DataFrame({'a': [1]})", "text/html"),
        ("import plotly.express as px; px.line(x=[1, 2], y=[3, 4])", "application/vnd.plotly.v1+json"),
        (
            "import altair, pandas; altair.Chart(pandas.DataFrame({'a': [1]})).mark_point().encode(x='a')",
            "application/vnd.vegalite",
        ),
        ("from PIL import Image; Image.new('RGB', (2, 2))", "image/png"),
        ("from IPython.display import SVG; SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>')", "image/svg+xml"),
        ("from IPython.display import Markdown; Markdown('# hi')", "text/markdown"),
        ("from IPython.display import JSON; JSON({'a': 1})", "application/json"),
        ("from sympy import symbols, init_printing; init_printing(); symbols('x') ** 2", "text/latex"),
        ("import matplotlib; matplotlib.use('Agg'); import matplotlib.pyplot as p; p.plot([1]); p.show()", "image/png"),
    ],
)
def test_rich_outputs_come_with_their_types(same_session: Session, code: str, mime: str) -> None:
    outputs = same_session.run(code)["result"]["outputs"]

    assert any(kind.startswith(mime) for output in outputs for kind in output.get("data", ()))


def test_displays_are_updated_and_cleared_as_in_a_notebook(session: Session) -> None:
    code = """
from IPython.display import display, clear_output
print('gone'); clear_output()
handle = display('0 %', display_id=True)
for n in range(100): handle.update(f'{n + 1} %')
"""
    (output,) = session.run(code)["result"]["outputs"]

    assert output["data"]["text/plain"] == "'100 %'"


def test_a_progress_bar_ends_as_one_line(session: Session) -> None:
    stderr = session.run("from tqdm import tqdm\nfor _ in tqdm(range(1000), mininterval=0): pass")["result"]["stderr"]

    assert stderr.count("\r") == 0
    assert "1000/1000" in stderr
    assert len(stderr.splitlines()) == 1


def test_pip_is_there(session: Session) -> None:
    assert session.run("!pip --version")["result"]["stdout"].startswith("pip ")


# --- submitted, repeated, streamed


def test_an_asynchronous_execution_is_polled(session: Session) -> None:
    first = session.submit("import time; time.sleep(0.3); print('done')", "job-1")

    until(lambda: session.poll("job-1")["status"] not in ("NotStarted", "Running"))

    assert first["status"] in ("NotStarted", "Running")
    assert session.poll("job-1")["result"]["stdout"] == "done\n"


def test_an_operation_id_runs_once_whoever_sends_it(session: Session) -> None:
    code, headers = "count = globals().get('count', 0) + 1; import time; time.sleep(0.5); count", {"operation-id": "op"}
    joins = [in_background(lambda: session.value(code, headers=headers)) for _ in range(3)]

    assert [join() for join in joins] == [1, 1, 1]
    assert session.value("count") == 1


def test_a_stream_tells_as_it_happens_and_resumes_without_a_gap(session: Session) -> None:
    session.value("1")
    code = "import os, time\nprint('one', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('two')"
    headers = {"Accept": "text/event-stream", "operation-id": "stream"}
    response = session.request("POST", "/executions", json={"code": code}, headers=headers, stream=True)
    seen, _, data = next(event for event in server_sent(response) if event[1] == "output")
    response.close()
    session.upload("go", b"")

    headers["Last-Event-ID"] = seen
    resumed = list(server_sent(session.request("GET", "/executions/stream", headers=headers, stream=True)))

    assert data["text"] == "one\n"
    assert [data["text"] for _, event, data in resumed if event == "output"] == ["two\n"]
    assert resumed[-1][1] == "done"
    assert resumed[-1][2] == session.poll("stream")


def test_calls_queue_in_order(session: Session) -> None:
    session.submit("order = []; import time; time.sleep(0.5)", "first")
    for number in range(8):
        session.submit(f"order.append({number})", f"n{number}")

    assert session.value("order == list(range(8))") is True


def test_too_many_waiting_calls_are_refused(session: Session) -> None:
    session.submit("import time; time.sleep(60)", "first")
    until(lambda: session.poll("first")["status"] == "Running")
    for number in range(16):
        session.submit("1", f"n{number}")

    refused = session.request("POST", "/executions", json={"code": "1"})

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "ExecutionQueueFull")
    assert "Retry-After" in refused.headers


# --- time


def test_a_timeout_keeps_variables_and_output(session: Session) -> None:
    session.run("1 / 0")  # what shows an error is loaded: an interrupt has few seconds

    answer = session.run("x = 1\nprint('begun', flush=True)\nwhile True: pass", timeoutInSeconds=5)

    result = answer["result"]
    assert (answer["status"], result["cause"], result["interrupted"]) == ("Failed", "timed_out", True)
    assert (result["stdout"], result["kernelRestarted"]) == ("begun\n", False)
    assert session.value("x") == 1


def test_a_timeout_that_is_ignored_restarts_the_kernel_and_says_so(session: Session) -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"

    result = session.run(code, timeoutInSeconds=5)["result"]
    after = session.run("print('alive')")["result"]

    assert (result["cause"], result["kernelRestarted"]) == ("timed_out", True)
    assert result["stateLost"]["during"]
    assert after["stateLost"]["before"]
    assert after["stdout"] == "alive\n"


def test_a_client_that_leaves_cancels_what_it_was_waiting_for(session: Session) -> None:
    session.value("x = 1; x")
    session.run("1 / 0")  # what shows an error is loaded: an interrupt has few seconds
    client = http.client.HTTPConnection("127.0.0.1", session.gateway.port, timeout=SECONDS)
    query = urlencode({"api-version": VERSION, "identifier": session.identifier})
    body = json.dumps({"code": "open('begun', 'w').close()\nwhile True: pass"})
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json", "operation-id": "left"}
    client.request("POST", f"/pools/{session.gateway.name}/executions?{query}", body, headers)
    until(lambda: "begun" in session.names())
    client.close()

    after = session.run("x")

    assert after["result"]["executionResult"] == 1
    assert after["result"]["stateLost"] == {"before": None, "during": None}
    assert session.poll("left")["status"] == "Canceled"


# --- what kills a kernel


@pytest.mark.parametrize(
    "code",
    [
        "import os; os._exit(0)",
        "import ctypes; ctypes.string_at(0)",
        pytest.param("import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()", marks=needs_memory_limit),
        pytest.param("b = bytearray(4 << 30)", marks=needs_memory_limit),
        pytest.param("x = [bytearray(b'x' * (64 << 20)) for _ in range(64)]", marks=needs_memory_limit),
        pytest.param(
            "import mmap; m = mmap.mmap(-1, 3 << 30)\nfor i in range(0, 3 << 30, 4096): m[i] = 1",
            marks=needs_memory_limit,
        ),
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_a_kernel_that_dies_is_told_of_and_replaced(session: Session, code: str) -> None:
    session.value("x = 1; open('kept', 'w').close()")
    # Nothing sends what was written in the millisecond before a process is killed; before one exits, it is sent.
    waits = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\n" if "_exit" not in code else ""
    body = {"code": f"print('before', flush=True)\n{waits}{code}"}

    headers = {"Accept": "text/event-stream"}
    told = []
    for each in server_sent(session.request("POST", "/executions", json=body, headers=headers, stream=True)):
        told.append(each)
        if each[1] == "output":
            session.upload("go", b"")
    result = told[-1][2]["result"]
    after = session.run("import os; print('x' in globals(), os.path.exists('kept'))")["result"]

    assert result["cause"] == "kernel_died"
    assert result["stdout"] == "before\n"
    assert result["stateLost"]["during"]
    assert after["stateLost"]["before"]
    assert after["stdout"] == "False True\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_session_whose_agent_is_gone_is_lost_and_replaced(session: Session, number: signal.Signals) -> None:
    session.value("x = 1")
    lost = session.sandbox

    answer = session.request("POST", "/executions", json={"code": f"import os; os.kill(os.getppid(), {int(number)})"})
    after = session.run("'x' in globals()")["result"]

    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "SandboxLost")
    assert (session.sandbox != lost, after["executionResult"]) == (True, False)
    assert after["stateLost"]["before"]
    until(lambda: not sandbox_processes(lost))


# --- output


@pytest.mark.parametrize("megabytes", [200, pytest.param(1000, marks=extra)])
def test_a_great_deal_of_output_is_cut_and_flagged_and_costs_the_gateway_nothing(
    gateway: Gateway, session: Session, megabytes: int
) -> None:
    session.value("1")
    before = gateway.memory

    code = f"print('begin')\nfor _ in range({megabytes}): print('x' * 10**6)\nprint('end')"
    answer = session.run(code, timeoutInSeconds=200)

    result = answer["result"]
    assert answer["status"] == "Succeeded", result["stderr"]
    assert result["stdout"].startswith("begin\n")
    assert result["stdout"].endswith("\nend\n")
    assert result["truncated"]["stdout"] + result["truncated"]["outputs"] > (megabytes - 1) * 10**6
    assert gateway.memory - before < 64 << 20


TAMPERING = {
    "a forged idle": "send('status', {'execution_state': 'idle'})",
    "an idle, then output": "send('status', {'execution_state': 'idle'}); print('mine', flush=True)",
    "a forged reply": "send('execute_reply', {'status': 'ok', 'execution_count': -5})",
    "text for another call": "send('stream', {'name': 'stdout', 'text': 'forged'},"
    " {'header': {'msg_id': 'of-another'}})",
    "a type from the future": "send('x_future', {'a': 1})",
    "frames that are none": "raw(b'x', b'<IDS|MSG>'); raw(b'')\n"
    "raw(b'x', b'<IDS|MSG>', b'bad', b'{}', b'{}', b'{}', b'{}')",
    "a signed abyss": "abyss = b'[' * 200_000 + b']' * 200_000\n"
    "parts = [kernel.session.pack(kernel.session.msg_header('stream')), b'{}', b'{}', abyss]\n"
    "raw(b'x', b'<IDS|MSG>', kernel.session.sign(parts), *parts)",
    "a frame of 300 MB": "raw(b'x', b'<IDS|MSG>', b'x' * (300 << 20))",
    "an absurd count": "get_ipython().execution_count = 2**63",
    "deleted sockets": "import shutil, glob\nfor path in glob.glob('/tmp/k*'): shutil.rmtree(path)",
    "no streams": "import sys; sys.stdout = sys.stderr = sys.displayhook = None",
    "a closed stdin": "import os; os.close(0)",
    "a comm flood": "from comm import create_comm\nfor _ in range(1000): create_comm(target_name='x', data='x' * 1000)",
}
TOOLS = """
kernel = get_ipython().kernel
def send(kind, content, parent=None):
    kernel.session.send(kernel.iopub_socket, kind, content, parent=parent or kernel.get_parent())
def raw(*frames): kernel.iopub_socket.send_multipart(list(frames))
"""


@pytest.mark.parametrize("what", sorted(TAMPERING))
def test_tampering_with_the_kernels_messages_harms_no_call(session: Session, what: str) -> None:
    session.run("x = 1")
    tampered = session.run(TOOLS + TAMPERING[what])
    after = session.run("print('mine'); x")

    assert tampered["status"] == "Succeeded", tampered["result"]["stderr"]
    assert "forged" not in tampered["result"]["stdout"]
    assert (after["result"]["stdout"], after["result"]["executionResult"]) == ("mine\n", 1)
    assert after["result"]["stateLost"]["before"] is None


@pytest.mark.parametrize(
    "code",
    [
        "import ipykernel.kernelbase as k, IPython; k.Kernel.execute_request = None; IPython.get_ipython = None",
        "import os; os.closerange(3, 4096)",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    ],
)
def test_a_kernel_that_was_broken_is_replaced_and_that_is_told(session: Session, code: str) -> None:
    # The last has all the time that it wants: whichever of the others was lost, it is well again.
    answers = [*(session.run(each, timeoutInSeconds=5) for each in (code, "print(5)")), session.run("print(5)")]

    results = [answer["result"] for answer in answers]
    assert results[-1]["stdout"] == "5\n"
    (lost,) = [result for result in results if result["stateLost"]["during"]]
    # One that lost its sockets may fall over by itself before its time is up.
    assert lost["cause"] in ("timed_out", "kernel_died")
    assert lost["kernelRestarted"] == (lost["cause"] == "timed_out")


def test_input_is_refused_at_once(session: Session) -> None:
    for code in ("input('name? ')", "import getpass; getpass.getpass()"):
        answer = session.run(code)
        assert answer["status"] == "Failed"
        assert "does not support input" in answer["result"]["stderr"]


def test_a_thread_that_prints_after_its_call_leaks_into_no_other(session: Session) -> None:
    code = "import threading, time\ngo = threading.Event()\ndef late(): go.wait(); print('late', flush=True)\n"
    session.submit(code + "t = threading.Thread(target=late); t.start()", "starter")

    second: dict[str, Any] = session.run("go.set(); t.join(); print('second')")

    assert second["result"]["stdout"] == "second\n"
    until(lambda: session.poll("starter")["result"]["stdout"] == "late\n")


@pytest.mark.parametrize("id", ["%C3%A4", "..%2Fstatus", "a%2Fcancel", "a%3Fb", "a%20b"])
def test_an_id_that_no_execution_can_have_reaches_no_agent(same_session: Session, id: str) -> None:
    same_session.run("1")

    for method in ("GET", "DELETE"):
        answer = same_session.request(method, f"/executions/{id}")
        assert (answer.status_code, answer.headers["x-ms-error-code"]) == (404, "ExecutionNotFound")
