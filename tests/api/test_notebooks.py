"""Notebooks over HTTP: who gets one, what is refused and how, what a list of executions says."""

from __future__ import annotations

import io
import json
import sys
import threading
from typing import Any

import nbformat
import pytest

from kernelpool.notebooks.reading import Notebook, read_notebook
from tests.api.conftest import Api

EMPTY = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}


def notebook_of(*sources: str) -> dict[str, Any]:
    cells: list[dict[str, Any]] = [
        {"cell_type": "code", "id": f"c{n}", "metadata": {}, "source": source, "outputs": [], "execution_count": None}
        for n, source in enumerate(sources)
    ]
    return {**EMPTY, "cells": cells}


async def test_asking_for_a_notebook_or_the_executions_makes_no_session(api: Api) -> None:
    for path in ("/notebook", "/executions"):
        answer = await api.json("GET", path, 404)
        assert answer["error"]["code"] == "NoSessionFoundError"
    assert (await api.json("GET", "/listSessions"))["sessions"] == []


async def test_a_notebook_makes_the_session_that_it_runs_in(api: Api) -> None:
    executed = await api.json("POST", "/notebook", json=notebook_of("x = 20", "x + 1"))

    nbformat.validate(executed)
    assert executed["metadata"]["kernelpool"]["status"] == "succeeded"
    assert executed["cells"][1]["outputs"][0]["data"]["text/plain"] == "21"
    assert executed["metadata"]["language_info"]["name"] == "python"
    exported = await api.json("GET", "/notebook")
    nbformat.validate(exported)
    assert [cell["source"] for cell in exported["cells"]] == ["x = 20", "x + 1"]


async def test_the_notebook_of_a_session_that_ran_nothing_is_an_empty_one(api: Api) -> None:
    await api.process()

    exported = await api.json("GET", "/notebook")

    nbformat.validate(exported)
    assert exported["cells"] == []


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "JSON"),
        (b"[" * 5000, 400, "JSON"),
        (b'{"nbformat": NaN}', 400, "JSON"),
        (b"{}", 400, "nbformat 3 or 4"),
        (b'{"notebook": 1}', 400, "nbformat 3 or 4"),
        (json.dumps({"notebook": EMPTY, "parameters": 1}).encode(), 400, "parameters"),
        (json.dumps({"notebook": EMPTY, "parameters": {"a-b": 1}}).encode(), 400, "a-b"),
        (json.dumps(EMPTY | {"metadata": {"x": "x" * (1 << 20)}}).encode(), 413, "1048576"),
        (json.dumps(notebook_of(*["1"] * 2001)).encode(), 400, "2001 cells"),
        (b'{"a": [' + b"{}," * 200_001 + b"{}]}", 400, "200000 values"),
    ],
    ids=lambda value: value[:20].decode() if isinstance(value, bytes) else None,
)
async def test_what_is_no_notebook_is_refused_and_takes_no_sandbox(
    api: Api, body: bytes, status: int, reason: str
) -> None:
    answer = await api.json("POST", "/notebook", status, data=io.BytesIO(body))

    assert reason in answer["error"]["message"]
    assert (await api.json("GET", "/listSessions"))["sessions"] == []


@pytest.mark.parametrize(
    ("query", "headers", "reason"),
    [
        ({"timeoutInSeconds": "0"}, {}, "timeoutInSeconds"),
        ({"cellTimeoutInSeconds": "99999"}, {}, "cellTimeoutInSeconds"),
        ({"stopOnError": "perhaps"}, {}, "stopOnError"),
        ({"parameters": "[1]"}, {}, "parameters"),
        ({}, {"operation-id": "x" * 101}, "operation-id"),
        ({}, {"operation-id": "a b"}, "operation-id"),
        ({}, {"Accept": "text/event-stream", "Last-Event-ID": "x"}, "Last-Event-ID"),
    ],
)
async def test_options_that_are_none_are_refused(
    api: Api, query: dict[str, str], headers: dict[str, str], reason: str
) -> None:
    answer = await api.json("POST", "/notebook", 400, json=EMPTY, query=query, headers=headers)

    assert reason in answer["error"]["message"]


async def test_sent_again_with_the_same_id_no_cell_runs_twice(api: Api) -> None:
    notebook = notebook_of("n = globals().get('n', 0) + 1", "n")

    runs = [await api.json("POST", "/notebook", json=notebook, headers={"operation-id": "same"}) for _ in range(2)]

    assert runs[0]["cells"] == runs[1]["cells"]
    assert runs[1]["cells"][1]["outputs"][0]["data"]["text/plain"] == "1"
    assert (await api.json("GET", "/executions"))["count"] == 2


async def test_a_stream_tells_each_cell_and_ends_with_the_notebook(api: Api) -> None:
    headers = {"Accept": "text/event-stream"}
    async with api.request(
        "POST", "/notebook", json=notebook_of("print('hi')", "1 / 0", "2"), headers=headers
    ) as answer:
        frames = (await answer.text()).strip().split("\n\n")

    events = [frame.split("event: ")[1].split("\n")[0] for frame in frames]
    assert [event for event in events if event != "cell"] == ["output", "output", "done"]
    done = json.loads(frames[-1].partition("data: ")[2])
    nbformat.validate(done)
    assert done["metadata"]["kernelpool"]["cell"] == "c1"


async def test_what_cannot_begin_is_told_with_a_status_even_to_a_stream(api: Api) -> None:
    process = await api.process()
    process.silent = True

    headers = {"Accept": "text/event-stream"}
    answer = await api.json("POST", "/notebook", 502, json=notebook_of("1"), headers=headers)

    assert answer["error"]["code"] == "SandboxLost"


async def test_executions_are_listed_and_pages_follow_each_other(api: Api) -> None:
    for number in range(101):
        await api.run(str(number))

    first = await api.json("GET", "/executions")
    last = await api.json("GET", "/executions", query={"after": str(first["value"][-1]["number"])})

    assert [len(page["value"]) for page in (first, last)] == [100, 1]
    assert first["nextLink"].endswith("&after=100")
    assert "nextLink" not in last
    assert last["count"] == 101
    assert (last["value"][0]["code"], last["value"][0]["origin"], last["value"][0]["status"]) == (
        "100",
        "rest",
        "Succeeded",
    )


async def test_long_code_makes_pages_short(api: Api) -> None:
    for _ in range(6):
        await api.run("'" + "x" * 1_000_000 + "'")

    page = await api.json("GET", "/executions")

    assert len(page["value"]) == 5
    assert page["nextLink"].endswith("&after=5")


async def test_a_notebook_is_read_where_it_holds_up_nobody(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def reading(value: Any) -> Notebook:
        threads.append(threading.current_thread())
        return read_notebook(value)

    monkeypatch.setattr(sys.modules["kernelpool.api.notebooks"], "read_notebook", reading)

    await api.json("POST", "/notebook", json=notebook_of("1"))

    assert threads != []
    assert threading.main_thread() not in threads
