"""The gateway's typed client of an agent. The only module that knows the agent's routes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import aiohttp
from pydantic import TypeAdapter, ValidationError

from kernelpool.backends.base import Address, Sandbox, TcpAddress, UnixAddress
from kernelpool.errors import (
    AgentFault,
    Conflict,
    ExecutionNotFound,
    ExecutionQueueFull,
    FileNotFound,
    InvalidFileName,
    InvalidPath,
    InvalidRequest,
    KernelpoolError,
    RangeNotSatisfiable,
    SandboxLost,
    StartFailed,
    WorkspaceFull,
)
from kernelpool.models import (
    Activation,
    AgentStatus,
    Event,
    ExecuteRequest,
    Execution,
    FileInfo,
    Output,
    WorkspacePath,
)


@dataclass(frozen=True, slots=True)
class FileContent:
    """A download under way: `stop - start` bytes follow in `chunks`."""

    info: FileInfo
    start: int
    stop: int
    chunks: AsyncIterator[bytes]


class Agent(Protocol):
    """One sandbox's agent, as the gateway sees it.

    Every method may raise `SandboxLost` (no answer within the silence limit, connection refused or cut) and
    `AgentFault` (an answer that the contract does not allow); what else a method raises, it says. Waits are bounded.
    """

    async def wait_ready(self, timeout: float) -> None:
        """Until the kernel has answered and is warm. Raises `StartFailed` after `timeout` seconds or when the agent
        says that its kernel does not come up."""

    async def status(self) -> AgentStatus: ...

    async def activate(self, activation: Activation) -> None:
        """Once in an agent's life. Raises `Conflict` the second time."""

    async def execute(self, request: ExecuteRequest) -> Execution:
        """Runs it and waits for the end; the same id attaches to the same execution. Cancelling the caller only stops
        the waiting: a gateway that dies must not stop what runs. Raises `ExecutionQueueFull`."""

    async def submit(self, request: ExecuteRequest) -> Execution:
        """Queues it and returns a look at it at once. Idempotent by id. Raises `ExecutionQueueFull`."""

    def events(self, id: str, after: int = -1) -> AsyncIterator[Event | None]:
        """The execution's events with seq > after, as they happen, the last being `done`; None is a keep-alive.
        Raises `ExecutionNotFound`."""

    async def execution(self, id: str) -> Execution:
        """Raises `ExecutionNotFound`."""

    async def cancel(self, id: str) -> Execution:
        """Interrupts it when it runs, unqueues it when it waits, and waits for its end. Raises `ExecutionNotFound`."""

    async def list_files(self, path: WorkspacePath, *, recursive: bool = False) -> Sequence[FileInfo]:
        """Raises `FileNotFound`, `InvalidRequest` (not a directory)."""

    async def file_info(self, path: WorkspacePath) -> FileInfo:
        """Raises `FileNotFound`."""

    def read_file(
        self, path: WorkspacePath, start: int | None = None, stop: int | None = None
    ) -> AbstractAsyncContextManager[FileContent]:
        """Bytes start..stop, stop exclusive; a negative start counts from the end; None means from/to the end.
        Raises `FileNotFound`, `InvalidRequest` for what is no regular file, `RangeNotSatisfiable`."""

    async def write_file(self, path: WorkspacePath, chunks: AsyncIterator[bytes]) -> FileInfo:
        """Into a temporary name, then renamed; makes parent directories. Raises `WorkspaceFull`, `InvalidRequest`."""

    async def delete_file(self, path: WorkspacePath) -> None:
        """A file, or a directory with all in it. Raises `FileNotFound`."""

    async def aclose(self) -> None:
        """Closes the connections; the agent lives on."""


Connect = Callable[[Sandbox], Agent]


MAX_ANSWER = 64 << 20
"""Bytes of one answer. More than the largest honest one: outputs are limited, and JSON makes them longer."""
MAX_LINE = 32 << 20
READY_INTERVAL = 0.05

T = TypeVar("T")

# What an honest agent answers with; anything else is a fault of its, whatever it says.
_ERRORS: dict[str, type[KernelpoolError]] = {
    error.code: error
    for error in (
        Conflict,
        ExecutionNotFound,
        ExecutionQueueFull,
        FileNotFound,
        InvalidFileName,
        InvalidPath,
        InvalidRequest,
        RangeNotSatisfiable,
        WorkspaceFull,
    )
}
_STATUS = TypeAdapter(AgentStatus)
_EXECUTION = TypeAdapter(Execution)
_EVENT = TypeAdapter(Event)
_FILE = TypeAdapter(FileInfo)
_OUTPUT: TypeAdapter[Any] = TypeAdapter(Output)
_DONE: TypeAdapter[Any] = TypeAdapter(dict[str, Execution])


