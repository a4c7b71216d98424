"""An agent over HTTP/1.1. The only module that knows the agent's routes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import Any, TypeVar

import aiohttp
from pydantic import TypeAdapter

from kernelpool.agents.answers import (
    ERROR_BYTES,
    EVENT,
    EXECUTION,
    FILE,
    FILES,
    KERNEL,
    LISTED,
    STATUS,
    Count,
    check_count,
    check_event,
    check_execution,
    check_file,
    clean,
    error_of,
    parse,
    read,
    read_exactly,
    read_lines,
    translated,
)
from kernelpool.agents.base import ANSWER_SECONDS, MAX_LISTED, Agent, Channels, FileContent
from kernelpool.agents.channels import HttpChannels, refused
from kernelpool.backends.base import Address, RelayedAddress, Sandbox, TcpAddress, UnixAddress
from kernelpool.errors import (
    AgentFault,
    BackendUnavailable,
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
    KeptExecution,
    KernelPhase,
    KernelState,
    WorkspacePath,
)
from kernelpool.protocol.framing import MAX_FRAME, V1

READY_INTERVAL = 0.05
CALL_SECONDS = 60.0
"""In which every call must be answered that does not wait for code; an agent that trickles does not get more."""
IDLE_SECONDS = 60.0
"""After which a connection that nobody uses is closed: each is a file descriptor of the gateway."""

T = TypeVar("T")
_Errors = Collection[type[KernelpoolError]]

_ON_SUBMIT = (ExecutionQueueFull, Conflict)
_ON_EXECUTION = (ExecutionNotFound, Conflict)
_ON_PATH = (Conflict, FileNotFound, InvalidRequest, InvalidPath, InvalidFileName)


class HttpAgent:
    """`Agent` over HTTP. The agent may have been taken over by the code beside it: no redirect is followed, no answer
    is decompressed, every size is capped before parsing, every answer is validated, and silence has a limit."""

    def __init__(
        self, address: Address, secret: str, *, silence: float = 20.0, patience: float = ANSWER_SECONDS
    ) -> None:
        """`silence`: seconds without a byte after which the agent counts as lost. It says something every 5 seconds
        while an answer is due. `patience`: seconds in which it has to say how it is, however busy."""
        # No limit on connections: as many as callers have streams open. With one, those streams would make the
        # heartbeat wait, and so cost the session its sandbox.
        match address:
            case UnixAddress(path):
                connector: aiohttp.BaseConnector = aiohttp.UnixConnector(path, limit=0, keepalive_timeout=IDLE_SECONDS)
                self._base = "http://agent"
            case TcpAddress(host, port):
                connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
                self._base = f"http://{host}:{port}"
        self.address = address
        self._silence = silence
        self._patience = patience
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
        raise StartFailed(f"no ready kernel within {timeout:g} s: {clean(failure)}")

    async def status(self) -> AgentStatus:
        return await self._call(STATUS, "GET", "/v1/status", seconds=self._patience)

    async def activate(self, activation: Activation) -> None:
        body = asdict(activation)
        await self._call(None, "POST", "/v1/activate", body=body, seconds=self._patience, may_raise=(Conflict,))

    async def execute(self, request: ExecuteRequest) -> Execution:
        execution = await self._call(
            EXECUTION,
            "POST",
            "/v1/executions",
            {"wait": "1"},
            body=asdict(request),
            seconds=None,
            may_raise=_ON_SUBMIT,
        )
        return check_execution(execution, request.id)

    async def submit(self, request: ExecuteRequest) -> Execution:
        execution = await self._call(EXECUTION, "POST", "/v1/executions", body=asdict(request), may_raise=_ON_SUBMIT)
        return check_execution(execution, request.id)

    async def events(self, id: str, after: int = -1) -> AsyncIterator[Event | None]:
        route = f"/v1/executions/{id}/events"
        async with self._request("GET", route, {"after": str(after)}, may_raise=_ON_EXECUTION) as response:
            async for line in read_lines(response):
                if not line:
                    yield None
                    continue
                event = check_event(parse(EVENT, line), id)
                yield event
                if event.kind == "done":
                    return
        raise SandboxLost("the sandbox broke off the events of an execution")

    async def execution(self, id: str) -> Execution:
        execution = await self._call(EXECUTION, "GET", f"/v1/executions/{id}", may_raise=_ON_EXECUTION)
        return check_execution(execution, id)

    async def executions(
        self, after: int = 0, *, limit: int = MAX_LISTED, outputs: bool = False
    ) -> AsyncIterator[KeptExecution | int]:
        query = {"after": str(after), "limit": str(limit), "outputs": str(int(outputs))}
        last = 0
        async with self._request("GET", "/v1/executions", query, may_raise=(Conflict,)) as response:
            async for line in read_lines(response):
                match parse(LISTED, line):
                    case Count(count):
                        yield check_count(count, last)
                        return
                    case kept:
                        limit -= 1
                        if kept.number <= after or limit < 0 or (kept.execution.outputs and not outputs):
                            raise AgentFault("the sandbox's agent listed executions that nobody asked for")
                        after = last = kept.number
                        check_execution(kept.execution, kept.execution.id)
                        yield kept
        raise SandboxLost("the sandbox broke off the list of its executions")

    async def cancel(self, id: str) -> Execution:
        route = f"/v1/executions/{id}/cancel"
        execution = await self._call(EXECUTION, "POST", route, seconds=None, may_raise=_ON_EXECUTION)
        return check_execution(execution, id)

    async def kernel(self) -> KernelState:
        return await self._call(KERNEL, "GET", "/v1/kernel", may_raise=(Conflict,))

    async def interrupt(self) -> None:
        await self._call(None, "POST", "/v1/kernel/interrupt", may_raise=(Conflict,))

    async def restart(self) -> KernelState:
        state = await self._call(KERNEL, "POST", "/v1/kernel/restart", seconds=None, may_raise=(Conflict,))
        if state.execution_state is KernelPhase.DEAD:
            raise StartFailed(f"no kernel could be started: {clean(state.failure)}")
        return state

    @asynccontextmanager
    async def channels(self, session_id: str = "", last_msg_id: str | None = None) -> AsyncIterator[Channels]:
        query = {"session_id": session_id} | ({} if last_msg_id is None else {"last_msg_id": last_msg_id})
        with translated():
            try:
                socket = await self._http.ws_connect(
                    self._base + "/v1/channels",
                    params=query,
                    protocols=(V1,),
                    max_msg_size=MAX_FRAME,
                    heartbeat=self._silence,
                    timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
                )
            except aiohttp.WSServerHandshakeError as refusal:
                raise refused(refusal.status) from None
        try:
            yield HttpChannels(socket, self._silence)
        finally:
            await socket.close()

    async def list_files(self, path: WorkspacePath, *, recursive: bool = False) -> Sequence[FileInfo]:
        query = {"path": path.text, "recursive": str(int(recursive))}
        found = await self._call(FILES, "GET", "/v1/files", query, may_raise=_ON_PATH)
        return [check_file(info) for info in found.files]

    async def file_info(self, path: WorkspacePath) -> FileInfo:
        return check_file(await self._call(FILE, "GET", "/v1/file", {"path": path.text}, may_raise=_ON_PATH))

    @asynccontextmanager
    async def read_file(
        self, path: WorkspacePath, start: int | None = None, stop: int | None = None
    ) -> AsyncIterator[FileContent]:
        headers = {}
        if start is not None or stop is not None:
            first = start or 0
            end = "" if stop is None else str(stop - 1)
            headers["Range"] = f"bytes={first}" if first < 0 and stop is None else f"bytes={first}-{end}"
        query = {"path": path.text}
        may_raise = (*_ON_PATH, RangeNotSatisfiable)
        async with self._request("GET", "/v1/file/content", query, headers=headers, may_raise=may_raise) as response:
            info = check_file(parse(FILE, response.headers.get("X-File", "").encode()))
            length = response.content_length
            if length is None:
                raise AgentFault("a download without a length")
            if stop is not None and length > stop - (start or 0):
                raise AgentFault(f"{length} bytes of a file, of which {stop - (start or 0)} were asked for")
            begin = _range_start(response) if response.status == 206 else 0
            yield FileContent(info, begin, begin + length, read_exactly(response, length))

    async def write_file(self, path: WorkspacePath, chunks: AsyncIterator[bytes]) -> FileInfo:
        query = {"path": path.text}
        may_raise = (*_ON_PATH, WorkspaceFull)
        try:
            async with asyncio.timeout(None) as stall:
                data = self._paced(chunks, stall)
                answer = await self._call(
                    FILE, "PUT", "/v1/file/content", query, data=data, seconds=None, may_raise=may_raise
                )
        except TimeoutError as error:
            raise SandboxLost(f"the sandbox took nothing of an upload for {self._silence:g} s") from error
        return check_file(answer)

    async def delete_file(self, path: WorkspacePath) -> None:
        await self._call(None, "DELETE", "/v1/file", {"path": path.text}, may_raise=_ON_PATH)

    async def _call(
        self,
        kind: TypeAdapter[T] | None,
        method: str,
        route: str,
        query: dict[str, str] | None = None,
        *,
        body: dict[str, Any] | None = None,
        data: AsyncIterator[bytes] | None = None,
        seconds: float | None = CALL_SECONDS,
        may_raise: _Errors = (),
    ) -> T:
        payload = data if body is None else json.dumps(body).encode()
        try:
            async with (
                asyncio.timeout(seconds),
                self._request(method, route, query, data=payload, may_raise=may_raise) as response,
            ):
                raw = await read(response)
        except TimeoutError as error:
            raise SandboxLost(f"the sandbox did not answer within {seconds:g} s") from error
        return parse(kind, raw) if kind is not None else None  # type: ignore[return-value]

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        route: str,
        query: dict[str, str] | None = None,
        *,
        data: AsyncIterator[bytes] | bytes | None = None,
        headers: dict[str, str] | None = None,
        may_raise: _Errors = (),
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response with a good status; another one is raised as the error that it names, if the call may raise it."""
        if self._http.closed:
            raise SandboxLost("the connection to the sandbox was closed")
        try:
            with translated():
                response = await self._http.request(
                    method, self._base + route, params=query, data=data, headers=headers, allow_redirects=False
                )
        except SandboxLost as error:
            if isinstance(self.address, RelayedAddress) and await self.address.is_away():
                raise BackendUnavailable("what leads to the sandbox is away for now") from error
            raise
        try:
            if response.status not in (200, 204, 206):
                raise error_of(response.status, await read(response, ERROR_BYTES), may_raise)
            yield response
        finally:
            # Closes the connection, too, when the answer has not been read to its end.
            response.release()

    async def _paced(self, chunks: AsyncIterator[bytes], stall: asyncio.Timeout) -> AsyncIterator[bytes]:
        """The agent must take each chunk in time; how long the source takes for the next is no fault of the agent."""
        loop = asyncio.get_running_loop()
        with suppress(RuntimeError):  # the call is over: nobody waits for the rest
            async for chunk in chunks:
                stall.reschedule(loop.time() + self._silence)
                yield chunk
                stall.reschedule(None)


def connect(sandbox: Sandbox) -> Agent:
    """The agent of a sandbox, whatever made it."""
    return HttpAgent(sandbox.address, sandbox.secret)


def _range_start(response: aiohttp.ClientResponse) -> int:
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    first = rest.partition("-")[0]
    if unit != "bytes" or not (first.isascii() and first.isdigit()) or len(first) > 18:
        raise AgentFault("a partial download without its range")
    return int(first)
