"""Notebooks with real kernels: what a session ran as a document, and documents run as nbclient would run them."""

from __future__ import annotations

import http.client
import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import nbformat
import requests
from nbclient import NotebookClient

from tests.e2e.gateways import Gateway, Session, in_background, server_sent, until

Notebook = dict[str, Any]
STREAM = {"Accept": "text/event-stream"}


def code(source: str, id: str, **metadata: Any) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "id": id,
        "metadata": metadata,
        "source": source,
        "outputs": [],
        "execution_count": None,
    }


def markdown(source: str, id: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": id, "metadata": {"mine": 1}, "source": source}


def notebook_of(*cells: dict[str, Any], **metadata: Any) -> Notebook:
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": list(cells)}


def export(session: Session, **query: str) -> Notebook:
    response = session.request("GET", "/notebook", params=query)
    assert response.status_code == 200, response.text
    notebook: Notebook = response.json()
    nbformat.validate(notebook)
    return notebook


def execute(session: Session, notebook: Any, headers: dict[str, str] | None = None, **query: Any) -> Notebook:
    response = session.request("POST", "/notebook", json=notebook, headers=headers or {}, params=query)
    assert response.status_code == 200, response.text
    executed: Notebook = response.json()
    nbformat.validate(executed)
    return executed


def stream(session: Session, notebook: Notebook, headers: dict[str, str]) -> Iterator[tuple[str, str, Any]]:
    headers = {**STREAM, **headers}
    with session.request("POST", "/notebook", json=notebook, headers=headers, stream=True) as response:
        assert response.status_code == 200, response.text
        yield from server_sent(response)


def execute_elsewhere(notebook: Notebook) -> Any:
    """By nbclient, with a kernel of this machine."""
    copy: Any = nbformat.reads(json.dumps(notebook), as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(copy, timeout=60, iopub_timeout=60, coalesce_streams=True).execute()
    return copy


def outputs_of(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """Without what differs from kernel to kernel, and what we add."""
    outputs: list[dict[str, Any]] = json.loads(json.dumps(cell.get("outputs", [])))
    for output in outputs:
        output.pop("traceback", None)
        output.get("metadata", {}).pop("kernelpool", None)
        if "data" in output:
            output["data"] = {
                mime: re.sub(r"0x[0-9a-f]+", "0x", value) if mime == "text/plain" else value
                for mime, value in output["data"].items()
            }
    return outputs


def told(notebook: Notebook) -> dict[str, Any]:
    facts: dict[str, Any] = notebook["metadata"]["kernelpool"]
    return facts


# --- a session's own


def test_a_session_keeps_a_notebook_of_what_was_run_by_whatever_door(session: Session) -> None:
    session.submit("x = 20", id="first")
    session.run("print('text'); x + 1")
    session.run("import matplotlib.pyplot as plt; _ = plt.plot([1, 2])")
    session.run("1 / 0")
    execute(session, notebook_of(code("x * 2", "cell-1", tags=["t"])))

    notebook, again = export(session), export(session)

    cells = notebook["cells"]
    assert notebook == again
    assert [cell["source"] for cell in cells][0::4] == ["x = 20", "x * 2"]
    assert [cell["execution_count"] for cell in cells] == [1, 2, 3, 4, 5]
    assert [cell["metadata"]["kernelpool"]["origin"] for cell in cells] == [*["rest"] * 4, "notebook"]
    assert cells[0]["id"] == "first"
    assert cells[1]["outputs"] == [
        {"output_type": "stream", "name": "stdout", "text": "text\n"},
        {"output_type": "execute_result", "execution_count": 2, "data": {"text/plain": "21"}, "metadata": {}},
    ]
    [figure] = cells[2]["outputs"]
    assert figure["data"]["image/png"].startswith("iVBOR")
    assert figure["metadata"]["kernelpool"]["files"]
    assert cells[3]["outputs"][0]["ename"] == "ZeroDivisionError"
    assert cells[4]["metadata"]["tags"] == ["t"]
    assert cells[4]["metadata"]["kernelpool"]["cell"] == "cell-1"
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook["metadata"]["language_info"]["name"] == "python"


def test_the_notebook_of_a_session_runs_again_here_and_elsewhere(gateway: Gateway, session: Session) -> None:
    session.run("x = 20")
    session.run("x + 1")
    notebook = export(session)
    other = gateway.session(f"other-{uuid.uuid4().hex}")

    here = execute(other, notebook)
    there = execute_elsewhere(notebook)

    assert told(here)["status"] == "succeeded"
    assert outputs_of(here["cells"][1]) == outputs_of(notebook["cells"][1]) == outputs_of(there["cells"][1])
    assert [cell["id"] for cell in here["cells"]] == [cell["id"] for cell in notebook["cells"]]
    other.delete()


def test_a_notebook_can_be_downloaded_under_any_name(session: Session) -> None:
    session.run("1")

    response = session.request("GET", "/notebook", params={"download": 'a"\r\nX-Bad: 1/ü.ipynb'})

    assert response.headers["Content-Type"] == "application/x-ipynb+json"
    assert response.headers["Content-Disposition"].startswith("attachment; filename=")
    assert "X-Bad" not in response.headers
    assert "sandbox" in response.headers["Content-Security-Policy"]
    head = session.request("HEAD", "/notebook", params={"download": ""})
    assert (head.status_code, head.content) == (200, b"")
    assert 'filename="notebook.ipynb"' in head.headers["Content-Disposition"]


def test_a_kernel_that_died_is_told_in_the_notebook(session: Session) -> None:
    session.run("x = 1")
    session.run("import os; os._exit(3)")
    session.run("'x' in dir()")

    notebook = export(session)

    assert "exited" in notebook["cells"][1]["outputs"][-1]["text"]
    assert "Variables from before are gone" in notebook["cells"][2]["source"]
    assert notebook["cells"][2]["cell_type"] == "markdown"


def test_what_a_session_no_longer_keeps_is_said_in_its_notebook(make_gateway: Any) -> None:
    gateway = make_gateway(ready=1, history_size=2)
    gateway.wait_warm()
    session = gateway.session("abcd-1")
    for number in range(4):
        session.run(str(number))

    notebook = export(session)

    assert [cell["source"] for cell in notebook["cells"]] == [
        "*2 executions are missing here: the oldest make room for new ones.*",
        "2",
        "3",
    ]


def test_executions_are_listed_page_by_page_with_who_asked_for_them(session: Session) -> None:
    session.run("x = 1")
    execute(session, notebook_of(code("x", "cell-1")), headers={"operation-id": "nb"})
    for number in range(100):
        session.submit(str(number), id=f"n{number}")
        session.run("1") if number % 10 == 0 else None
    until(lambda: session.poll("n99")["status"] == "Succeeded")

    first = session.request("GET", "/executions").json()
    rest = requests.get(
        first["nextLink"],
        headers={"Authorization": session.request("GET", "/session").request.headers["Authorization"]},
    ).json()

    entries = [*first["value"], *rest["value"]]
    assert [entry["number"] for entry in entries] == list(range(1, 113))
    assert [(entry["origin"], entry["code"], entry["cell"]) for entry in entries[:2]] == [
        ("rest", "x = 1", None),
        ("notebook", "x", "cell-1"),
    ]
    assert entries[1]["id"] == "nb.0"
    assert rest["count"] == 112
    assert "nextLink" not in rest


# --- running one

RICH = """
from IPython.display import HTML, clear_output, display
display(HTML("<b>bold</b>"))
handle = display("before", display_id="d")
handle.update("after")
print("out")
"""
CLEARED = """
from IPython.display import clear_output
print("gone"); clear_output(); print("waits"); clear_output(wait=True); print("stays")
"""
STREAMS = "import sys\nprint('a'); print('c'); print('b', file=sys.stderr)"


def test_a_notebook_is_executed_as_nbclient_would(session: Session) -> None:
    notebook = notebook_of(
        markdown("# Title", "title"),
        code("x = 1", "silent"),
        code(STREAMS, "streams"),
        code(RICH, "rich"),
        code(CLEARED, "cleared"),
        code("later = display('early', display_id='later'); print('beside')", "shows"),
        code("later.update('late'); print('here')", "updates"),
        code("import matplotlib.pyplot as plt\nprint(plt.get_backend() is None)", "backend"),
        code("1 / 0", "raises", tags=["raises-exception"]),
        code("never", "skipped", tags=["skip-execution"]),
        code("  ", "empty"),
        code("x + 1\n", "last"),
        kernelspec={"name": "python3", "display_name": "mine"},
        custom={"kept": True},
    )
    theirs = execute_elsewhere(notebook)

    ours = execute(session, notebook)

    assert [outputs_of(cell) for cell in ours["cells"]] == [outputs_of(cell) for cell in theirs["cells"]]
    for name in ("id", "cell_type", "source", "execution_count"):
        assert [cell.get(name) for cell in ours["cells"]] == [cell.get(name) for cell in theirs["cells"]]
    assert ours["cells"][0] == notebook["cells"][0]
    assert ours["cells"][9:11] == notebook["cells"][9:11]
    assert {"tags": ["raises-exception"]}.items() <= ours["cells"][8]["metadata"].items()
    assert ours["metadata"]["custom"] == {"kept": True}
    assert ours["metadata"]["kernelspec"]["display_name"] == "mine"
    assert (told(ours)["status"], told(ours)["executed"]) == ("succeeded", 9)
    exported = export(session)
    assert outputs_of(exported["cells"][4])[0]["data"]["text/plain"] == "'late'"


def test_a_run_stops_at_the_cell_that_raises_unless_told_otherwise(session: Session) -> None:
    notebook = notebook_of(code("1 / 0", "a"), code("2", "b"))

    stopped, ended = execute(session, notebook), execute(session, notebook, stopOnError="false")

    assert (told(stopped)["executed"], told(ended)["executed"]) == (1, 2)
    for run in (stopped, ended):
        assert (told(run)["status"], told(run)["cell"], told(run)["cause"]) == ("failed", "a", "raised")
    assert stopped["cells"][1] == notebook["cells"][1]


def test_cells_and_runs_have_their_time(session: Session) -> None:
    session.run("import time")
    slow = notebook_of(code("print('seen', flush=True)\ntime.sleep(60)", "a"))

    # Time enough for it to be seen.
    by_cell = execute(session, slow, cellTimeoutInSeconds=4)
    by_run = execute(session, slow, timeoutInSeconds=4)

    assert (told(by_cell)["cause"], told(by_run)["cause"]) == ("timed_out", "timed_out")
    assert "notebook exceeded 4 s" in told(by_run)["message"]
    for run in (by_cell, by_run):
        assert run["cells"][0]["outputs"][0] == {"output_type": "stream", "name": "stdout", "text": "seen\n"}


def test_parameters_are_put_into_the_notebook(session: Session) -> None:
    notebook = notebook_of(code("n = 1; who = 'x'", "p", tags=["parameters"]), code("who * n", "b"))

    wrapped = execute(session, {"notebook": notebook, "parameters": {"n": 3, "who": "é"}})
    asked = execute(session, notebook, parameters='{"n": 2}')

    assert wrapped["cells"][2]["outputs"][0]["data"]["text/plain"] == "'ééé'"
    assert asked["cells"][2]["outputs"][0]["data"]["text/plain"] == "'xx'"
    assert asked["cells"][1]["metadata"]["tags"] == ["injected-parameters"]


def test_a_notebook_of_version_3_is_run(session: Session) -> None:
    cell = {"cell_type": "code", "language": "python", "metadata": {}, "input": "1 + 1", "outputs": []}
    old = {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"metadata": {}, "cells": [cell]}]}

    assert execute(session, old)["cells"][0]["outputs"][0]["data"]["text/plain"] == "2"


def test_progress_is_streamed_and_a_lost_stream_goes_on_where_it_was(session: Session) -> None:
    loud = "import time\nfor i in range(5): print(i, flush=True); time.sleep(0.1)"
    notebook = notebook_of(code("runs = []", "a"), code(f"runs.append(1)\n{loud}", "b"), code("len(runs)", "c"))
    lost: list[tuple[str, str, Any]] = []
    for event in stream(session, notebook, {"operation-id": "resumed"}):
        lost.append(event)
        if "2" in event[2].get("text", ""):
            break

    rest = list(stream(session, notebook, {"operation-id": "resumed", "Last-Event-ID": lost[-1][0]}))

    every = [*lost, *rest]
    ids = [int(id) for id, _, _ in every if id]
    assert ids == sorted(set(ids))
    texts = [data["text"] for _, _, data in every if data.get("output_type") == "stream"]
    assert "".join(texts) == "0\n1\n2\n3\n4\n"
    states = [
        (data["cell"], data["state"]) for _, event, data in every if event == "cell" and data["state"] != "queued"
    ]
    assert states == [(cell, state) for cell in "abc" for state in ("running", "succeeded")]
    _, last, executed = every[-1]
    assert last == "done"
    nbformat.validate(executed)
    assert executed["cells"][2]["outputs"][0]["data"]["text/plain"] == "1"
    assert executed["cells"][1]["outputs"][0]["text"] == "0\n1\n2\n3\n4\n"


def test_a_client_that_leaves_a_plain_run_cancels_its_cell(session: Session) -> None:
    session.run("1")
    notebook = notebook_of(code("import time; time.sleep(100)", "a"), code("2", "b"))
    asked = session.request("GET", "/session").request
    headers = {**asked.headers, "operation-id": "left"}
    url = str(asked.url).replace("/session?", "/notebook?")
    request = requests.Request("POST", url, headers, json=notebook).prepare()
    connection = http.client.HTTPConnection("127.0.0.1", session.gateway.port)
    connection.request("POST", request.path_url, request.body, dict(request.headers))
    until(lambda: session.poll("left.0").get("status") == "Running")
    connection.close()

    until(lambda: session.poll("left.0")["status"] == "Canceled")

    assert session.request("GET", "/executions/left.1").status_code == 404
    assert session.value("3") == 3


def test_runs_and_executions_of_a_session_queue_in_one_order(session: Session) -> None:
    session.run("order = []")
    waits = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\norder.append('rest')"
    waiting = in_background(lambda: session.run(waits))
    until(lambda: len(states(session)) == 2)
    notebook = notebook_of(code("order.append('notebook'); order", "a"))

    executing = in_background(lambda: execute(session, notebook))
    until(lambda: states(session) == ["Succeeded", "Running", "NotStarted"])
    session.upload("go", b"")

    assert executing()["cells"][0]["outputs"][0]["data"]["text/plain"] == "['rest', 'notebook']"
    waiting()


def states(session: Session) -> list[str]:
    return [entry["status"] for entry in session.request("GET", "/executions").json()["value"]]