@dataclass(frozen=True, slots=True)
class _Files:
    files: list[FileInfo]


_FILES = TypeAdapter(_Files)


class HttpAgent:
    """`Agent` over HTTP. The agent may have been taken over by the code beside it: no redirect is followed, no answer
    is decompressed, every size is capped before parsing, every answer is validated, and silence has a limit."""

    def __init__(self, address: Address, secret: str, *, silence: float = 20.0) -> None:
        """`silence`: seconds without a byte after which the agent counts as lost. It says something every 5 seconds
        while an answer is due."""
        # No limit on connections: as many as callers have streams open. With one, those streams would make the
        # heartbeat wait, and so cost the session its sandbox.
        match address:
            case UnixAddress(path):
                connector: aiohttp.BaseConnector = aiohttp.UnixConnector(path, limit=0, keepalive_timeout=3600)
                self._base = "http://agent"
            case TcpAddress(host, port):
                connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3600)
                self._base = f"http://{host}:{port}"
        self.address = address
        self._http = aiohttp.ClientSession(
            connector=connector,
            headers={"Authorization": f"Bearer {secret}", "Accept-Encoding": "identity", "User-Agent": "kernelpool"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=silence, sock_read=silence),
            read_bufsize=256 << 10,
        )

    async def aclose(self) -> None:
        await self._http.close()

    async def wait_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        failure = "the agent did not answer"
        while time.monotonic() < deadline:
            try:
                status = await self.status()
            except SandboxLost:
                pass  # not listening yet
            else:
                if status.ready:
                    return
                failure = status.failure or "the kernel did not become ready"
            # An agent that starts has nobody to tell: looking is the only way.
            await asyncio.sleep(READY_INTERVAL)
        raise StartFailed(f"no ready kernel within {timeout:g} s: {_clean(failure)}")

    async def status(self) -> AgentStatus:
        return await self._call(_STATUS, "GET", "/v1/status")

    async def activate(self, activation: Activation) -> None:
        await self._call(None, "POST", "/v1/activate", body=asdict(activation))

    async def execute(self, request: ExecuteRequest) -> Execution:
        return await self._call(_EXECUTION, "POST", "/v1/executions", {"wait": "1"}, body=asdict(request))

    async def submit(self, request: ExecuteRequest) -> Execution:
        return await self._call(_EXECUTION, "POST", "/v1/executions", body=asdict(request))

    async def events(self, id: str, after: int = -1) -> AsyncIterator[Event | None]:
        async with self._request("GET", f"/v1/executions/{id}/events", {"after": str(after)}) as response:
            async for line in _lines(response):
                if not line:
                    yield None
                    continue
                event = _parse(_EVENT, line)
                _check_event(event)
                yield event
                if event.kind == "done":
                    return
        raise SandboxLost("the sandbox broke off the events of an execution")

    async def execution(self, id: str) -> Execution:
        return await self._call(_EXECUTION, "GET", f"/v1/executions/{id}")

    async def cancel(self, id: str) -> Execution:
        return await self._call(_EXECUTION, "POST", f"/v1/executions/{id}/cancel")

    async def list_files(self, path: WorkspacePath, *, recursive: bool = False) -> Sequence[FileInfo]:
        query = {"path": path.text, "recursive": str(int(recursive))}
        found = await self._call(_FILES, "GET", "/v1/files", query)
        return [_honest(info) for info in found.files]

    async def file_info(self, path: WorkspacePath) -> FileInfo:
        return _honest(await self._call(_FILE, "GET", "/v1/file", {"path": path.text}))

    @asynccontextmanager
    async def read_file(
        self, path: WorkspacePath, start: int | None = None, stop: int | None = None
    ) -> AsyncIterator[FileContent]:
        headers = {}
        if start is not None or stop is not None:
            first = start or 0
            end = "" if stop is None else str(stop - 1)
            headers["Range"] = f"bytes={first}" if first < 0 else f"bytes={first}-{end}"
        async with self._request("GET", "/v1/file/content", {"path": path.text}, headers=headers) as response:
            info = _honest(_parse(_FILE, response.headers.get("X-File", "").encode()))
            length = response.content_length
            if length is None:
                raise AgentFault("a download without a length")
            begin = _range_start(response) if response.status == 206 else 0
            yield FileContent(info, begin, begin + length, _exactly(response, length))

    async def write_file(self, path: WorkspacePath, chunks: AsyncIterator[bytes]) -> FileInfo:
        return _honest(await self._call(_FILE, "PUT", "/v1/file/content", {"path": path.text}, data=chunks))

    async def delete_file(self, path: WorkspacePath) -> None:
        await self._call(None, "DELETE", "/v1/file", {"path": path.text})

    async def _call(
        self,
        kind: TypeAdapter[T] | None,
        method: str,
        route: str,
        query: dict[str, str] | None = None,
        *,
        body: dict[str, Any] | None = None,
        data: AsyncIterator[bytes] | None = None,
    ) -> T:
        payload = data if body is None else json.dumps(body).encode()
        async with self._request(method, route, query, data=payload) as response:
            raw = await _read(response, MAX_ANSWER)
        return _parse(kind, raw) if kind is not None else None  # type: ignore[return-value]

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        route: str,
        query: dict[str, str] | None = None,
        *,
        data: AsyncIterator[bytes] | bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response with a good status; the rest is raised as the error that it names."""
        try:
            async with self._http.request(
                method, self._base + route, params=query, data=data, headers=headers, allow_redirects=False
            ) as response:
                if response.status not in (200, 204, 206):
                    raise _error_of(response.status, await _read(response, 64 << 10))
                yield response
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError, ConnectionError) as error:
            raise SandboxLost(f"the sandbox does not answer ({type(error).__name__})") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise AgentFault(f"the sandbox's agent answered with bad HTTP ({type(error).__name__})") from error


def connect(sandbox: Sandbox) -> Agent:
    """The agent of a sandbox, whatever made it."""
    return HttpAgent(sandbox.address, sandbox.secret)


def _parse(kind: TypeAdapter[T], raw: bytes) -> T:
    try:
        return kind.validate_json(raw)
    except (ValidationError, KernelpoolError) as error:
        raise AgentFault(f"the sandbox's agent answered with something unexpected ({type(error).__name__})") from error


def _check_event(event: Event) -> None:
    kind = {"output": _OUTPUT, "done": _DONE}.get(event.kind)
    try:
        if kind is not None:
            kind.validate_python(event.data)
    except ValidationError as error:
        raise AgentFault("the sandbox's agent sent an event that is none") from error


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > limit:
            response.close()
            raise AgentFault(f"the sandbox's agent answered with more than {limit} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of an answer of any length, each of bounded length."""
    parts: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        *complete, rest = chunk.split(b"\n")
        for line in complete:
            yield b"".join([*parts, line])
            parts, size = [], 0
        parts.append(rest)
        size += len(rest)
        if size > MAX_LINE:
            response.close()
            raise AgentFault(f"the sandbox's agent sent a line of more than {MAX_LINE} bytes")


