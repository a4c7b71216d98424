"""Outputs as nbformat 4.5 has them. Whatever a sandbox says becomes a valid output, or a note in its place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from kernelpool.models import DisplayOutput, ErrorOutput, Execution, ExecutionState, Output, ResultOutput, StreamOutput
from kernelpool.protocol.outputs import count_of, mime_bundle

OURS = "kernelpool"
"""The key in metadata under which everything of ours stands."""
_JSON = re.compile(r"application/(.*\+)?json")
"""Of these types nbformat takes any value; of all others, text."""


def notebook_outputs(execution: Execution) -> list[dict[str, Any]]:
    """Its outputs as nbclient would write them, and what there is to say besides as text on stderr."""
    before = [f"variables from before are gone: {lost}"] if (lost := execution.state_lost_before) else []
    outputs = [_notebook_output(output) for output in execution.outputs]
    return [*_notes(before), *outputs, *_notes(_endings(execution))]


def _endings(execution: Execution) -> Iterable[str]:
    """What is more than the code's own business."""
    if execution.message:
        yield execution.message
    if execution.state is ExecutionState.RUNNING:
        yield "it was still running when this was written"
    elif execution.state is ExecutionState.QUEUED:
        yield "it had not begun when this was written"


def _notes(sentences: Iterable[str]) -> list[dict[str, Any]]:
    text = "".join(f"[kernelpool: {sentence}]\n" for sentence in sentences)
    return [{"output_type": "stream", "name": "stderr", "text": text}] if text else []


def _notebook_output(output: Output) -> dict[str, Any]:
    match output:
        case StreamOutput():
            return {"output_type": "stream", "name": output.name, "text": output.text}
        case ErrorOutput():
            traceback = list(output.traceback)
            return {"output_type": "error", "ename": output.ename, "evalue": output.evalue, "traceback": traceback}
        case DisplayOutput():
            return {"output_type": "display_data", **_bundle(output)}
        case ResultOutput():
            count = count_of({"execution_count": output.execution_count})
            return {"output_type": "execute_result", "execution_count": count, **_bundle(output)}


def _bundle(output: DisplayOutput | ResultOutput) -> dict[str, Any]:
    data = {mime: _value(mime, value) for mime, value in mime_bundle(output.data).items()}
    ours: dict[str, Any] = {"files": list(output.files)} if output.files else {}
    if left_out := len(output.data) - len(data):
        ours["leftOut"] = left_out
        data = data or {"text/plain": f"[kernelpool: {left_out} representations that are none were left out]"}
    return {"data": data, "metadata": {**output.metadata, **({OURS: ours} if ours else {})}}


def _value(mime: str, value: Any) -> Any:
    """Text, where nbformat wants text: Vega's types are JSON by another name."""
    return value if isinstance(value, str) or _JSON.fullmatch(mime) else json.dumps(value)
