"""The gateway's client of agents against agents that were taken over: what they answer harms nobody but themselves."""

from __future__ import annotations

import asyncio
import errno
import json
import resource
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from kernelpool.agents import HttpAgent
from kernelpool.agents.answers import MAX_PARTS, count_parts, translated
from kernelpool.backends.base import UnixAddress
from kernelpool.errors import AgentFault, BackendUnavailable, Conflict, ExecutionNotFound, KernelpoolError, SandboxLost
from kernelpool.models import Activation, ExecuteRequest, WorkspacePath

Respond = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEADERS = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
STATUS = {"ready": True, "activated": True, "running": 0, "queued": 0, "idle_seconds": 0.0}
EXECUTION = {"id": "mine", "state": "succeeded", "created_at": 1.0}
FILE = {"path": "a", "is_directory": False, "size": 1, "modified_at": 1.0}
ROOT = WorkspacePath.parse("")


@asynccontextmanager
async def agent_that(respond: Respond, folder: Path, **limits: float) -> AsyncIterator[HttpAgent]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                await respond(reader, writer)
        finally:
            writer.transport.abort()

    served: set[asyncio.Task[None]] = set()
    server = await asyncio.start_unix_server(
        lambda *streams: served.add(asyncio.create_task(serve(*streams))), folder / "agent"
    )
    agent = HttpAgent(UnixAddress(str(folder / "agent")), "secret", **limits)
    async with server:
        try:
            yield agent
        finally:
            await agent.aclose()
            for task in served:
                task.cancel()
            await asyncio.gather(*served, return_exceptions=True)


def saying(body: bytes, status: str = "200 OK", headers: str = "") -> Respond:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

    return respond


def calls(agent: HttpAgent) -> dict[str, Callable[[], Awaitable[object]]]:
    request = ExecuteRequest("mine", "1", 1)

    async def events() -> None:
        async for _ in agent.events("mine"):
            pass

    async def read() -> None:
        async with agent.read_file(WorkspacePath.parse("a")) as content:
            async for _ in content.chunks:
                pass

    async def nothing() -> AsyncIterator[bytes]:
        yield b"x"

    return {
        "status": agent.status,
        "activate": lambda: agent.activate(Activation("s", 1, 1)),
        "execute": lambda: agent.execute(request),
        "submit": lambda: agent.submit(request),
        "execution": lambda: agent.execution("mine"),
        "cancel": lambda: agent.cancel("mine"),
        "events": events,
        "list_files": lambda: agent.list_files(ROOT),
        "file_info": lambda: agent.file_info(ROOT),
        "read_file": read,
        "write_file": lambda: agent.write_file(ROOT, nothing()),
        "delete_file": lambda: agent.delete_file(ROOT),
    }


CODES = ["Conflict", "ExecutionNotFound", "FileNotFound", "Unauthorized", "SessionsCountExceedsLimit", "NoSuchThing"]
ALLOWED = {
    "activate": {"Conflict"},
    "execute": {"Conflict"},
    "submit": {"Conflict"},
    "execution": {"Conflict", "ExecutionNotFound"},
    "cancel": {"Conflict", "ExecutionNotFound"},
    "events": {"Conflict", "ExecutionNotFound"},
    **{name: {"Conflict", "FileNotFound"} for name in ("list_files", "file_info", "read_file", "write_file")},
    "delete_file": {"Conflict", "FileNotFound"},
}


@pytest.mark.parametrize("code", CODES)
async def test_a_call_raises_only_what_it_says(tmp_path: Path, code: str) -> None:
    refusal = json.dumps({"code": code, "message": "\x1b[2Jboo"}).encode()
    async with agent_that(saying(refusal, "409 Conflict"), tmp_path) as agent:
        for name, call in calls(agent).items():
            with pytest.raises(KernelpoolError) as caught:
                await call()

            expected = code if code in ALLOWED.get(name, set()) else AgentFault.code
            assert (name, caught.value.code) == (name, expected)
            assert "\x1b" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("status", STATUS | {"idle_seconds": "NaN"}),
        ("execution", EXECUTION | {"id": "another"}),
        ("submit", EXECUTION | {"files": ["../etc/passwd"]}),
        ("cancel", EXECUTION | {"state": "Fine"}),
        ("events", {"seq": 0, "kind": "output", "data": {"text": 1}}),
        ("events", {"seq": 0, "kind": "done", "data": {"execution": EXECUTION | {"id": "another"}}}),
        ("events", {"seq": 0, "kind": "done", "data": {}}),
        ("list_files", {"files": [FILE | {"path": "/etc/passwd"}]}),
        ("list_files", {"files": [FILE | {"size": -1}]}),
        ("file_info", FILE | {"path": "a\r\nb"}),
    ],
)
async def test_an_answer_that_is_none_is_a_fault(tmp_path: Path, name: str, answer: Any) -> None:
    async with agent_that(saying(json.dumps(answer).encode() + b"\n"), tmp_path) as agent:
        with pytest.raises(AgentFault):
            await calls(agent)[name]()


