"""What commands print. Names and output come from sandboxes: on a terminal, none of it may steer the terminal."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from kernelpool.client import (
    DisplayOutput,
    Done,
    ErrorOutput,
    Event,
    OutputEvent,
    OutputGap,
    Result,
    ResultOutput,
    StreamOutput,
)
from kernelpool.client.results import image_of, text_of
from kernelpool.client.transfers import Destination

_COLOURS = re.compile(r"(\x1b\[[0-9;]*m)")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
WIDE = 10_000
"""Columns of a table that no terminal shows: nothing is cut in it."""


def clean(text: str, stream: TextIO | Any) -> str:
    """For a terminal, text without what moves cursors, sets titles or asks the terminal to type; colours stay. For
    a file or a pipe, as it is."""
    if not stream.isatty():
        return text
    parts = _COLOURS.split(text)
    return "".join(part if index % 2 else _CONTROLS.sub("", part) for index, part in enumerate(parts))


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=True))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # No markup: a name may look like it. No line breaks or controls: on any stream, a row is a line.
        table.add_row(*(Text(_CONTROLS.sub("?", str(value)).replace("\n", "?")) for value in row))
    console = Console() if sys.stdout.isatty() else Console(width=WIDE)
    console.print(table)


def progress_bar(*, wanted: bool) -> Progress:
    """Of a transfer, on stderr, for who looks at it."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not (wanted and sys.stderr.isatty())
    )


class Counted:
    """Writes on, and shows how far it has come."""

    def __init__(self, file: Destination, progress: Progress, description: str, size: int | None) -> None:
        self._file = file
        self._progress = progress
        self._task = progress.add_task(description, total=size)

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._progress.update(self._task, advance=len(data))


class OutputPrinter:
    """Outputs as they come: stdout to stdout, stderr and notes to stderr, images into a directory."""

    def __init__(self, images: Path | None) -> None:
        self._images = images

    def show(self, event: Event) -> None:
        match event:
            case OutputEvent(output=StreamOutput() as output):
                _write(output.text, sys.stderr if output.name == "stderr" else sys.stdout)
            case OutputEvent(output=ErrorOutput() as output):
                _write("\n".join(output.traceback) or f"{output.ename}: {output.evalue}", sys.stderr, end="\n")
            case OutputEvent(output=DisplayOutput() | ResultOutput() as output):
                self._show_bundle(output)
            case OutputGap(dropped_bytes=count):
                note(f"{count} bytes of output were left out")
            case Done(result=result):
                self._show_end(result)

    def _show_bundle(self, output: DisplayOutput | ResultOutput) -> None:
        image = image_of(output)
        if image is not None and self._images is not None:
            note(f"saved {save_new(self._images, image.format, image.data)}")
        elif text := text_of(output):
            _write(text, sys.stdout, end="\n")

    def _show_end(self, result: Result) -> None:
        if result.state_lost.before:
            note(f"variables from before are gone: {result.state_lost.before}")
        if result.error is not None and result.cause != "raised":
            note(result.error.message)
        if result.state_lost.during:
            note(f"variables are lost: {result.state_lost.during}")


class LinePrinter:
    """Events as JSON, one a line; the last, `done`, holds the whole execution."""

    def show(self, event: Event) -> None:
        print_json(_as_json(event))
        sys.stdout.flush()


def _as_json(event: Event) -> dict[str, Any]:
    name = type(event).__name__
    if isinstance(event, Done):
        return {"event": "done", "id": event.id, "execution": event.result.raw}
    fields = {field: getattr(event, field) for field in event.__dataclass_fields__}
    if isinstance(event, OutputEvent):
        fields["output"] = {field: getattr(event.output, field) for field in event.output.__dataclass_fields__}
    return {"event": _EVENT_NAMES[name], **fields}


_EVENT_NAMES = {
    "StateEvent": "state",
    "OutputEvent": "output",
    "DisplayUpdate": "update_display",
    "OutputCleared": "clear_output",
    "OutputGap": "gap",
}


def save_new(directory: Path, format: str, data: bytes) -> Path:
    """Under the first free number, in the place of nothing that is there."""
    directory.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = directory / f"image-{number}.{format}"
        try:
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            number += 1
        else:
            return path


def note(text: str) -> None:
    """Something that is no output, for people."""
    click.echo(clean(f"[{text}]", sys.stderr), err=True)


def _write(text: str, stream: TextIO, end: str = "") -> None:
    # Whatever the terminal's encoding, no output is an error.
    encoding = stream.encoding or "utf-8"
    stream.write(clean(text, stream).encode(encoding, "replace").decode(encoding) + end)
    stream.flush()
