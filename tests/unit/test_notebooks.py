"""Notebooks without I/O: what was shown becomes a valid document, what is sent is read, or refused with a reason."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelpool.errors import ExecutionNotFound, InvalidNotebook, InvalidRequest
from kernelpool.models import (
    Cell,
    DisplayOutput,
    EndCause,
    ErrorOutput,
    ExecuteRequest,
    Execution,
    ExecutionState,
    KeptExecution,
    Kind,
    Origin,
    Output,
    ResultOutput,
    StreamOutput,
    UpdateDisplayData,
)
from kernelpool.notebooks.cells import Cells
from kernelpool.notebooks.document import head_of, language_metadata
from kernelpool.notebooks.outputs import notebook_outputs
from kernelpool.notebooks.parameters import inject
from kernelpool.notebooks.reading import MAX_CELLS, MAX_PARTS, Notebook, parse, read_notebook
from kernelpool.notebooks.running import NotebookRun, RunOptions, runnable
from tests.fakes import METADATA

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
MIMES = st.sampled_from(
    [
        "text/plain",
        "text/html",
        "image/png",
        "image/svg+xml",
        "application/json",
        "application/vnd.plotly.v1+json",
        "application/vnd.vegalite.v6.json",
        "text/x+json",
        "no mime",
        "",
        "application/json; x=1",
    ]
)
BUNDLES = st.dictionaries(MIMES | st.text(max_size=9), JSON_VALUES | st.just(["a\n", "b"]) | st.just("iVBORw0="))
METADATA_OF_CELLS = st.dictionaries(
    st.sampled_from(["tags", "name", "collapsed", "scrolled", "jupyter", "execution", "kernelpool", "x"]),
    JSON_VALUES | st.lists(st.sampled_from(["a", "b,c", ""]), max_size=3),
)
COUNTS = st.none() | st.integers(-5, 2**40)
OUTPUTS = st.one_of(
    st.builds(StreamOutput, st.sampled_from(["stdout", "stderr"]), st.text()),
    st.builds(DisplayOutput, BUNDLES, st.dictionaries(st.text(max_size=5), JSON_VALUES), st.none() | st.just("d")),
    st.builds(ResultOutput, BUNDLES, st.dictionaries(st.text(max_size=5), JSON_VALUES), COUNTS),
    st.builds(ErrorOutput, st.text(), st.text(), st.lists(st.text()).map(tuple)),
)


def kept(number: int, code: str | None = "1", *outputs: Output, id: str = "", **facts: Any) -> KeptExecution:
    fields = {"state": ExecutionState.SUCCEEDED, "created_at": 1.0, "outputs": outputs, **facts}
    return KeptExecution(number, code, Execution(id or f"run-{number}", **fields))


def document(*executions: KeptExecution, count: int | None = None, language: str = "python") -> Notebook:
    cells = Cells(language)
    made = [cell for each in executions for cell in cells.of(each)]
    if count is not None:
        made += cells.end(count)
    return head_of(language_metadata("python", METADATA)) | {"cells": made}


def is_valid(notebook: Notebook) -> None:
    """Also after it was written and read."""
    nbformat.validate(json.loads(json.dumps(notebook, allow_nan=False)))


def sources(notebook: Notebook) -> list[str]:
    return [cell["source"] for cell in notebook["cells"]]


# --- a session's own


@given(
    st.lists(OUTPUTS, max_size=4),
    METADATA_OF_CELLS,
    COUNTS,
    st.none() | st.text(),
    st.text("ab-._:~", min_size=1, max_size=128),
)
def test_whatever_a_sandbox_says_becomes_a_valid_document(
    outputs: list[Output], metadata: dict[str, Any], count: int | None, lost: str | None, id: str
) -> None:
    item = kept(3, "x", *outputs, id=id, execution_count=count, state_lost_before=lost, message=lost)

    is_valid(document(replace(item, cell=Cell("c", metadata)), count=9))


def test_a_bundle_is_kept_as_nbformat_has_it_and_what_is_none_is_said() -> None:
    shown = DisplayOutput(
        {
            "text/plain": ["a\n", "b"],
            "image/png": "no base64!",
            "application/vnd.plotly.v1+json": {"data": []},
            "application/vnd.vegalite.v6.json": {"mark": "bar"},
        },
        files=("image.png",),
    )

    [output] = notebook_outputs(kept(1, "", shown).execution)

    assert output["data"] == {
        "text/plain": "a\nb",
        "application/vnd.plotly.v1+json": {"data": []},
        "application/vnd.vegalite.v6.json": '{"mark": "bar"}',
    }
    assert output["metadata"] == {"kernelpool": {"files": ["image.png"], "leftOut": 1}}


def test_an_output_of_which_nothing_is_left_says_so() -> None:
    [output] = notebook_outputs(kept(1, "", DisplayOutput({"image/png": "no base64!"})).execution)

    assert "left out" in output["data"]["text/plain"]


def test_cells_have_ids_that_are_unique_and_the_same_in_every_export() -> None:
    ids = ["plain", "with.dots", "with:dots", "x" * 100, "note-gap-1", "id-5"]
    executions = [kept(number, id=id) for number, id in enumerate(ids, 2)]

    first, second = document(*executions, count=9), document(*executions, count=9)

    assert first == second
    named = [cell["id"] for cell in first["cells"]]
    assert len(set(named)) == len(named) == len(ids) + 2
    assert "plain" in named


def test_a_command_is_a_cell_that_the_kernel_can_run() -> None:
    command = kept(1, "ls -l | head", kind=Kind.COMMAND)

    assert sources(document(command)) == ["%%bash\nls -l | head"]
    assert sources(document(command, language="bash")) == ["ls -l | head"]
    is_valid(document(command))


def test_what_is_no_longer_kept_is_said_where_it_is_missing() -> None:
    notebook = document(kept(3, "a"), kept(4, "b"), kept(6, "c"), count=8)

    assert sources(notebook) == [
        "*2 executions are missing here: the oldest make room for new ones.*",
        "a",
        "b",
        "*1 execution is missing here: the oldest make room for new ones.*",
        "c",
        "*2 executions are missing here: the oldest make room for new ones.*",
    ]


def test_lost_variables_and_code_that_was_not_kept_are_said() -> None:
    notebook = document(kept(1, None, state_lost_before="the kernel `died` <b>"))

    assert sources(notebook) == [
        "*Variables from before are gone: `the kernel  died  <b>`*",
        "*The code of the next cell was too long to be kept.*",
        "",
    ]


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"state": ExecutionState.RUNNING}, "still running"),
        ({"state": ExecutionState.QUEUED}, "not begun"),
        ({"message": "the execution exceeded 5 s"}, "exceeded 5 s"),
    ],
)
def test_how_a_cell_ended_is_said_in_its_outputs(facts: dict[str, Any], text: str) -> None:
    [output] = notebook_outputs(kept(1, "", **facts).execution)

    assert output["name"] == "stderr"
    assert text in output["text"]


def test_a_display_that_a_later_execution_changed_is_shown_as_it_became() -> None:
    first = kept(1, "a", DisplayOutput({"text/plain": "old"}, display_id="d"), DisplayOutput({"text/plain": "other"}))
    second = kept(2, "b", updates=(UpdateDisplayData("d", {"text/plain": "new"}, {}),))
    cells = Cells(language="python")
    for each in (first, second):
        cells.foresee(each)

    shown = [output["data"]["text/plain"] for cell in cells.of(first) for output in cell["outputs"]]

    assert shown == ["new", "other"]


def test_updates_of_displays_are_held_up_to_a_limit() -> None:
    cells = Cells(language="python")
    for number in range(2, 50):
        cells.foresee(kept(number, "", updates=(UpdateDisplayData("d", {"text/plain": "x" * (1 << 20)}, {}),)))

    *_, cell = cells.of(kept(40, "", DisplayOutput({"text/plain": "old"}, display_id="d")))

    assert cell["outputs"][0]["data"]["text/plain"] == "old"


# --- what callers send


def notebook_of(*cells: Any, **rest: Any) -> Notebook:
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": list(cells), **rest}


def code(source: Any, id: Any = "a", **metadata: Any) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "id": id,
        "metadata": metadata,
        "source": source,
        "outputs": [],
        "execution_count": None,
    }


def markdown(source: str, id: str = "m", **rest: Any) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": id, "metadata": {}, "source": source, **rest}


def test_ids_metadata_and_attachments_are_kept() -> None:
    attached = markdown("![x](attachment:x.png)", attachments={"x.png": {"image/png": "iVBORw0="}})
    sent = notebook_of(code(["1 +\n", "1"], "first", tags=["t"], custom={"a": 1}), attached, metadata={"mine": [1]})

    read = read_notebook(sent)

    assert read == {**sent, "cells": [{**sent["cells"][0], "source": "1 +\n1"}, attached]}


def test_ids_that_are_missing_twice_there_or_none_become_others() -> None:
    cells = [code("1", "same"), code("2", "same"), code("3", "no id!"), code("4", None), code("5", 7)]
    del cells[3]["id"]

    ids = [cell["id"] for cell in read_notebook(notebook_of(*cells))["cells"]]

    assert ids[0] == "same"
    assert len(set(ids)) == 5
    assert all(Cell.is_id(id) for id in ids)


def test_older_minor_versions_get_ids() -> None:
    cell = code("1")
    del cell["id"]

    read = read_notebook(notebook_of(cell, nbformat_minor=1))

    assert read["nbformat_minor"] == 5
    nbformat.validate(read)


def test_nbformat_3_is_upgraded() -> None:
    old = {
        "nbformat": 3,
        "nbformat_minor": 0,
        "metadata": {"name": "old", "x": 1},
        "worksheets": [
            {
                "metadata": {},
                "cells": [
                    {"cell_type": "heading", "level": 2, "metadata": {}, "source": "Title"},
                    {
                        "cell_type": "code",
                        "language": "python",
                        "collapsed": False,
                        "metadata": {},
                        "input": ["print(1)"],
                        "outputs": [{"output_type": "stream", "stream": "stdout", "text": "1\n"}],
                    },
                ],
            }
        ],
    }

    read = read_notebook(old)

    nbformat.validate(read)
    assert sources(read) == ["## Title", "print(1)"]
    assert read["metadata"] == {"x": 1}


def test_a_future_minor_version_is_read() -> None:
    assert read_notebook(notebook_of(code("1"), nbformat_minor=9))["nbformat_minor"] == 9


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "nbformat 3 or 4"),
        ([], "nbformat 3 or 4"),
        ({}, "nbformat 3 or 4"),
        ({"nbformat": 2}, "not 2"),
        ({"nbformat": True}, "not True"),
        ({"nbformat": "4" * 9999}, "nbformat 3 or 4"),
        ({"nbformat": [4]}, "nbformat 3 or 4"),
        ({"nbformat": 4}, "nbformat_minor"),
        (notebook_of(nbformat_minor=-1), "nbformat_minor"),
        ({"nbformat": 4, "nbformat_minor": 5}, "cells"),
        (notebook_of(metadata=1), "metadata"),
        (notebook_of(7), "cells.0"),
        (notebook_of({"cell_type": "spell", "metadata": {}, "source": ""}), "cells.0"),
        (notebook_of(code(1)), "cells.0"),
        (notebook_of(code("1", tags="all")), "cells.0"),
        (notebook_of(markdown("", attachments=[])), "cells.0"),
        (notebook_of(*[code("1")] * (MAX_CELLS + 1)), f"more than {MAX_CELLS}"),
        ({"nbformat": 3}, "worksheets"),
        ({"nbformat": 3, "worksheets": [{"cells": 1}]}, "worksheets"),
        ({"nbformat": 3, "worksheets": [{"cells": [1]}]}, "cells.0"),
        ({"nbformat": 3, "worksheets": [{"cells": []}]}, "required"),
        ({"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": [1] * 9999}]}, "more than"),
    ],
)
def test_what_is_no_notebook_is_refused_with_a_short_reason(value: Any, reason: str) -> None:
    with pytest.raises(InvalidNotebook) as caught:
        read_notebook(value)

    assert reason in caught.value.message
    assert len(caught.value.message) <= 300


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"nbformat": NaN}',
        b'"\\ud800"',
        b"[" * 100_000 + b"]" * 100_000,
        b"[" + b"[]," * MAX_PARTS + b"[]]",
        b"\xff",
    ],
    ids=["nothing", "half", "nan", "surrogate", "deep", "many", "bytes"],
)
def test_bodies_that_are_no_json_or_too_much_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidNotebook):
        parse(raw)


@given(JSON_VALUES, st.sampled_from(["cells", "metadata", "nbformat_minor", "worksheets", "cell", "source", "outputs"]))
def test_any_value_anywhere_is_read_or_refused(value: Any, place: str) -> None:
    for sent in (
        notebook_of(code("1")) | {place: value},
        notebook_of(code("1") | {place: value}),
        {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": [{place: value}]}]},
    ):
        try:
            read = read_notebook(json.loads(json.dumps(sent)))
        except InvalidNotebook:
            continue
        nbformat.validate(read)


# --- parameters


def test_parameters_come_after_the_cell_that_is_tagged_for_them_and_replace_earlier_ones() -> None:
    notebook = notebook_of(code("import x", "a"), code("n = 1", "b", tags=["parameters"]), code("n", "c"))

    inject(notebook, {"n": 2, "text": "it's", "nothing": None, "flag": True}, "python")
    inject(notebook, {"n": 3}, "python")

    assert sources(notebook) == ["import x", "n = 1", "# Parameters\nn = 3", "n"]
    nbformat.validate(notebook)


def test_without_a_tag_parameters_come_first() -> None:
    notebook = notebook_of(code("n"))
    inject(notebook, {"n": [1, {"a": None}]}, "python")

    assert sources(notebook) == ["# Parameters\nn = [1, {'a': None}]", "n"]


@pytest.mark.parametrize("name", ["class", "a b", "", "a=1;b", "1a"])
def test_a_parameter_that_can_be_no_variable_is_refused(name: str) -> None:
    with pytest.raises(InvalidNotebook, match="no variable"):
        inject(notebook_of(), {name: 1}, "python")
    with pytest.raises(InvalidNotebook, match="Python"):
        inject(notebook_of(), {"n": 1}, "node")


# --- a run


class Scripted:
    """A runner whose executions end as its script says, by their code."""

    def __init__(self) -> None:
        self.requests: list[ExecuteRequest] = []
        self.finished: list[int] = []
        self.canceled: list[str] = []

    async def perform(self, index: int, request: ExecuteRequest) -> Execution:
        self.requests.append(request)
        if request.code == "show":
            return replace(self._ended(request.id), outputs=(DisplayOutput({"text/plain": "old"}, display_id="d"),))
        if request.code == "update":
            updates = (UpdateDisplayData("d", {"text/plain": "new"}, {}),)
            return replace(self._ended(request.id), outputs=(), updates=updates)
        if request.code in ("hang", "unknown"):
            await asyncio.Event().wait()
        causes = {"raise": EndCause.RAISED, "slow": EndCause.TIMED_OUT, "die": EndCause.KERNEL_DIED}
        return self._ended(request.id, causes.get(request.code, EndCause.COMPLETED))

    async def cancel(self, id: str) -> Execution:
        self.canceled.append(id)
        if self.requests[-1].code == "unknown":
            raise ExecutionNotFound("it never came")
        return self._ended(id, EndCause.CANCELED)

    async def finish(self, index: int, execution: Execution) -> None:
        self.finished.append(index)

    def _ended(self, id: str, cause: EndCause = EndCause.COMPLETED) -> Execution:
        state = ExecutionState.SUCCEEDED if cause is EndCause.COMPLETED else ExecutionState.FAILED
        outputs = (ErrorOutput("E", "oh"),) if cause is EndCause.RAISED else (StreamOutput("stdout", "x" * 100),)
        return Execution(id, state, 1.0, outputs=outputs, cause=cause, origin=Origin.NOTEBOOK)


async def run(notebook: Notebook, *, max_output: int = 10_000, **options: Any) -> Scripted:
    runner = Scripted()
    await NotebookRun(
        notebook, RunOptions("run", **{"cell_timeout": 5, "timeout": 60, "max_output": max_output, **options}), runner
    ).run()
    nbformat.validate(notebook)
    return runner


def status(notebook: Notebook) -> tuple[str, int, str | None, str | None]:
    told = notebook["metadata"]["kernelpool"]
    return told["status"], told["executed"], told.get("cell"), told.get("cause")


async def test_code_cells_run_in_order_and_others_stay_as_they_are() -> None:
    skipped, empty = code("x", "s", tags=["skip-execution"]), code(" \n", "e")
    notebook = notebook_of(markdown("# hi"), code("1", "a"), skipped, empty, code("2", "b"))
    before = json.loads(json.dumps(notebook["cells"]))

    runner = await run(notebook)

    assert [(each.id, each.code, each.origin) for each in runner.requests] == [
        ("run.1", "1", Origin.NOTEBOOK),
        ("run.4", "2", Origin.NOTEBOOK),
    ]
    assert [each.cell.id for each in runner.requests if each.cell] == ["a", "b"]
    assert [notebook["cells"][index] for index in (0, 2, 3)] == [before[index] for index in (0, 2, 3)]
    assert status(notebook) == ("succeeded", 2, None, None)
    assert runner.finished == [1, 4]


@pytest.mark.parametrize("cause", ["raise", "slow", "die"])
async def test_a_run_stops_at_the_first_cell_that_fails(cause: str) -> None:
    notebook = notebook_of(code("1", "a"), code(cause, "b"), code("3", "c"))

    await run(notebook)

    assert status(notebook)[:3] == ("failed", 2, "b")
    assert notebook["cells"][2] == code("3", "c")


async def test_a_cell_that_may_raise_does_not_stop_a_run_but_one_that_hangs_does() -> None:
    may = {"tags": ["raises-exception"]}
    notebook = notebook_of(code("raise", "a", **may), code("slow", "b", **may), code("3", "c"))

    await run(notebook)

    assert status(notebook) == ("failed", 2, "b", "timed_out")


async def test_a_run_can_go_on_after_cells_that_raise_and_names_the_first() -> None:
    notebook = notebook_of(code("raise", "a"), code("raise", "b"), code("3", "c"))

    await run(notebook, stop_on_error=False)

    assert status(notebook) == ("failed", 3, "a", "raised")
    assert notebook["metadata"]["kernelpool"]["message"] == "E: oh"


async def test_the_time_of_all_cells_is_limited() -> None:
    notebook = notebook_of(code("hang", "a"), code("2", "b"))

    runner = await run(notebook, timeout=0.01)

    assert runner.canceled == ["run.0"]
    assert status(notebook) == ("failed", 1, "a", "timed_out")
    assert notebook["cells"][0]["metadata"]["kernelpool"]["cause"] == "canceled"


async def test_a_cell_that_did_not_begin_in_time_stays_as_it_came() -> None:
    notebook = notebook_of(code("unknown", "a"))

    await run(notebook, timeout=0.01)

    assert status(notebook) == ("failed", 0, "a", "timed_out")
    assert notebook["cells"][0] == code("unknown", "a")


async def test_outputs_are_bounded_in_sum_and_what_is_left_out_is_said() -> None:
    notebook = notebook_of(code("1", "a"), code("2", "b"))

    await run(notebook, max_output=1000)

    first, second = (cell["outputs"][0]["text"] for cell in notebook["cells"])
    assert first == "x" * 100
    assert "left out" in second


async def test_a_display_of_an_earlier_cell_that_a_later_one_changes_is_changed_there() -> None:
    notebook = notebook_of(code("show", "a"), code("update", "b"))

    await run(notebook)

    assert notebook["cells"][0]["outputs"][0]["data"] == {"text/plain": "new"}
    assert notebook["cells"][1]["outputs"] == []


async def test_metadata_that_is_too_large_to_be_kept_stays_in_the_notebook() -> None:
    notebook = notebook_of(code("1", "a", much="x" * 20_000))

    runner = await run(notebook)

    assert runner.requests[0].cell == Cell("a")
    assert notebook["cells"][0]["metadata"]["much"] == "x" * 20_000


@pytest.mark.parametrize("id", ["", "a/b", "x" * 101])
def test_a_run_needs_an_id_that_leaves_room_for_those_of_its_cells(id: str) -> None:
    with pytest.raises(InvalidRequest, match="operation-id"):
        RunOptions(id, 1, 1, 1)


def test_what_runs_is_what_nbclient_would_run() -> None:
    notebook = notebook_of(code("1"), code(""), code("2", tags=["skip-execution"]), markdown("x"))

    assert [index for index, _ in runnable(notebook)] == [0]
