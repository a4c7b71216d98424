"""The agent's HTTP interface: the routes that kernelpool/agents.py calls. Every one needs the sandbox's secret.

GET    /v1/status
POST   /v1/activate                         Activation; 409 the second time
POST   /v1/executions?wait=0|1              ExecuteRequest → Execution, at once or at the end
GET    /v1/executions/{id}
GET    /v1/executions/{id}/events?after=N   one JSON event a line; an empty line is a keep-alive
POST   /v1/executions/{id}/cancel
POST   /v1/kernel/restart
GET    /v1/files?path=&recursive=0|1
GET    /v1/file?path=                       FileInfo
DELETE /v1/file?path=
GET    /v1/file/content?path=               Range as in RFC 9110, one range
PUT    /v1/file/content?path=               → FileInfo
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

from kernelpool.agent.executions import Executions
from kernelpool.agent.lease import Lease
from kernelpool.agent.run import Run
from kernelpool.agent.workspace import Upload, Workspace
from kernelpool.errors import Conflict, InvalidRequest, KernelpoolError, NotFound, RangeNotSatisfiable, Unauthorized
from kernelpool.models import Activation, AgentStatus, ExecuteRequest, FileInfo, WorkspacePath

log = logging.getLogger(__name__)

KEEP_ALIVE = 5.0
"""Seconds between signs of life on an answer that takes long."""
CHUNK = 256 << 10
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What the handlers share."""

    secret: str
    executions: Executions
    workspace: Workspace
    lease: Lease
    transfers: Transfers


class Transfers:
    """How many file transfers are under way: they are activity, too."""

    def __init__(self, touch: Callable[[], None]) -> None:
        self.count = 0
        self._touch = touch

    @contextmanager
    def one(self) -> Iterator[None]:
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1
            self._touch()


def encode(value: Any) -> bytes:
    """JSON of our dataclasses, without copying what is in them."""
    return json.dumps(value, default=_plain, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


class Handler(RequestHandler):
    """Checks the secret, turns errors into JSON."""

    def initialize(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def prepare(self) -> None:
        given = self.request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.sandbox.secret}".encode()):
            raise Unauthorized("wrong secret")
        self.sandbox.lease.heard()

    def set_default_headers(self) -> None:
        self.set_header("Content-Type", JSON)
        self.clear_header("Server")

    def compute_etag(self) -> None:
        """None: nobody asks conditionally, and hashing every answer costs."""

    def body(self, kind: Callable[..., Any]) -> Any:
        """The request's JSON body as a `kind`. Raises `InvalidRequest`."""
        try:
            return kind(**json.loads(self.request.body))
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"body: {error}") from None

    @property
    def path(self) -> WorkspacePath:
        return WorkspacePath.parse(self.get_query_argument("path", "", strip=False))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        if isinstance(error, HTTPError):
            error = InvalidRequest(f"HTTP {error.status_code}")
        elif not isinstance(error, KernelpoolError):
            log.error("request failed", exc_info=kwargs.get("exc_info"))
            error = KernelpoolError("the agent failed")
        self.set_status(error.status)
        self.finish(encode({"code": error.code, "message": error.message}))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, KernelpoolError | HTTPError | StreamClosedError):
            super().log_exception(typ, value, tb)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        if self._headers_written:  # an answer under way is cut off: its reader must not take it for complete
            self.request.connection.stream.close()  # type: ignore[union-attr]
            return
        super().send_error(status_code, **kwargs)


class NoRoute(Handler):
    def prepare(self) -> None:
        super().prepare()
        raise NotFound("no such route")


class StatusHandler(Handler):
    def get(self) -> None:
        sandbox, executions = self.sandbox, self.sandbox.executions
        activation = sandbox.lease.activation
        busy = executions.running or executions.queued or sandbox.transfers.count
        self.finish(
            encode(
                AgentStatus(
                    ready=executions.kernel.is_ready,
                    activated=activation is not None,
                    session=activation.session if activation else None,
                    running=executions.running,
                    queued=executions.queued,
                    idle_seconds=0.0 if busy else time.monotonic() - executions.last_activity,
                    kernel_restarts=executions.kernel.restarts,
                    failure=executions.kernel.failure,
                )
            )
        )


class ActivateHandler(Handler):
    def post(self) -> None:
        activation = self.body(Activation)
        if not self.sandbox.lease.activate(activation):
            raise Conflict("this sandbox was activated before")
        self.sandbox.executions.touch()
        if activation.notice:
            self.sandbox.executions.note_loss(activation.notice)
        self.set_status(204)


class ActivatedHandler(Handler):
    """Nothing of a session happens before the sandbox is one."""

    def prepare(self) -> None:
        super().prepare()
        if self.sandbox.lease.activation is None:
            raise Conflict("this sandbox is not activated")


class ExecutionsHandler(ActivatedHandler):
    async def post(self) -> None:
        run = self.sandbox.executions.submit(self.body(ExecuteRequest))
        if self.get_query_argument("wait", "0") == "1":
            await self._keep_alive_until_finished(run)
        await self.finish(encode(run.look()))

    async def _keep_alive_until_finished(self, run: Run) -> None:
        """White space before the JSON says that we live."""
        while not run.finished.is_set():
            try:
                async with asyncio.timeout(KEEP_ALIVE):
                    await run.finished.wait()
            except TimeoutError:
                self.write(b"\n")
                await self.flush()


