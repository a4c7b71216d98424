"""What agents answer, before it is believed: bounded, parsed, validated. An agent may be hostile."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
from pydantic import TypeAdapter, ValidationError

from kernelpool.errors import AgentFault, BackendUnavailable, Conflict, InvalidPath, KernelpoolError, SandboxLost
from kernelpool.models import (
    EVENT_DATA,
    AgentStatus,
    DoneData,
    Event,
    Execution,
    FileInfo,
    KeptExecution,
    KernelState,
    WorkspacePath,
)

MAX_ANSWER = 112 << 20
"""Bytes of one answer. More than the largest honest one: outputs are limited to 16 MiB, and JSON makes a control
character six bytes."""
MAX_LINE = MAX_ANSWER
MAX_PARTS = 500_000
"""Values in one answer. They cost memory where bytes cost none: 64 MB of `{}` become 9 GB of dicts. The largest honest
answers are lists of 20,000 files and outputs whose containers the agent has charged 64 bytes each."""
HARMLESS_BYTES = 256 << 10
"""What is smaller cannot hold many."""
EVENTS_A_TURN = 100
ERROR_BYTES = 64 << 10

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Files:
    files: list[FileInfo]


@dataclass(frozen=True, slots=True)
class Count:
    """The last line of a list of executions."""

    count: int


STATUS = TypeAdapter(AgentStatus)
EXECUTION = TypeAdapter(Execution)
KERNEL = TypeAdapter(KernelState)
EVENT = TypeAdapter(Event)
LISTED: TypeAdapter[KeptExecution | Count] = TypeAdapter(KeptExecution | Count)
FILE = TypeAdapter(FileInfo)
FILES = TypeAdapter(Files)
_EVENT_DATA: dict[str, TypeAdapter[Any]] = {kind: TypeAdapter(data) for kind, data in EVENT_DATA.items()}

_NO_STRUCTURE = bytes(set(range(256)) - set(b'"[{,'))
_OUR_OWN_LACK = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


def parse(kind: TypeAdapter[T], raw: bytes) -> T:
    """Raises `AgentFault` for whatever is no `kind`, or is too much."""
    if len(raw) > HARMLESS_BYTES and count_parts(raw) > MAX_PARTS:
        raise AgentFault(f"the sandbox's agent answered with more than {MAX_PARTS} values")
    try:
        return kind.validate_json(raw)
    except (ValidationError, KernelpoolError) as error:
        raise AgentFault(f"the sandbox's agent answered with something unexpected ({type(error).__name__})") from error


def count_parts(raw: bytes) -> int:
    """About how many values a JSON text would become, without making them. Never less than half of them."""
    skeleton = raw.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NO_STRUCTURE)
    quotes = skeleton.count(b'"')
    if quotes > 2 * MAX_PARTS:
        return quotes // 2
    return quotes // 2 + sum(map(len, skeleton.split(b'"')[::2]))


def check_event(event: Event, id: str) -> Event:
    """Its data is what its kind says, of the execution that was asked for."""
    try:
        data = _EVENT_DATA[event.kind].validate_python(event.data)
    except (ValidationError, KernelpoolError) as error:
        raise AgentFault("the sandbox's agent sent an event that is none") from error
    if isinstance(data, DoneData):
        check_execution(data.execution, id)
    return event


def check_execution(execution: Execution, id: str) -> Execution:
    if execution.id != id:
        raise AgentFault("the sandbox's agent answered with another execution")
    for path in execution.files:
        _check_path(path)
    return execution


def check_count(count: int, least: int) -> int:
    """Of a session's executions, of which there are `least` already."""
    if not least <= count < 2**53:
        raise AgentFault("the sandbox's agent counted an impossible number of executions")
    return count


def check_file(info: FileInfo) -> FileInfo:
    """A path that the agent names becomes part of answers and headers: it must be one."""
    _check_path(info.path)
    if info.size < 0:
        raise AgentFault("the sandbox's agent named an impossible size")
    return info


def _check_path(text: str) -> None:
    try:
        path = WorkspacePath.parse(text)
    except InvalidPath:
        raise AgentFault("the sandbox's agent named an impossible path") from None
    if path.text != text:
        raise AgentFault("the sandbox's agent named an impossible path")


def clean(text: object) -> str:
    """What a hostile agent says, fit for a message and a log line."""
    return "".join(char if char.isprintable() else " " for char in str(text)[:500])


@contextmanager
def translated() -> Iterator[None]:
    """What goes wrong with HTTP, as what it means."""
    try:
        yield
    except OSError as error:  # aiohttp's errors of connecting are OSErrors too
        if error.errno in _OUR_OWN_LACK:
            raise BackendUnavailable("the gateway has no file descriptors or memory left") from error
        raise SandboxLost(f"the sandbox does not answer ({type(error).__name__})") from error
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
        raise SandboxLost(f"the sandbox does not answer ({type(error).__name__})") from error
    except (aiohttp.ClientError, ValueError) as error:
        raise AgentFault(f"the sandbox's agent answered with bad HTTP ({type(error).__name__})") from error


async def read(response: aiohttp.ClientResponse, limit: int = MAX_ANSWER) -> bytes:
    body = bytearray()
    with translated():
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > limit:
                response.close()
                raise AgentFault(f"the sandbox's agent answered with more than {limit} bytes")
    return bytes(body)


async def read_lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of an answer of any length, each of bounded length; an empty one at most once a chunk. However much there
    is, others get their turn."""
    parts: list[bytes] = []
    size = 0
    async for chunk in _chunks(response):
        *complete, rest = chunk.split(b"\n")
        is_silent = True
        for number, line in enumerate(complete):
            if parts or line:
                is_silent = False
                yield b"".join([*parts, line])
                parts, size = [], 0
            if number % EVENTS_A_TURN == EVENTS_A_TURN - 1:
                await asyncio.sleep(0)
        if is_silent and complete:
            yield b""
        if rest:
            parts.append(rest)
            size += len(rest)
        if size > MAX_LINE:
            response.close()
            raise AgentFault(f"the sandbox's agent sent a line of more than {MAX_LINE} bytes")
        await asyncio.sleep(0)


async def read_exactly(response: aiohttp.ClientResponse, length: int) -> AsyncIterator[bytes]:
    """The body, which must be as long as was said: a short one is an error, never a short file. It is no sign that the
    sandbox is lost: an honest agent breaks off when the file shrinks while it is read."""
    chunks = response.content.iter_chunked(256 << 10)
    while True:
        try:
            with translated():
                chunk = await anext(chunks, None)
        except SandboxLost as error:
            if isinstance(error.__cause__, aiohttp.ClientPayloadError):
                break
            raise
        if chunk is None:
            break
        length -= len(chunk)
        if length < 0:
            raise AgentFault("a download was longer than announced")
        yield chunk
    if length:
        raise Conflict("the file changed while it was read")


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """As `iter_any`; what the reader of the chunks raises stays his own."""
    chunks = response.content.iter_any()
    while True:
        with translated():
            chunk = await anext(chunks, None)
        if chunk is None:
            return
        yield chunk


def error_of(status: int, raw: bytes, may_raise: Collection[type[KernelpoolError]]) -> KernelpoolError:
    """What an agent refuses a call with: one of what the call may raise. Anything else is a fault of its."""
    errors = {error.code: error for error in may_raise}
    try:
        body = json.loads(raw)
        return errors[body["code"]](clean(body["message"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return AgentFault(f"the sandbox's agent answered with status {status}")
