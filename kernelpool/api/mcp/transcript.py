"""An execution as a model reads it: one text in the order of events, images beside it, and no more than it can take.

Long text keeps its head and its tail, and says how to read what is between. Nothing is told twice: an image is an
image, never base64 text too, and a traceback is its first line and the frames that matter.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kernelpool.api.json_text import mend_text
from kernelpool.api.streams import fold_lines
from kernelpool.models import (
    WORKSPACE,
    DisplayOutput,
    EndCause,
    ErrorOutput,
    Execution,
    ExecutionState,
    Kind,
    Output,
    ResultOutput,
    StreamOutput,
)

MAX_TEXT = 16_000
"""Characters that an answer has when the caller does not say: some 4,000 tokens."""
MOST_TEXT = 100_000
MAX_ANSWER = 900_000
"""Bytes of text and images in one answer: clients drop an event of more than 1 MiB."""
MAX_IMAGES = 8
MAX_FILES = 20
"""Named in the text."""
IMAGES = ("image/png", "image/jpeg", "image/webp", "image/gif")
"""What models look at."""
_MAGIC = {
    "image/png": re.compile(rb"\x89PNG"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "image/gif": re.compile(rb"GIF8[79]a"),
}
_TRACEBACK = 4_000
_RULER = re.compile(r"\A-{20,}\n")
"""With which IPython begins."""
_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_SENTENCES = {
    EndCause.TIMED_OUT: "The code ran into its time-out.",
    EndCause.CANCELED: "The execution was canceled.",
    EndCause.KERNEL_DIED: "The kernel died; the session's variables are lost.",
}


@dataclass(frozen=True, slots=True)
class Image:
    mime: str
    data: str
    """Base64."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """All of it; `window` says what of it is shown."""

    text: str
    images: tuple[Image, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a text."""

    text: str
    omitted: int
    """Characters that were left out."""


def transcript(execution: Execution) -> Transcript:
    images: list[Image] = []
    parts = [part for output in execution.outputs for part in _parts(output, images)]
    notes = [f"[{note}]" for note in (*notes_of(execution), *_files(execution), *_progress(execution))]
    text = _joined([*parts, *notes])
    return Transcript(mend_text(text), tuple(images))


def stream(execution: Execution, name: str) -> str:
    texts = (output.text for output in execution.outputs if isinstance(output, StreamOutput) and output.name == name)
    return _plain("".join(texts))


def stderr(execution: Execution) -> str:
    """With the traceback, as ACA has it."""
    return _joined([stream(execution, "stderr"), *(traceback(error) for error in errors(execution))])


def result(execution: Execution) -> str:
    """The last expression's value as text; "" without one."""
    values = [output.data.get("text/plain") for output in execution.outputs if isinstance(output, ResultOutput)]
    return _plain(values[-1]) if values and isinstance(values[-1], str) else ""


def errors(execution: Execution) -> list[ErrorOutput]:
    return [output for output in execution.outputs if isinstance(output, ErrorOutput)]


def exit_code(execution: Execution) -> int:
    """-1 of a command that did not end by itself; 0 of code."""
    code = execution.exit_code
    return code if code is not None else 0 if execution.kind is Kind.CODE or not execution.state.is_final else -1


def notes_of(execution: Execution) -> Iterator[str]:
    """What happened besides the code's own business."""
    if execution.state_lost_before:
        yield mend_text(execution.state_lost_before)
    if execution.state.is_final and execution.cause in _SENTENCES:
        yield mend_text(execution.message or _SENTENCES[execution.cause])
    if exit_code(execution) > 0:
        yield f"exit code {execution.exit_code}"
    if execution.state_lost_during:
        yield mend_text(execution.state_lost_during)
    if execution.dropped_bytes:
        yield f"{execution.dropped_bytes} bytes from the middle of the output were dropped for good"


def traceback(error: ErrorOutput) -> str:
    """Its head and the innermost frames; the last line names the exception even when the kernel sent no traceback."""
    text = _RULER.sub("", _plain("\n".join(error.traceback))) or mend_text(f"{error.ename}: {error.evalue}")
    return text if len(text) <= _TRACEBACK else window(text, _TRACEBACK).text


def window(text: str, limit: int, how: str = "") -> Window:
    """Head and tail within `limit` characters, the marker between them not counted. `how` may hold `{offset}`, where
    what is left out begins."""
    if len(text) <= limit:
        return Window(text, 0)
    head = limit // 2
    tail = len(text) - (limit - head)
    marker = f"\n[… {tail - head} characters left out{how.format(offset=head)} …]\n"
    return Window(text[:head] + marker + text[tail:], tail - head)


def is_image(mime: str, data: bytes) -> bool:
    """What a sandbox calls one need not be, and a model that is shown what is none may refuse the conversation."""
    return _MAGIC[mime].match(data) is not None


def fitting(images: Iterable[Image], room: int) -> list[Image]:
    """As many as fit, of those that are images at all: what a sandbox calls one need not be."""
    found: list[Image] = []
    for image in images:
        if len(found) < MAX_IMAGES and len(image.data) <= room and _is_whole(image):
            found.append(image)
            room -= len(image.data)
    return found


def _parts(output: Output, images: list[Image]) -> Iterator[str]:
    match output:
        case StreamOutput():
            yield _plain(output.text)
        case ErrorOutput():
            yield traceback(output)
        case DisplayOutput() | ResultOutput():
            yield _shown(output, images)


def _shown(output: DisplayOutput | ResultOutput, images: list[Image]) -> str:
    for mime in IMAGES:
        if isinstance(data := output.data.get(mime), str):
            images.append(Image(mime, "".join(data.split())))
            where = f", saved as {WORKSPACE}/{mend_text(output.files[0])}" if output.files else ""
            return f"[image {len(images)}{where}]"
    for mime in ("text/plain", "text/markdown", "text/html"):
        if isinstance(text := output.data.get(mime), str):
            return _plain(text)
    kinds = ", ".join(sorted(str(kind)[:80] for kind in output.data)[:8])
    return f"[an output of the kinds {kinds}]" if kinds else ""


def _files(execution: Execution) -> Iterator[str]:
    """Those that no image has named."""
    displays = (output for output in execution.outputs if isinstance(output, DisplayOutput | ResultOutput))
    named = {path for output in displays for path in output.files}
    files = [f"{WORKSPACE}/{mend_text(path)}" for path in execution.files if path not in named]
    if files:
        more = f" and {len(files) - MAX_FILES} more" if len(files) > MAX_FILES else ""
        yield f"files written: {', '.join(files[:MAX_FILES])}{more}"


def _progress(execution: Execution) -> Iterator[str]:
    if execution.state is ExecutionState.QUEUED:
        yield "waits for the session's executions before it"
    elif not execution.state.is_final:
        yield "still running"


def _joined(parts: Iterable[str]) -> str:
    """Each on a line of its own, which streams are not always."""
    text = ""
    for part in parts:
        if part:
            text += ("\n" if text and not text.endswith("\n") else "") + part
    return text


def _plain(text: str) -> str:
    return _ANSI.sub("", fold_lines(mend_text(text)))


def _is_whole(image: Image) -> bool:
    try:
        return is_image(image.mime, base64.b64decode(image.data, validate=True))
    except (binascii.Error, ValueError):
        return False
