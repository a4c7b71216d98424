"""Kept executions → the cells of a notebook, in order. What is missing is said in its place."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from kernelpool.models import Cell, DisplayOutput, Execution, KeptExecution, Kind, UpdateDisplayData
from kernelpool.notebooks.outputs import OURS, notebook_outputs
from kernelpool.protocol.outputs import cost_of, count_of, updated

MAX_UPDATES = 32 << 20
"""Bytes of updates of displays that are held while a notebook is written."""
_NOTE, _DIGEST = "note-", "id-"


class Cells:
    """The cells of a session's notebook. Feed it the executions that are kept, the oldest first: once without outputs,
    to `foresee` what they do to those of earlier ones, then with them."""

    def __init__(self, language: str) -> None:
        """`language` is the kernel's: commands are cells that it runs, too."""
        self._is_shell = language == "bash"
        self._next = 1
        self._updates: dict[str, tuple[int, UpdateDisplayData]] = {}
        self._room = MAX_UPDATES

    def foresee(self, kept: KeptExecution) -> None:
        """What it changes of displays that earlier executions made; not all, when it is too much."""
        for update in kept.execution.updates:
            self._room -= cost_of([update.data, update.metadata])
            if self._room > 0:
                self._updates[update.display_id] = (kept.number, update)

    def of(self, kept: KeptExecution) -> Iterator[dict[str, Any]]:
        kept = self._as_it_became(kept)
        yield from self._missing(kept.number)
        self._next = kept.number + 1
        id = cell_id_of(kept.execution.id)
        if lost := kept.execution.state_lost_before:
            yield note(f"lost-{kept.number}", f"Variables from before are gone: {_quoted(lost)}")
        if kept.code is None:
            yield note(f"code-{kept.number}", "The code of the next cell was too long to be kept.")
        metadata = dict(kept.cell.metadata) if kept.cell else {}
        yield code_cell(id, self._source(kept), metadata, kept.execution, cell=kept.cell.id if kept.cell else None)

    def end(self, count: int) -> Iterator[dict[str, Any]]:
        """`count` is how many executions there ever were."""
        yield from self._missing(count + 1)

    def cut(self) -> Iterator[dict[str, Any]]:
        """When there is more than a notebook may hold."""
        yield note(f"cut-{self._next}", "The notebook is too long: the executions after this are missing.")

    def _source(self, kept: KeptExecution) -> str:
        is_command = kept.execution.kind is Kind.COMMAND and kept.code is not None
        return f"%%bash\n{kept.code}" if is_command and not self._is_shell else kept.code or ""

    def _as_it_became(self, kept: KeptExecution) -> KeptExecution:
        outputs = kept.execution.outputs
        shown = {output.display_id for output in outputs if isinstance(output, DisplayOutput) and output.display_id}
        known = {id: self._updates[id] for id in shown & self._updates.keys()}
        later = {id: update for id, (number, update) in known.items() if number > kept.number}
        return replace(kept, execution=replace(kept.execution, outputs=updated(outputs, later))) if later else kept

    def _missing(self, number: int) -> Iterator[dict[str, Any]]:
        if (missing := number - self._next) > 0:
            what = "1 execution is" if missing == 1 else f"{missing} executions are"
            yield note(f"gap-{self._next}", f"{what} missing here: the oldest make room for new ones.")


def code_cell(
    id: str, source: str, metadata: Mapping[str, Any], execution: Execution, *, cell: str | None = None
) -> dict[str, Any]:
    """`cell` is the id that it had in the notebook that it came from, where that is another."""
    return {
        "cell_type": "code",
        "id": id,
        "metadata": {**valid_metadata(metadata), OURS: facts_of(execution) | ({"cell": cell} if cell else {})},
        "source": source,
        "execution_count": count_of({"execution_count": execution.execution_count}),
        "outputs": notebook_outputs(execution),
    }


def facts_of(execution: Execution) -> dict[str, Any]:
    """What is known of an execution, for the metadata of its cell."""
    facts = {
        "execution": execution.id,
        "origin": execution.origin.value,
        "state": execution.state.value,
        "cause": execution.cause.value if execution.cause else None,
        "createdAt": moment(execution.created_at),
        "startedAt": moment(execution.started_at),
        "finishedAt": moment(execution.finished_at),
        "droppedBytes": execution.dropped_bytes or None,
        "stateLostBefore": execution.state_lost_before,
        "stateLostDuring": execution.state_lost_during,
    }
    return {name: value for name, value in facts.items() if value is not None}


def moment(seconds: float | None) -> str | None:
    """ISO 8601, as ACA writes it."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


def note(id: str, text: str) -> dict[str, Any]:
    """A cell of ours between those of the session."""
    return {"cell_type": "markdown", "id": f"{_NOTE}{id}", "metadata": {OURS: {"note": True}}, "source": f"*{text}*"}


def cell_id_of(execution: str) -> str:
    """Of a cell, by its execution: two that differ give ids that differ, and always the same."""
    if Cell.is_id(execution) and not execution.startswith((_NOTE, _DIGEST)):
        return execution
    return _DIGEST + hashlib.sha256(execution.encode()).hexdigest()[:40]


def valid_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Without what nbformat's schema would not let stand there."""
    return {name: value for name, value in metadata.items() if name not in _RULES or _RULES[name](value)}


def _are_tags(value: Any) -> bool:
    texts = isinstance(value, list) and all(isinstance(tag, str) and re.fullmatch(r"[^,]+", tag) for tag in value)
    return texts and len(set(value)) == len(value)


_RULES: Mapping[str, Callable[[Any], bool]] = {
    "jupyter": lambda value: isinstance(value, dict),
    "execution": lambda value: isinstance(value, dict) and all(isinstance(time, str) for time in value.values()),
    "collapsed": lambda value: isinstance(value, bool),
    "scrolled": lambda value: isinstance(value, bool) or value == "auto",
    "name": lambda value: isinstance(value, str) and re.match(r".", value) is not None,
    "tags": _are_tags,
}


def _quoted(text: str) -> str:
    """A sandbox's words, as no markup."""
    return f"`{''.join(char if char.isprintable() and char != '`' else ' ' for char in text[:500])}`"