async def _exactly(response: aiohttp.ClientResponse, length: int) -> AsyncIterator[bytes]:
    """The body, which must be as long as was said: a short one is an error, never a short file. It is no sign that the
    sandbox is lost: an honest agent breaks off when the file shrinks while it is read."""
    try:
        async for chunk in response.content.iter_chunked(256 << 10):
            length -= len(chunk)
            if length < 0:
                raise AgentFault("a download was longer than announced")
            yield chunk
    except aiohttp.ClientPayloadError:
        pass
    if length:
        raise Conflict("the file changed while it was read")


def _error_of(status: int, raw: bytes) -> KernelpoolError:
    try:
        body = json.loads(raw)
        error = _ERRORS[body["code"]]
        return error(_clean(body["message"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return AgentFault(f"the sandbox's agent answered with status {status}")


def _range_start(response: aiohttp.ClientResponse) -> int:
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    first = rest.partition("-")[0]
    if unit != "bytes" or not first.isdecimal():
        raise AgentFault("a partial download without its range")
    return int(first)


def _honest(info: FileInfo) -> FileInfo:
    """A path that the agent names becomes part of answers and headers: it must be one."""
    try:
        path = WorkspacePath.parse(info.path)
    except InvalidPath:
        raise AgentFault("the sandbox's agent named an impossible path") from None
    if path.text != info.path or info.size < 0:
        raise AgentFault("the sandbox's agent named an impossible path")
    return info


def _clean(text: object) -> str:
    """What a hostile agent says, fit for a message and a log line."""
    return "".join(char if char.isprintable() else " " for char in str(text)[:500])
