"""A notebook, run cell by cell in a session: which cells, how long, and when to stop, as nbclient has it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from kernelpool.errors import ExecutionNotFound, InvalidRequest
from kernelpool.models import (
    Cell,
    DisplayOutput,
    EndCause,
    ExecuteRequest,
    Execution,
    ExecutionState,
    Origin,
    UpdateDisplayData,
)
from kernelpool.notebooks.cells import code_cell, facts_of
from kernelpool.notebooks.outputs import OURS
from kernelpool.notebooks.parameters import tags_of
from kernelpool.notebooks.reading import Notebook
from kernelpool.protocol.outputs import cost_of, updated

SKIP, MAY_RAISE = "skip-execution", "raises-exception"
MAX_ID = 100
"""Characters of the id of a run, which those of its executions begin with."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    id: str
    """Cells are executed under ids made of it: a run that is sent again goes on where it stopped, and runs nothing
    twice."""
    cell_timeout: float
    timeout: float
    """Seconds of all cells together, waiting included."""
    max_output: int
    """Bytes of all outputs together."""
    stop_on_error: bool = True

    def __post_init__(self) -> None:
        if not ExecuteRequest.is_id(self.id) or len(self.id) > MAX_ID:
            raise InvalidRequest(f"operation-id must be 1 to {MAX_ID} of A-Z a-z 0-9 . _ : ~ - for a notebook")


class Runner(Protocol):
    """What executes the cells, and hears of their ends."""

    async def perform(self, index: int, request: ExecuteRequest) -> Execution:
        """Until its end."""

    async def cancel(self, id: str) -> Execution: ...

    async def finish(self, index: int, execution: Execution) -> None: ...


class NotebookRun:
    """One run of one notebook, which becomes the executed one. Cells that are not run stay as they came."""

    def __init__(self, notebook: Notebook, options: RunOptions, runner: Runner) -> None:
        self._notebook = notebook
        self._options = options
        self._runner = runner
        self._room = options.max_output
        self._failed: dict[str, Any] | None = None
        self._count = 0
        self._shown: dict[int, Execution] = {}
        """Of cells whose outputs may still change."""
        self._places: dict[str, set[int]] = {}
        """Cells by the ids of their displays."""

    async def run(self) -> Notebook:
        """Raises what the runner raises. Sent again with the same id, it goes on."""
        deadline = asyncio.get_running_loop().time() + self._options.timeout
        for index, cell in runnable(self._notebook):
            execution = await self._execute(index, cell, deadline)
            if execution is None:
                break
            self._count += 1
            await self._update(execution.updates)
            self._notebook["cells"][index] = self._executed(cell, execution)
            self._remember(index, execution)
            await self._runner.finish(index, execution)
            if execution.state is not ExecutionState.SUCCEEDED and not self._goes_on(cell, execution):
                break
        self._notebook["metadata"][OURS] = self._summary()
        return self._notebook

    async def _execute(self, index: int, cell: Mapping[str, Any], deadline: float) -> Execution | None:
        """None when there was no time left to begin."""
        request = self._request(index, cell)
        try:
            async with asyncio.timeout_at(deadline) as timeout:
                return await self._runner.perform(index, request)
        except TimeoutError:
            if not timeout.expired():
                raise
        exceeded = f"the run of the notebook exceeded {self._options.timeout:g} s"
        self._failed = self._failed or {"cell": cell["id"], "cause": EndCause.TIMED_OUT.value, "message": exceeded}
        with suppress(ExecutionNotFound):
            return await self._runner.cancel(request.id)
        return None

    def _request(self, index: int, cell: Mapping[str, Any]) -> ExecuteRequest:
        metadata = {name: value for name, value in cell["metadata"].items() if name != OURS}
        return ExecuteRequest(
            f"{self._options.id}.{index}",
            cell["source"],
            self._options.cell_timeout,
            origin=Origin.NOTEBOOK,
            cell=Cell(cell["id"], metadata if Cell.is_small(metadata) else {}),
        )

    def _remember(self, index: int, execution: Execution) -> None:
        for output in execution.outputs:
            if isinstance(output, DisplayOutput) and output.display_id:
                self._shown[index] = execution
                self._places.setdefault(output.display_id, set()).add(index)

    async def _update(self, updates: Iterable[UpdateDisplayData]) -> None:
        """What earlier cells have shown, when this one changes it."""
        changes = {update.display_id: update for update in updates}
        for index in sorted({index for id in changes for index in self._places.get(id, ())}):
            shown = self._shown[index]
            self._shown[index] = replace(shown, outputs=updated(shown.outputs, changes))
            self._notebook["cells"][index] = self._executed(self._notebook["cells"][index], self._shown[index])
            await asyncio.sleep(0)  # others get their turn: there may be many

    def _executed(self, cell: Mapping[str, Any], execution: Execution) -> dict[str, Any]:
        done = code_cell(cell["id"], cell["source"], cell["metadata"], execution)
        size = cost_of(list(done["outputs"]))
        if size > self._room:
            note = f"[kernelpool: {size} bytes of outputs were left out: a notebook has {self._options.max_output}]"
            done["outputs"] = [{"output_type": "stream", "name": "stderr", "text": f"{note}\n"}]
        else:
            self._room -= size
        return {**cell, **done}

    def _goes_on(self, cell: Mapping[str, Any], execution: Execution) -> bool:
        """After code that raised where it may, or where somebody wants to see the rest all the same."""
        raised = execution.cause is EndCause.RAISED
        if raised and MAY_RAISE in tags_of(cell):
            return True
        if self._failed is None:
            self._failed = {"cell": cell["id"], **_failure(execution)}
        return raised and not self._options.stop_on_error

    def _summary(self) -> dict[str, Any]:
        outcome = {"status": "succeeded"} if self._failed is None else {"status": "failed", **self._failed}
        return {"run": self._options.id, "executed": self._count, **outcome}


def runnable(notebook: Notebook) -> Iterator[tuple[int, dict[str, Any]]]:
    """The cells that a run executes, with their places."""
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code" and cell["source"].strip() and SKIP not in tags_of(cell):
            yield index, cell


def _failure(execution: Execution) -> dict[str, Any]:
    from_code = [output for output in execution.outputs if output.type == "error"]
    sentence = f"{from_code[-1].ename}: {from_code[-1].evalue}" if from_code else "the execution failed"
    return {"cause": facts_of(execution).get("cause"), "message": (execution.message or sentence)[:1000]}