@pytest.mark.parametrize("part", [b"{},", b"[],", b"0,", b'"",', b'"\\"",', b'{"":0},'])
async def test_an_answer_of_very_many_values_is_refused_before_it_becomes_them(tmp_path: Path, part: bytes) -> None:
    values = part * (3 * MAX_PARTS)
    outputs = b'[{"type":"result","data":{"application/json":[' + values + b'0]},"metadata":{}}]'
    body = b'{"id":"mine","state":"succeeded","created_at":1,"outputs":' + outputs + b"}"
    async with agent_that(saying(body), tmp_path) as agent:
        tracemalloc.start()
        try:
            with pytest.raises(AgentFault, match="values"):
                await agent.execution("mine")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak < 8 * len(body)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (b'{"a": [1, 2, {}], "b": "x,[{"}', 5),
        (rb'["a\\", "b\",[{", "\\\""]', 6),
        (b'"' + b"," * 1000 + b'"', 1),
        (b"[" * 100, 100),
    ],
)
def test_what_stands_in_strings_does_not_count(text: bytes, parts: int) -> None:
    assert parts <= count_parts(text) <= 2 * parts


async def test_a_flood_of_empty_lines_leaves_others_their_turn(tmp_path: Path) -> None:
    """64 MiB of keep-alives: the reader sees one for each chunk, and whatever else runs goes on meanwhile."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEADERS)
        for _ in range(64):
            writer.write(b"\n" * (1 << 20))
            await writer.drain()

    turns = seen = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with agent_that(respond, tmp_path) as agent:
        other = asyncio.create_task(others())
        with suppress(SandboxLost):
            async for event in agent.events("mine"):
                assert event is None
                seen += 1
        other.cancel()

    assert 0 < seen < 20_000
    assert turns >= seen


async def test_a_status_that_trickles_has_an_end(tmp_path: Path) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEADERS)
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with agent_that(respond, tmp_path, patience=0.2) as agent:
        with pytest.raises(SandboxLost, match=r"within 0\.2 s"):
            await agent.status()


async def test_an_upload_of_which_nothing_is_taken_has_an_end(tmp_path: Path) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    async def chunks() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 20)

    async with agent_that(respond, tmp_path, silence=0.2) as agent:
        with pytest.raises(SandboxLost, match="took nothing"):
            await agent.write_file(WorkspacePath.parse("a"), chunks())


async def test_a_slow_source_is_no_fault_of_the_agent(tmp_path: Path) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"0\r\n\r\n")
        await saying(json.dumps(FILE).encode())(reader, writer)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.sleep(0.5)
        yield b"b"

    async with agent_that(respond, tmp_path, silence=0.2) as agent:
        assert (await agent.write_file(WorkspacePath.parse("a"), chunks())).path == "a"


async def test_what_the_reader_of_a_file_raises_stays_his_own(tmp_path: Path) -> None:
    respond = saying(b"abc", headers=f"X-File: {json.dumps(FILE)}\r\n")
    async with agent_that(respond, tmp_path) as agent:
        for error in (ValueError("mine"), TimeoutError("mine"), ConnectionResetError("mine")):
            with pytest.raises(type(error), match="mine"):
                async with agent.read_file(WorkspacePath.parse("a")):
                    raise error


async def test_a_file_that_ends_early_is_an_error_and_no_lost_sandbox(tmp_path: Path) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nX-File: {json.dumps(FILE)}\r\n\r\n"
        writer.write(head.encode() + b"abc")
        await writer.drain()

    async with agent_that(respond, tmp_path) as agent, agent.read_file(WorkspacePath.parse("a")) as content:
        with pytest.raises(Conflict, match="changed"):
            async for _ in content.chunks:
                pass


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_gateway_without_descriptors_does_not_take_the_sandbox_for_lost(tmp_path: Path) -> None:
    async with agent_that(saying(json.dumps(EXECUTION).encode()), tmp_path) as agent:
        with no_descriptors_left(), pytest.raises(BackendUnavailable):
            await agent.execution("mine")

        assert (await agent.execution("mine")).id == "mine"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
def test_our_own_lack_is_told_from_a_lost_sandbox(number: int) -> None:
    with pytest.raises(BackendUnavailable), translated():
        raise OSError(number, "lack")


@pytest.mark.parametrize("first", ["9" * 5000, "²", "-1", ""])
async def test_a_range_that_is_none_is_a_fault(tmp_path: Path, first: str) -> None:
    headers = f"X-File: {json.dumps(FILE)}\r\nContent-Range: bytes {first}-9/9\r\n"
    async with agent_that(saying(b"x", "206 Partial Content", headers), tmp_path) as agent:
        with pytest.raises(AgentFault):
            async with agent.read_file(WorkspacePath.parse("a"), 0, 1):
                pass


async def test_what_is_asked_over_a_closed_connection_is_lost(tmp_path: Path) -> None:
    async with agent_that(saying(b"{}"), tmp_path) as agent:
        await agent.aclose()

        for name, call in calls(agent).items():
            with pytest.raises(SandboxLost):
                await call()
            assert name


async def test_an_unknown_execution_is_told_as_such(tmp_path: Path) -> None:
    refusal = json.dumps({"code": "ExecutionNotFound", "message": "none"}).encode()
    async with agent_that(saying(refusal, "404 Not Found"), tmp_path) as agent:
        with pytest.raises(ExecutionNotFound, match="none"):
            await agent.execution("mine")
