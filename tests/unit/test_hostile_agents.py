"""The gateway's client of agents against agents that were taken over: what they answer harms nobody but themselves."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
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
from kernelpool.models import Activation, ExecuteRequest, KeptExecution, WorkspacePath

Respond = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEADERS = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
STATUS = {"ready": True, "activated": True, "running": 0, "queued": 0, "idle_seconds": 0.0}
EXECUTION = {"id": "mine", "state": "succeeded", "created_at": 1.0}
OUTPUT = {"type": "stream", "name": "stdout", "text": "x"}
FILE = {"path": "a", "is_directory": False, "size": 1, "modified_at": 1.0}
ROOT = WorkspacePath.parse("")


@asynccontextmanager
async def agent_that(
    respond: Respond, folder: Path, *, reads_head: bool = True, **limits: float
) -> AsyncIterator[HttpAgent]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                if reads_head:
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

    async def executions() -> None:
        async for _ in agent.executions(3, limit=1):
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
        "kernel": agent.kernel,
        "interrupt": agent.interrupt,
        "restart": agent.restart,
        "events": events,
        "executions": executions,
        "list_files": lambda: agent.list_files(ROOT),
        "file_info": lambda: agent.file_info(ROOT),
        "read_file": read,
        "write_file": lambda: agent.write_file(ROOT, nothing()),
        "delete_file": lambda: agent.delete_file(ROOT),
    }


CODES = ["Conflict", "ExecutionNotFound", "FileNotFound", "Unauthorized", "SessionsCountExceedsLimit", "NoSuchThing"]
ALLOWED = {
    **{name: {"Conflict"} for name in ("activate", "kernel", "interrupt", "restart")},
    "execute": {"Conflict"},
    "submit": {"Conflict"},
    "execution": {"Conflict", "ExecutionNotFound"},
    "cancel": {"Conflict", "ExecutionNotFound"},
    "events": {"Conflict", "ExecutionNotFound"},
    "executions": {"Conflict"},
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
        ("kernel", {"execution_state": "fine", "last_activity": 1.0}),
        ("kernel", {"execution_state": "idle", "last_activity": 1e300}),
        ("restart", {"execution_state": "idle", "last_activity": 1.0, "connections": -1}),
        ("executions", {"number": 3, "code": "", "execution": EXECUTION}),
        ("executions", {"number": 4, "code": "", "execution": EXECUTION | {"id": "a/b"}}),
        ("executions", {"number": 4, "code": "", "execution": EXECUTION, "cell": {"id": "a/b"}}),
        ("executions", {"number": 4, "code": 1, "execution": EXECUTION}),
        ("executions", {"number": 4, "code": "", "execution": EXECUTION | {"outputs": [OUTPUT]}}),
        ("executions", {"count": -1}),
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
    """16 MiB of keep-alives: the reader sees one for each chunk, and whatever else runs goes on meanwhile."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEADERS)
        for _ in range(16):
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

    assert 0 < seen < 5_000
    assert turns >= seen


@pytest.mark.usefixtures("virtual_clock")
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


@pytest.mark.usefixtures("virtual_clock")
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


@pytest.mark.usefixtures("virtual_clock")
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


@pytest.mark.parametrize(
    ("status", "place"), [("206 Partial Content", "Content-Range: bytes 2-9/9\r\n"), ("200 OK", "")]
)
async def test_more_of_a_file_than_was_asked_for_is_a_fault(tmp_path: Path, status: str, place: str) -> None:
    headers = f"X-File: {json.dumps(FILE)}\r\n{place}"
    async with agent_that(saying(b"x" * 4, status, headers), tmp_path) as agent:
        with pytest.raises(AgentFault, match="4 bytes of a file, of which 3 were asked for"):
            async with agent.read_file(WorkspacePath.parse("a"), 2, 5):
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


async def test_a_list_of_executions_ends_where_it_was_to_end(tmp_path: Path) -> None:
    lines = [{"number": number, "code": "", "execution": EXECUTION} for number in (4, 5)]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in [*lines, {"count": 5}])
    async with agent_that(saying(body), tmp_path) as agent:
        listed = agent.executions(3, limit=1)
        assert isinstance(await anext(listed), KeptExecution)
        with pytest.raises(AgentFault):
            await anext(listed)


async def test_a_list_of_executions_that_breaks_off_is_no_list(tmp_path: Path) -> None:
    body = json.dumps({"number": 1, "code": "", "execution": EXECUTION}).encode() + b"\n"
    async with agent_that(saying(body), tmp_path) as agent:
        with pytest.raises(SandboxLost):
            _ = [item async for item in agent.executions()]


def upgraded(*frames: bytes) -> Respond:
    """Agrees to become a WebSocket and sends these bytes."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = next(line.split(": ")[1] for line in head.splitlines() if line.lower().startswith("sec-websocket-key"))
        digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
        accept = base64.b64encode(digest).decode()
        writer.write(
            f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )
        writer.write(b"".join(frames))
        await writer.drain()
        await reader.read()

    return respond


@pytest.mark.parametrize(
    "frame",
    [
        b"\x82\x03abc",  # binary, and no message
        b"\x81\x02hi",  # text, of which an agent has none
        b"\x82\x7f" + (2**40).to_bytes(8, "big"),  # a terabyte
        b"\x8f\x00",  # no such opcode
        b"\xc2\x00",  # a reserved bit
    ],
)
async def test_what_is_no_frame_of_a_kernel_is_a_fault(tmp_path: Path, frame: bytes) -> None:
    async with agent_that(upgraded(frame), tmp_path, reads_head=False) as agent, agent.channels("s") as channels:
        with pytest.raises(AgentFault):
            async for _ in channels:
                pass


async def test_channels_that_break_are_a_lost_sandbox(tmp_path: Path) -> None:
    closed = b"\x88\x02\x03\xe8"
    async with agent_that(upgraded(closed), tmp_path, reads_head=False) as agent, agent.channels("s") as channels:
        with pytest.raises(SandboxLost):
            async for _ in channels:
                pass


@pytest.mark.parametrize("status", ["200 OK", "418 I'm a teapot", "302 Found"])
async def test_an_upgrade_that_is_none_is_a_fault(tmp_path: Path, status: str) -> None:
    async with agent_that(saying(b"x", status), tmp_path) as agent:
        with pytest.raises(AgentFault):
            async with agent.channels("s"):
                pass