class ExecutionHandler(ActivatedHandler):
    def get(self, id: str) -> None:
        self.finish(encode(self.sandbox.executions.get(id).look()))


class EventsHandler(ActivatedHandler):
    async def get(self, id: str) -> None:
        run = self.sandbox.executions.get(id)
        self.set_header("Content-Type", "application/x-ndjson")
        async for event in run.events(int(self.get_query_argument("after", "-1")), KEEP_ALIVE):
            self.write(b"\n" if event is None else encode(event) + b"\n")
            await self.flush()


class CancelHandler(ActivatedHandler):
    async def post(self, id: str) -> None:
        run = await self.sandbox.executions.cancel(id)
        await self.finish(encode(run.look()))


class RestartHandler(ActivatedHandler):
    async def post(self) -> None:
        await self.sandbox.executions.kernel.restart("the kernel was restarted on request")
        self.set_status(204)


class FilesHandler(ActivatedHandler):
    async def get(self) -> None:
        recursive = self.get_query_argument("recursive", "0") == "1"
        with self.sandbox.transfers.one():
            found = await asyncio.to_thread(self.sandbox.workspace.list, self.path, recursive=recursive)
        await self.finish(encode({"files": found}))


class FileHandler(ActivatedHandler):
    def get(self) -> None:
        with self.sandbox.transfers.one():
            self.finish(encode(self.sandbox.workspace.info(self.path)))

    async def delete(self) -> None:
        with self.sandbox.transfers.one():
            await asyncio.to_thread(self.sandbox.workspace.delete, self.path)
        self.set_status(204)


@stream_request_body
class ContentHandler(ActivatedHandler):
    """A body of any size passes through; at most one chunk is in memory."""

    upload: Upload | None = None
    error: KernelpoolError | None = None
    """Of the upload. It is told when the body is through: who still writes does not read."""
    _counted = False

    def prepare(self) -> None:
        super().prepare()
        if self.request.method == "PUT":
            self.sandbox.transfers.count += 1
            self._counted = True
            # The caller sets the limit: what the workspace holds is bounded by its own size.
            self.request.connection.set_max_body_size(1 << 50)  # type: ignore[union-attr]
            try:
                self.upload = self.sandbox.workspace.create(WorkspacePath.parse_file(self.path.text))
            except KernelpoolError as error:
                self.error = error

    def data_received(self, chunk: bytes) -> None:
        if self.upload is None or self.error is not None:
            return
        try:
            self.upload.write(chunk)
        except KernelpoolError as error:
            self.error = error
            self.upload.abort()

    def put(self) -> None:
        if self.error is not None:
            raise self.error
        assert self.upload is not None
        self.finish(encode(self.upload.commit()))

    async def get(self) -> None:
        with self.sandbox.transfers.one():
            file, info = self.sandbox.workspace.open(self.path)
            with file:
                start, stop = byte_range(self.request.headers.get("Range"), info)
                if self.request.headers.get("Range"):
                    self.set_status(206)
                    self.set_header("Content-Range", f"bytes {start}-{stop - 1}/{info.size}")
                self.set_header("Content-Type", "application/octet-stream")
                self.set_header("Content-Length", str(stop - start))
                self.set_header("X-File", encode(info).decode())
                file.seek(start)
                await self.flush()
                await self._send(file, stop - start)

    async def _send(self, file: Any, left: int) -> None:
        while left > 0:
            chunk = file.read(min(CHUNK, left))
            if not chunk:  # it shrank while we read: cut the answer off rather than pad it
                self.request.connection.stream.close()  # type: ignore[union-attr]
                return
            left -= len(chunk)
            self.write(chunk)
            await self.flush()

    def on_finish(self) -> None:
        if self.upload is not None:
            self.upload.abort()
        if self._counted:
            self._counted = False
            self.sandbox.transfers.count -= 1
            self.sandbox.executions.touch()

    def on_connection_close(self) -> None:
        self.on_finish()


def byte_range(header: str | None, info: FileInfo) -> tuple[int, int]:
    """The bytes start..stop that a Range header asks of a file. Raises `RangeNotSatisfiable`."""
    if not header:
        return 0, info.size
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if not match or match.group(0) == "bytes=-":
        raise RangeNotSatisfiable("only one range of the form bytes=a-b is served")
    first, last = match.groups()
    if not first:
        start, stop = max(0, info.size - int(last)), info.size
    else:
        start, stop = int(first), min(info.size, int(last) + 1 if last else info.size)
    if start >= stop:
        raise RangeNotSatisfiable(f"the file has {info.size} bytes")
    return start, stop


def make_app(sandbox: Sandbox) -> Application:
    shared = {"sandbox": sandbox}
    id = r"([A-Za-z0-9._:~-]{1,128})"
    return Application(
        [
            (r"/v1/status", StatusHandler, shared),
            (r"/v1/activate", ActivateHandler, shared),
            (r"/v1/executions", ExecutionsHandler, shared),
            (rf"/v1/executions/{id}", ExecutionHandler, shared),
            (rf"/v1/executions/{id}/events", EventsHandler, shared),
            (rf"/v1/executions/{id}/cancel", CancelHandler, shared),
            (r"/v1/kernel/restart", RestartHandler, shared),
            (r"/v1/files", FilesHandler, shared),
            (r"/v1/file", FileHandler, shared),
            (r"/v1/file/content", ContentHandler, shared),
        ],
        default_handler_class=NoRoute,
        default_handler_args=shared,
        log_function=lambda _handler: None,
    )
