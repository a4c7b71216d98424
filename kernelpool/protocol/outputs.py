"""Kernel messages → Outputs: checked, cleaned, and folded as a notebook would fold them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from kernelpool.models import (
    DisplayOutput,
    ErrorOutput,
    Event,
    Output,
    ResultOutput,
    StreamOutput,
    UpdateDisplayData,
)
from kernelpool.protocol.messages import Message

MAX_MIME_TYPES = 32
MAX_TRACEBACK_LINES = 200
MAX_TRACEBACK = 256 << 10
"""Characters of a traceback, all lines together."""
MAX_TEXT = 64 << 10
"""Characters of an exception's text."""

# What things in JSON cost a reader besides their text, in bytes: `[{},{},…]` costs him a hundred times its length.
CONTAINER = 128
STRING = 64
SCALAR = 32
_MIME = re.compile(r"[A-Za-z0-9][\w.+-]{0,126}/[A-Za-z0-9][\w.+-]{0,126}(;[ \w.+=\"/-]{1,100})?")
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]*")
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


def text_of(value: object, limit: int = MAX_TEXT) -> str:
    """Whatever should have been text, as text of bounded length."""
    text = value if isinstance(value, str) else "" if value is None else str(value)[:limit]
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-limit // 2 :]}"


def stream_output(content: dict[str, Any]) -> StreamOutput | None:
    name, text = content.get("name"), content.get("text")
    if name not in ("stdout", "stderr") or not isinstance(text, str) or not text:
        return None
    return StreamOutput(name, text)


def display_output(content: dict[str, Any]) -> DisplayOutput:
    transient = content.get("transient")
    display_id = transient.get("display_id") if isinstance(transient, dict) else None
    return DisplayOutput(
        data=mime_bundle(content.get("data")),
        metadata=_metadata(content.get("metadata")),
        display_id=display_id if isinstance(display_id, str) and len(display_id) <= 256 else None,
    )


def result_output(content: dict[str, Any]) -> ResultOutput:
    return ResultOutput(
        data=mime_bundle(content.get("data")),
        metadata=_metadata(content.get("metadata")),
        execution_count=count_of(content),
    )


def error_output(content: dict[str, Any]) -> ErrorOutput:
    lines = content.get("traceback")
    return ErrorOutput(
        ename=_ANSI.sub("", text_of(content.get("ename"), 256)),
        evalue=_ANSI.sub("", text_of(content.get("evalue"))),
        traceback=tuple(_traceback(lines if isinstance(lines, list) else [])),
    )


