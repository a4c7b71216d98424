"""Real kernels through the gateway's Jupyter surface, over raw sockets: what the protocol promises to clients."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import websocket

from tests.e2e.conftest import Make
from tests.e2e.gateways import Gateway, Session, in_background, sandbox_processes, until
from tests.e2e.jupyter import Client, Json, Server, kinds, parent_of, text_of
from tests.extra import extra


@pytest.fixture
def server(gateway: Gateway) -> Server:
    return Server(gateway)


@pytest.fixture
def kernel(server: Server) -> Iterator[Json]:
    with server.kernel() as kernel:
        yield kernel


# What jupyter_server, nbclient and jupyter-kernel-client speak in their own tests is the older framing.
@pytest.fixture(params=["v1", pytest.param("legacy", marks=extra)])
def client(server: Server, kernel: Json, request: pytest.FixtureRequest) -> Iterator[Client]:
    with server.connected(kernel, legacy=request.param == "legacy", session_id="mine") as client:
        yield client


# --- what a cell does


def test_a_cell_is_told_from_its_beginning_to_its_end(client: Client) -> None:
    seen = client.run("import sys\nprint('out')\nprint('err', file=sys.stderr)\n1 + 1")

    # A text may come in pieces: the kernel sends what it has every now and then.
    assert sorted(kind for kind in kinds(seen) if kind != "stream") == sorted(
        ["status", "execute_input", "execute_result", "execute_reply", "status"]
    )
    assert (text_of(seen), text_of(seen, "stderr")) == ("out\n", "err\n")
    assert {each["channel"] for each in seen if each["msg_type"] == "execute_reply"} == {"shell"}
    assert [each["content"]["execution_state"] for each in seen if each["msg_type"] == "status"] == ["busy", "idle"]
    assert next(each for each in seen if each["msg_type"] == "execute_reply")["content"]["execution_count"] == 1


def test_errors_displays_and_their_updates(client: Client) -> None:
    seen = client.run(
        "from IPython.display import display, clear_output\n"
        "handle = display('a', display_id='x')\nhandle.update('b')\nclear_output(wait=True)\n1 / 0"
    )

    told = {each["msg_type"]: each["content"] for each in seen}
    assert told["display_data"]["transient"] == told["update_display_data"]["transient"] == {"display_id": "x"}
    assert told["update_display_data"]["data"]["text/plain"] == "'b'"
    assert told["clear_output"] == {"wait": True}
    assert told["error"]["ename"] == told["execute_reply"]["ename"] == "ZeroDivisionError"


def test_a_plot_is_a_picture(client: Client) -> None:
    seen = client.run("import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.show()")

    [picture] = [each["content"]["data"] for each in seen if each["msg_type"] == "display_data"]
    assert picture["image/png"].startswith("iVBOR")


def test_input_is_asked_of_the_client_that_runs_the_cell(server: Server, kernel: Json, client: Client) -> None:
    with server.connected(kernel, session_id="another") as another:
        another.value("0")
        id = client.execute("name = input('who? ')", allow_stdin=True)
        asked = client.until("input_request", id)
        another.send("input_reply", {"value": "nobody"}, "stdin")
        client.send("input_reply", {"value": "me"}, "stdin", parent=asked["header"])
        client.until("execute_reply", id, status="ok")

        assert another.value("name") == "'me'"

    assert asked["channel"] == "stdin"
    assert asked["content"] == {"prompt": "who? ", "password": False}
    assert "input_request" not in kinds(another.heard)


@pytest.mark.parametrize("way", ["rest", "message"])
def test_a_busy_loop_is_interrupted(server: Server, kernel: Json, client: Client, way: str) -> None:
    id = client.execute("print('runs', flush=True)\nwhile True: pass")
    client.until("stream", id)

    if way == "rest":
        server.ask("POST", f"/api/kernels/{kernel['id']}/interrupt", status=204)
    else:
        client.send("interrupt_request", {}, "control")
    seen = client.finish(id)

    assert next(each["content"] for each in seen if each["msg_type"] == "error")["ename"] == "KeyboardInterrupt"
    assert client.value("1 + 1") == "2"


def test_a_restart_loses_variables_keeps_files_and_is_told(server: Server, kernel: Json, client: Client) -> None:
    client.run("x = 1\nopen('kept.txt', 'w').write('kept')")
    id = client.execute("import time; time.sleep(60)")
    client.until("execute_input", id)

    model = server.ask("POST", f"/api/kernels/{kernel['id']}/restart")
    cut = client.finish(id)

    assert model["id"] == kernel["id"]
    assert next(each["content"] for each in cut if each["msg_type"] == "execute_reply")["status"] != "ok"
    seen = client.run("print('x' in globals(), open('kept.txt').read())")
    assert text_of(seen) == "False kept\n"
    # As the protocol has it for a restart that somebody wanted: "restarting" would be taken for a death.
    assert "shutdown_reply" in kinds(client.heard)


def test_the_kernel_answers_what_editors_ask(client: Client) -> None:
    client.run("import os\ndef f(a):\n    'What f is for.'")

    info = client.request("kernel_info_request")
    completed = client.request("complete_request", {"code": "os.getc", "cursor_pos": 7})
    inspected = client.request("inspect_request", {"code": "f", "cursor_pos": 1, "detail_level": 0})
    is_complete = client.request("is_complete_request", {"code": "for i in x:"})
    comms = client.request("comm_info_request", {})
    history = client.request("history_request", {"hist_access_type": "tail", "n": 5, "raw": True, "output": False})

    assert info["status"] == "ok"
    assert info["language_info"]["name"] == "python"
    assert "getcwd" in str(completed["matches"])
    assert "What f is for." in inspected["data"]["text/plain"]
    assert is_complete["status"] == "incomplete"
    assert comms["comms"] == {}
    assert "def f(a)" in history["history"][-1][2]


def test_queued_cells_are_aborted_after_a_failure(server: Server, kernel: Json, client: Client) -> None:
    session = server.gateway.session(kernel["identifier"])
    fails = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\n1 / 0"
    ids = [client.execute(code) for code in (fails, "print('never')")]
    until(lambda: len(session.request("GET", "/executions").json()["value"]) == 2)
    session.upload("go", b"")

    replies = [next(m for m in client.finish(id) if m["msg_type"] == "execute_reply") for id in ids[:1]]
    replies.append(client.until("execute_reply", ids[1]))

    assert [reply["content"]["status"] for reply in replies] == ["error", "aborted"]


def test_comms_and_their_buffers_pass_both_ways(server: Server, kernel: Json) -> None:
    data = bytes(range(256)) * 4096
    with server.connected(kernel) as client:
        client.run(
            "from comm import get_comm_manager\n"
            "def opened(comm, message):\n"
            "    comm.on_msg(lambda m: comm.send({'size': len(m['buffers'][0])}, buffers=[bytes(m['buffers'][0])]))\n"
            "get_comm_manager().register_target('echo', opened)"
        )

        client.send("comm_open", {"comm_id": "c", "target_name": "echo", "data": {}})
        client.send("comm_msg", {"comm_id": "c", "data": {}}, buffers=(data,))
        echoed = client.until("comm_msg")

    assert echoed["content"]["data"] == {"size": len(data)}
    assert echoed["buffers"] == (data,)


def test_a_busy_kernel_answers_in_a_subshell(client: Client) -> None:
    info = client.request("kernel_info_request")
    if "kernel subshells" not in info.get("supported_features", []):
        pytest.skip("this kernel has no subshells")
    created = client.request("create_subshell_request", {}, "control")
    client.run("x = 41")
    busy = client.execute("print('runs', flush=True)\nimport time; time.sleep(30)")
    client.until("stream", busy)

    id = client.send("execute_request", {"code": "x + 1", "silent": False}, subshell_id=created["subshell_id"])
    result = client.until("execute_result", id)
    client.send("interrupt_request", {}, "control")
    client.until("execute_reply", busy)

    assert result["content"]["data"]["text/plain"] == "42"


def test_a_cell_is_debugged_as_jupyterlab_does(server: Server, kernel: Json, client: Client) -> None:
    code = "def double(n):\n    twice = n * 2\n    return twice\nprint(double(21))"
    spec = server.ask("GET", f"/api/kernelspecs/{kernel['name']}")["spec"]
    sent = itertools.count(1)

    def send(command: str, **arguments: Any) -> str:
        content = {"type": "request", "seq": next(sent), "command": command, "arguments": arguments}
        return client.send("debug_request", content, "control")

    def ask(command: str, **arguments: Any) -> Json:
        answers = client.finish(send(command, **arguments))
        [reply] = [each["content"] for each in answers if each["msg_type"] == "debug_reply"]
        assert reply["success"], reply
        body: Json = reply.get("body", {})
        return body

    ask("initialize", clientID="jupyterlab", adapterID="", pathFormat="path")
    ask("attach")
    source = ask("dumpCell", code=code)["sourcePath"]
    ask("setBreakpoints", breakpoints=[{"line": 3}], source={"path": source})
    ask("configurationDone")
    cell = client.execute(code)
    thread = client.until("debug_event", event="stopped")["content"]["body"]["threadId"]
    frame = ask("stackTrace", threadId=thread)["stackFrames"][0]
    scope = ask("scopes", frameId=frame["id"])["scopes"][0]
    variables = ask("variables", variablesReference=scope["variablesReference"])["variables"]
    send("continue", threadId=thread)
    printed = text_of(client.finish(cell))
    ask("disconnect", restart=False, terminateDebuggee=False)

    assert spec["metadata"]["debugger"] is True
    assert (frame["name"], frame["line"]) == ("double", 3)
    assert {each["name"]: each["value"] for each in variables} == {"n": "21", "twice": "42"}
    assert printed == "42\n"
    assert client.value("__import__('os').listdir('/mnt/data')") == "[]"  # it leaves nothing there


def test_tens_of_megabytes_arrive_whole(server: Server, kernel: Json) -> None:
    size = 30_000_000
    with server.connected(kernel) as client:
        seen = client.run(f"from IPython.display import display\ndisplay({{'text/plain': 'x' * {size}}}, raw=True)")

    [shown] = [each["content"]["data"]["text/plain"] for each in seen if each["msg_type"] == "display_data"]
    assert len(shown) == size


def test_a_client_that_cannot_take_as_much_gets_a_note(server: Server, kernel: Json) -> None:
    with server.connected(kernel, legacy=True) as client:
        seen = client.run("from IPython.display import display\ndisplay({'text/plain': 'x' * 12_000_000}, raw=True)")

    [shown] = [each["content"]["data"]["text/plain"] for each in seen if each["msg_type"] == "display_data"]
    assert "bytes of output left out" in shown


# --- a connection that breaks


def cut(client: Client) -> None:
    """As a network does it: without a word."""
    assert client.socket.sock is not None
    client.socket.sock.close()


def test_who_comes_back_gets_what_it_missed_in_order_once(server: Server, kernel: Json) -> None:
    code = "import time\nfor i in range(60):\n    print(i, flush=True)\n    time.sleep(0.05)\n'done'"
    seen: list[Json] = []
    with server.connected(kernel, session_id="mine") as client:
        id = client.execute(code)
        while len(text_of(client.heard).split()) < 10:
            client.next()
        seen += client.heard
        cut(client)

    last = seen[-1]["header"]["msg_id"]
    with server.connected(kernel, session_id="mine", last_msg_id=last) as client:
        seen += client.finish(id)

    assert text_of(seen).split() == [str(number) for number in range(60)]
    assert kinds(seen).count("execute_reply") == 1
    ids = [each["header"]["msg_id"] for each in seen]
    assert len(ids) == len(set(ids))


def test_one_that_does_not_say_where_it_was_misses_nothing(server: Server, kernel: Json) -> None:
    """And may hear again what had not been confirmed when the connection broke: nothing is lost either way."""
    with server.connected(kernel, session_id="mine") as client:
        id = client.execute("import time\nfor i in range(40):\n    print(i, flush=True)\n    time.sleep(0.05)")
        while len(text_of(client.heard).split()) < 10:
            client.next()
        before = list(client.heard)
        cut(client)

    with server.connected(kernel, session_id="mine") as client:
        after = client.finish(id)

    known = {each["header"]["msg_id"] for each in before}
    fresh = [each for each in after if each["header"]["msg_id"] not in known]
    assert text_of(before + fresh).split() == [str(number) for number in range(40)]


def test_what_ended_while_nobody_was_there_is_told_later(server: Server, kernel: Json) -> None:
    with server.connected(kernel, session_id="mine") as client:
        id = client.execute("import time; time.sleep(0.5); print('late'); 5")
        client.until("execute_input", id)
        cut(client)
    session = server.gateway.session(kernel["identifier"])
    session.value("1")  # queued behind it

    with server.connected(kernel, session_id="mine") as client:
        seen = client.finish(id)

    assert text_of(seen) == "late\n"


def test_the_newest_connection_wins(server: Server, kernel: Json) -> None:
    with server.connected(kernel, session_id="mine") as older, server.connected(kernel, session_id="mine") as newer:
        with pytest.raises(websocket.WebSocketException):
            older.until("nothing that comes")

        assert newer.value("1 + 1") == "2"


def test_a_gateway_that_is_killed_costs_no_variable_and_no_message(make_gateway: Make) -> None:
    gateway = make_gateway(ready=1)
    server = Server(gateway)
    kernel = server.ask("POST", "/api/kernels", {}, 201)
    session = server.ask("POST", "/api/sessions", {"path": "a.ipynb", "kernel": {"id": kernel["id"]}}, 201)
    with server.connected(kernel, session_id="mine") as client:
        client.run("x = 41")
        id = client.execute("import time\nfor i in range(30):\n    print(i, flush=True)\n    time.sleep(0.2)\nx + 1")
        client.until("stream", id)
        last = client.heard[-1]["header"]["msg_id"]
        before = text_of(client.heard)
        gateway.kill()
    gateway.start()

    assert server.ask("GET", f"/api/sessions/{session['id']}")["kernel"]["id"] == kernel["id"]
    with server.connected(kernel, session_id="mine", last_msg_id=last) as client:
        seen = client.finish(id)

    assert (before + text_of(seen)).split() == [str(number) for number in range(30)]
    [result] = [each for each in seen if each["msg_type"] == "execute_result"]
    assert result["content"]["data"]["text/plain"] == "42"


# --- several clients, several doors


def test_two_clients_see_all_and_each_gets_its_own_replies(server: Server, kernel: Json) -> None:
    with server.connected(kernel) as one, server.connected(kernel, legacy=True) as two:
        first = one.execute("print('one')")
        two.until("execute_input", first)
        second = two.execute("print('two')")
        one.finish(first), two.finish(second)
        one.until("status", second, execution_state="idle")

        assert text_of(one.heard) == text_of(two.heard) == "one\ntwo\n"
        assert {parent_of(each) for each in one.heard if each["msg_type"] == "execute_reply"} == {first}
        assert {parent_of(each) for each in two.heard if each["msg_type"] == "execute_reply"} == {second}


def test_one_session_has_many_doors(server: Server, session: Session) -> None:
    session.run("x = 20")
    [kernel] = [each for each in server.ask("GET", "/api/kernels") if each["identifier"] == session.identifier]

    with server.connected(kernel) as client:
        assert client.value("x + 22") == "42"
        client.run("y = x + 1")
        assert session.value("y") == 21
        rest = in_background(lambda: session.run("print('from rest')"))
        told = client.until("execute_input", code="print('from rest')")
        client.until("status", parent_of(told), execution_state="idle")
        rest()

    assert text_of(client.heard) == "from rest\n"
    listed = session.request("GET", "/executions").json()["value"] if has_list(session) else []
    assert [each["origin"] for each in listed] in ([], ["rest", "jupyter", "jupyter", "rest", "rest"])


def has_list(session: Session) -> bool:
    return session.request("GET", "/executions").status_code == 200


def test_cells_and_calls_run_in_the_order_in_which_they_came(server: Server, kernel: Json, client: Client) -> None:
    rest = server.gateway.session(kernel["identifier"])
    rest.value("order = []")
    block = client.execute("import time; time.sleep(0.5); order.append(1)")
    client.until("execute_input", block)
    rest.submit("order.append(2)", "second")
    third = client.execute("order.append(3)")
    client.finish(third)

    assert rest.value("str(order)") == "[1, 2, 3]"


# --- ends


def test_a_kernel_that_dies_is_told_and_replaced(server: Server, kernel: Json, client: Client) -> None:
    client.run("x = 1")
    id = client.execute("import os; os._exit(3)")

    seen = client.finish(id)
    answer = client.run("'x' in globals()")

    assert next(each["content"] for each in seen if each["msg_type"] == "execute_reply")["status"] == "error"
    states = [each["content"].get("execution_state") for each in client.heard if not parent_of(each)]
    assert {"restarting", "autorestarting", "dead"} & set(states)
    assert next(e for e in answer if e["msg_type"] == "execute_result")["content"]["data"]["text/plain"] == "False"


def test_a_sandbox_that_dies_is_a_dead_kernel(server: Server, kernel: Json, client: Client) -> None:
    client.run("x = 1")
    session = server.gateway.session(kernel["identifier"])
    session.run("1")
    for pid in sandbox_processes(session.sandbox):
        with suppress(ProcessLookupError):  # it went with the one before it
            os.kill(pid, signal.SIGKILL)

    client.until("status", execution_state="dead")

    server.ask("GET", f"/api/kernels/{kernel['id']}", status=404)


def test_a_client_that_reads_nothing_holds_up_nobody(server: Server, kernel: Json) -> None:
    with server.connected(kernel) as deaf, server.connected(kernel) as other:
        deaf.execute("for i in range(200): print('x' * 100_000)")
        other.until("execute_input")

        assert other.value("1 + 1") == "2"


def test_a_kernel_is_made_as_fast_as_the_pool_hands_it_out(server: Server, kernel: Json) -> None:
    models: list[Any] = []

    with server.kernel() as fresh:
        models.append(fresh)
        with server.connected(fresh) as client:
            assert client.value("1 + 1") == "2"

    until(lambda: fresh["id"] not in str(server.ask("GET", "/api/kernels")))