def _traceback(lines: list[Any]) -> list[str]:
    """Without colours, and of bounded length: its first and last lines, and how many are missing between."""
    half = min(MAX_TRACEBACK_LINES, len(lines) + 1) // 2
    first, last = lines[:half], lines[half:][-half:]
    head = _within(MAX_TRACEBACK // 2, first)
    tail = _within(MAX_TRACEBACK // 2, reversed(last))[::-1]
    missing = len(lines) - len(head) - len(tail)
    return [*head, f"… {missing} lines left out …", *tail] if missing else [*head, *tail]


def _within(room: int, lines: Iterable[Any]) -> list[str]:
    """As many of the lines as there is room for; a first one that is longer is cut."""
    taken: list[str] = []
    for line in lines:
        text = _ANSI.sub("", text_of(line, room if not taken else MAX_TEXT))
        room -= len(text)
        if room < 0 and taken:
            break
        taken.append(text)
    return taken


def count_of(content: dict[str, Any]) -> int | None:
    """A plausible execution count, or None: code can forge any number."""
    count = content.get("execution_count")
    return count if isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 2**31 else None


def mime_bundle(data: object) -> dict[str, Any]:
    """Keeps what has a real MIME name and a value of that type's form; base64 is checked to be base64."""
    bundle: dict[str, Any] = {}
    if not isinstance(data, dict):
        return bundle
    for mime, value in data.items():
        if len(bundle) >= MAX_MIME_TYPES:
            break
        if not _MIME.fullmatch(mime):
            continue
        if mime == "application/json" or mime.endswith(("+json", ".json")):  # the latter is Vega's way
            bundle[mime] = value
            continue
        if isinstance(value, list) and all(isinstance(line, str) for line in value):
            value = "".join(value)
        if not isinstance(value, str) or (is_binary(mime) and not _BASE64.fullmatch(value)):
            continue
        bundle[mime] = value
    return bundle


def is_binary(mime: str) -> bool:
    """Whether Jupyter carries this type as base64."""
    kind = mime.partition("/")[0]
    return (kind in ("image", "audio", "video") and mime != "image/svg+xml") or mime in (
        "application/pdf",
        "application/octet-stream",
    )


def size_of(output: dict[str, Any]) -> int:
    """What an output costs of a budget: of text its length, of all else what it takes to hold it as JSON's values."""
    text = output.get("text")
    if isinstance(text, str):
        return len(text)
    named = [*output.get("data", {}).items(), *output.get("metadata", {}).items()]
    return cost_of([output.get("evalue", ""), *output.get("traceback", ()), *chain.from_iterable(named)])


def cost_of(pending: list[Any]) -> int:
    """Bytes that values of JSON take, and uses the list up. No recursion, which would be the attack."""
    cost = 0
    while pending:
        match pending.pop():
            case str() as text:
                cost += STRING + len(text)
            case dict() as members:
                cost += CONTAINER + sum(STRING + len(key) for key in members)
                pending.extend(members.values())
            case list() as items:
                cost += CONTAINER
                pending.extend(items)
            case int() as number:
                cost += SCALAR + number.bit_length() // 3
            case _:
                cost += SCALAR
    return cost


def left_out(body: dict[str, Any], note: str) -> dict[str, Any]:
    """An output, or the update of one, that says `note` instead of what it is too large for."""
    if body.get("type") == "error":
        return {**body, "evalue": text_of(body["evalue"], 100), "traceback": [note]}
    return {**body, "data": {"text/plain": note}, "metadata": {}}


def _metadata(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


OUTPUTS: dict[str, Callable[[dict[str, Any]], Output | None]] = {
    "stream": stream_output,
    "display_data": display_output,
    "execute_result": result_output,
    "error": error_output,
}


def output_of(message: Message) -> Output | None:
    """None for what is no output, or an empty one."""
    make = OUTPUTS.get(message.msg_type)
    return make(message.content) if make else None


def to_json(output: Output) -> dict[str, Any]:
    """Shallow: the MIME bundle is shared, not copied."""
    match output:
        case StreamOutput():
            return {"type": "stream", "name": output.name, "text": output.text}
        case ErrorOutput():
            return {
                "type": "error",
                "ename": output.ename,
                "evalue": output.evalue,
                "traceback": list(output.traceback),
            }
        case DisplayOutput():
            rest: dict[str, Any] = {"display_id": output.display_id}
        case ResultOutput():
            rest = {"execution_count": output.execution_count}
    return {
        "type": output.type,
        "data": output.data,
        "metadata": output.metadata,
        "files": list(output.files),
        **rest,
    }


def from_json(value: dict[str, Any]) -> Output:
    """The inverse of `to_json`, for values that we made ourselves."""
    fields = {key: item for key, item in value.items() if key != "type"}
    match value["type"]:
        case "stream":
            return StreamOutput(**fields)
        case "error":
            return ErrorOutput(fields["ename"], fields["evalue"], tuple(fields["traceback"]))
        case "display_data":
            return DisplayOutput(**{**fields, "files": tuple(fields["files"])})
        case _:
            return ResultOutput(**{**fields, "files": tuple(fields["files"])})


def strays(events: Iterable[Event]) -> tuple[UpdateDisplayData, ...]:
    """Updates of displays that are none of these events' own: of an earlier execution, as a rule. The last of each."""
    own: set[str] = set()
    updates: dict[str, UpdateDisplayData] = {}
    for event in events:
        if event.kind == "output" and (display_id := event.data.get("display_id")):
            own.add(display_id)
        elif event.kind == "update_display" and event.data["display_id"] not in own:
            updates[event.data["display_id"]] = UpdateDisplayData(**{**event.data, "files": tuple(event.data["files"])})
    return tuple(updates.values())


def updated(outputs: Iterable[Output], updates: Mapping[str, UpdateDisplayData]) -> tuple[Output, ...]:
    """The outputs, as these updates by display id leave them."""
    return tuple(
        replace(output, data=update.data, metadata=update.metadata, files=update.files)
        if isinstance(output, DisplayOutput) and (update := updates.get(output.display_id or "")) is not None
        else output
        for output in outputs
    )


def _gap_marker(event: Event, before: list[Output]) -> StreamOutput:
    last = before[-1] if before else None
    name = last.name if isinstance(last, StreamOutput) else "stdout"
    return StreamOutput(name, f"\n[… {event.data['dropped_bytes']} bytes of output left out …]\n")


def fold(events: Iterable[Event]) -> tuple[Output, ...]:
    """The outputs that a notebook would show after these events.

    Neighbouring text of one stream is joined; `clear_output(wait=True)` clears when the next output comes;
    `update_display` changes every output with that display_id in place.
    """
    outputs: list[Output] = []
    texts: list[str] = []  # parts of the last output while it is a stream: joined once, not once a part
    clear_pending = False

    def settle() -> None:
        if len(texts) > 1 and isinstance(last := outputs[-1], StreamOutput):
            outputs[-1] = StreamOutput(last.name, "".join(texts))
        texts.clear()

    for event in events:
        if event.kind == "clear_output":
            clear_pending = bool(event.data.get("wait"))
            if not clear_pending:
                texts.clear()
                outputs.clear()
        elif event.kind == "update_display":
            for index, output in enumerate(outputs):
                if isinstance(output, DisplayOutput) and output.display_id == event.data["display_id"]:
                    outputs[index] = replace(
                        output,
                        data=event.data["data"],
                        metadata=event.data["metadata"],
                        files=tuple(event.data.get("files", ())),
                    )
        elif event.kind in ("output", "gap"):
            if clear_pending:
                texts.clear()
                outputs.clear()
                clear_pending = False
            output = from_json(event.data) if event.kind == "output" else _gap_marker(event, outputs)
            if isinstance(output, StreamOutput) and texts and getattr(outputs[-1], "name", None) == output.name:
                texts.append(output.text)
                continue
            settle()
            outputs.append(output)
            if isinstance(output, StreamOutput):
                texts.append(output.text)
    settle()
    return tuple(outputs)
