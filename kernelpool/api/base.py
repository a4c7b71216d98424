"""The one base of all handlers: authentication, bodies, work that ends when its client leaves, errors, answers."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from http.client import responses
from types import TracebackType
from typing import Any, ClassVar, cast

from tornado.escape import utf8
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler, stream_request_body

from kernelpool.api.auth import bearer_token
from kernelpool.api.bodies import InvalidBody
from kernelpool.api.edge import EdgePolicy
from kernelpool.api.exchange import Exchange
from kernelpool.api.json_text import dump_json
from kernelpool.api.mcp.endpoint import Endpoint
from kernelpool.api.media import check_encoding, check_json, has_body
from kernelpool.api.query import Query
from kernelpool.api.refusals import error_envelope, retry_after
from kernelpool.api.sockets import OpenSockets
from kernelpool.auth.authenticator import Authenticator
from kernelpool.auth.principal import Principal, Role
from kernelpool.errors import (
    CallerError,
    Forbidden,
    KernelpoolError,
    PayloadTooLarge,
    SessionLimitReached,
    TryLater,
    Unauthorized,
)
from kernelpool.gateway import Gateway
from kernelpool.management import Management
from kernelpool.telemetry import SILENT, Telemetry

log = logging.getLogger(__name__)

LINGER_SECONDS = 10.0
"""How long a refused body is read and thrown away, so that a client that only writes gets to read the refusal."""

HTTP_CODES = {400: "BadRequest", 404: "NotFound", 405: "MethodNotAllowed"}
OTHER_HTTP_CODE = "RequestError"


class Works:
    """The requests being served: what a gateway that wants to leave waits for."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self.draining = False
        """Whether an answer that begins now says that it is its connection's last."""

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, None], context: Context | None = None) -> asyncio.Task[None]:
        """`context` is the request's, for who calls from elsewhere."""
        task = asyncio.create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: who started it raises it again, unless the client has left

    async def wait_idle(self, timeout: float) -> bool:
        """Whether all that was being served has been, within the timeout."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._tasks:
                    await asyncio.wait(set(self._tasks))
        return not self._tasks


@dataclass(frozen=True, slots=True)
class Collaborators:
    """What every handler is given."""

    gateway: Gateway
    authenticator: Authenticator
    management: Management
    max_body: int = 16 << 20
    """Bytes of a JSON body. Uploads have the pool's own limit."""
    works: Works = field(default_factory=Works)
    telemetry: Telemetry = SILENT
    sockets: OpenSockets = field(default_factory=OpenSockets)
    edge: EdgePolicy = field(default_factory=EdgePolicy)
    mcp: Endpoint = field(default_factory=Endpoint)


@stream_request_body
class ApiHandler(RequestHandler):
    """Bodies are streamed even where they are small: a caller is authenticated, and a body's size checked, before
    any of it is kept in memory. A method hands its work to `serve`."""

    is_probe: ClassVar[bool] = False
    """Asked by machines every few seconds: counted, but not traced."""
    roles: ClassVar[Mapping[str, Role]] = {}
    """What a caller must be, by method; an executor, for those that are not named. HEAD is as GET."""

    def initialize(self, collaborators: Collaborators) -> None:
        self.collaborators = collaborators
        self.gateway = collaborators.gateway
        self.principal: Principal
        route = self.settings["routes"].of(self)
        self.exchange = Exchange(collaborators.telemetry, self.request, route, probe=self.is_probe)
        self.trace_id = self.exchange.trace_id
        self.body = bytearray()
        self.query = Query(self.request.query_arguments)
        self._work: asyncio.Task[None] | None = None
        self._client_left = False
        self._refused = False

    # What subclasses may say.

    @property
    def body_limit(self) -> int:
        return self.collaborators.max_body

    takes_json = True
    """Whether a body of POST, PUT and PATCH must be JSON by its Content-Type."""

    takes_pool_keys = False
    """Whether the MCP key of the pool in the path is good here."""

    takes_encodings = False
    """Whether a body may be compressed: nothing is ever unpacked here."""

    async def accept(self) -> None:
        """Called with the headers read and the caller known, before the body comes. Raises to refuse the request."""

    async def receive(self, chunk: bytes) -> None:
        """A piece of the body; the next one is read when this returns."""
        if len(self.body) + len(chunk) > self.body_limit:
            raise PayloadTooLarge(f"body is larger than {self.body_limit} bytes")
        self.body += chunk

    def credential(self) -> str:
        """What the caller shows. Raises `Unauthorized`."""
        return bearer_token(self.request.headers.get_list("Authorization"))

    async def authenticate(self) -> Principal:
        pool = self.path_kwargs["pool"] if self.takes_pool_keys else None
        return await self.collaborators.authenticator.authenticate(self.credential(), pool)

    def authorize(self) -> None:
        """Raises `Forbidden` unless the caller has the role, and may enter the pool that the path names if any. No
        pool is looked up before that."""
        method = "GET" if self.request.method == "HEAD" else self.request.method or ""
        self.principal.require(self.roles.get(method, Role.EXECUTOR), self.path_kwargs.get("pool"))

    def check_method(self) -> None:
        if not self._has(self.request.method or ""):
            raise HTTPError(405)

    async def _nothing(self, *_: Any, **__: Any) -> None:
        """A method that a handler does not have; `check_method` has refused it by now."""

    get = post = put = patch = delete = options = _nothing

    async def head(self, *path: Any, **named: Any) -> None:
        """As GET; Tornado leaves the body out."""
        await self.get(*path, **named)

    # The life of a request.

    def set_default_headers(self) -> None:
        self.set_header("Server", "kernelpool")
        self.set_header("Cache-Control", "no-store")
        # Tornado calls this before `initialize`.
        edge: EdgePolicy = self.settings["edge"]
        for name, value in edge.headers(self.request):
            self.set_header(name, value)

    def compute_etag(self) -> None:
        """None: hashing every answer costs more than it ever saves."""

    async def prepare(self) -> None:
        # Tornado turns Nagle's algorithm on again after each response: a second small write would wait 40 ms.
        self.connection.stream.set_nodelay(True)
        self.exchange.enter()
        try:
            self.principal = await self.authenticate()
            self.authorize()
            self.check_method()
            await self.accept()
            self._check_body_headers()
        except (KernelpoolError, HTTPError) as error:
            await self._refuse(error)

    async def data_received(self, chunk: bytes) -> None:
        self.exchange.received += len(chunk)
        if self._refused:
            return
        try:
            await self.receive(chunk)
        except Exception as error:  # Tornado would close the connection without a word
            await self._refuse(error)

    async def serve(self, work: Coroutine[Any, Any, None]) -> None:
        """Does the work in a task of its own. Tornado does not cancel a handler whose client has left, and a
        handler's own task must not be cancelled."""
        if self._refused or self._client_left:
            work.close()
            return
        self._work = self.collaborators.works.start(work)
        try:
            await self._work
        except asyncio.CancelledError:
            if not self._client_left:
                raise
            log.info("client left", extra=self._facts)
        except StreamClosedError:
            log.info("client left", extra=self._facts)

    def on_connection_close(self) -> None:
        super().on_connection_close()  # ends the wait for the rest of the body
        self._client_left = True
        if self._work is not None:
            self._work.cancel()
        self.exchange.end()

    # Answers.

    def write(self, chunk: str | bytes | dict[str, Any]) -> None:
        if self.request.method != "HEAD" and not isinstance(chunk, dict):
            self.exchange.sent += len(utf8(chunk))
        super().write(chunk)

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> asyncio.Future[None]:
        if self.collaborators.works.draining and not self._headers_written:
            self.set_header("Connection", "close")
        return super().finish(chunk)

    def answer(self, value: Any, status: int = 200) -> None:
        """Headers and JSON in one write."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(dump_json(value))

    def answer_text(self, text: str) -> None:
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(text)

    def answer_nothing(self) -> None:
        self.set_status(204)
        self.clear_header("Content-Type")
        self.finish()

    # Errors.

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        kind, error, _ = kwargs.get("exc_info", (None, None, None))
        self.finish(self.describe_error(error if kind else None, status_code))

    def log_exception(
        self, typ: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        if isinstance(value, CallerError | TryLater | HTTPError):
            log.info("request refused", extra={**self._facts, "error": type(value).__name__})
        else:
            log.error("request failed", extra=self._facts, exc_info=(typ, value, tb) if typ and value else None)

    def describe_error(self, error: BaseException | None, status: int = 500) -> bytes:
        """Sets status and headers, and returns the body: never a stack, whose place is the log, by traceId."""
        if isinstance(error, HTTPError):
            code = HTTP_CODES.get(status, OTHER_HTTP_CODE)
            if status == 405:
                self.set_header("Allow", ", ".join(self._methods()))
            message, remedy = f"{responses.get(status, 'Error')}: {self.request.method} {self.request.path}", None
        elif isinstance(error, KernelpoolError):
            status, code, message, remedy = error.status, error.code, error.message, error.remedy
        else:
            status, code, message, remedy = 500, KernelpoolError.code, "Something went wrong.", KernelpoolError.remedy
        self.set_status(status, responses.get(status, "Error"))
        self.set_header("x-ms-error-code", code)
        who = getattr(self, "principal", None)
        self.exchange.refused(code, status, who.tenant if who else "", who.name if who else "")
        if isinstance(error, TryLater):
            self.set_header("Retry-After", retry_after(error))
        if isinstance(error, Unauthorized | Forbidden):
            self.set_header("WWW-Authenticate", error.challenge)
        self.set_header("Content-Type", "application/json; charset=utf-8")
        if isinstance(error, InvalidBody):
            self.set_header("Content-Type", "application/problem+json; charset=utf-8")
            return dump_json(self._problem(error))
        if isinstance(error, SessionLimitReached):
            return dump_json({"code": code, "message": message})
        return dump_json(self.envelope(code, message, remedy))

    def envelope(self, code: str, message: str, remedy: str | None) -> dict[str, Any]:
        """What an error looks like on this surface."""
        return error_envelope(code, message, self.trace_id, remedy)

    def _methods(self) -> list[str]:
        return [name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE") if self._has(name)]

    def _has(self, method: str) -> bool:
        """HEAD where there is GET, as RFC 9110 demands."""
        name = "get" if method == "HEAD" else method.lower()
        return getattr(type(self), name, None) is not getattr(ApiHandler, name, None)

    def _problem(self, error: InvalidBody) -> dict[str, Any]:
        return {
            "type": "https://tools.ietf.org/html/rfc9110#section-15.5.1",
            "title": "One or more validation errors occurred.",
            "status": error.status,
            "errors": error.errors,
            "traceId": self.trace_id,
        }

    async def _refuse(self, error: Exception) -> None:
        """Answers before the body has been read. What still comes of it is thrown away for a while: closing at once
        would reset the connection under a client that has not read the answer yet."""
        self.log_exception(type(error), error, error.__traceback__)
        self._refused = True
        # Tornado calls the method all the same, once the body is through. No handler's own may run.
        for method in ("get", "head", "post", "put", "patch", "delete", "options"):
            setattr(self, method, self._nothing)
        body = self.describe_error(error, getattr(error, "status_code", 500))
        if "Expect" in self.request.headers:  # nothing comes of it: the client waits for our word
            self.set_header("Connection", "close")
            await self.finish(body)
            return
        self.connection.set_max_body_size(sys.maxsize)
        self.connection.set_body_timeout(LINGER_SECONDS)
        self.set_header("Content-Length", str(len(body)))
        self.write(body)
        await self.flush()

    def _check_body_headers(self) -> None:
        """Whatever Tornado would answer with a bare 400, or would not look at."""
        headers = self.request.headers
        if not self.takes_encodings:
            check_encoding(headers)
        if self.takes_json and self.request.method in ("POST", "PUT", "PATCH") and has_body(headers):
            check_json(headers)
        length = headers.get("Content-Length")
        # Tornado itself refuses what is no number, after this.
        if length is not None and length.isascii() and length.isdigit() and len(length) < 20:
            self._check_length(int(length))
        self.connection.set_max_body_size(sys.maxsize)  # `receive` counts, and answers in our words

    def _check_length(self, length: int) -> None:
        if length > self.body_limit:
            raise PayloadTooLarge(f"body of {length} bytes is larger than {self.body_limit} bytes")

    @property
    def origin(self) -> str:
        """Scheme and host, as this caller reaches us, through whatever proxies are trusted."""
        return f"{self.request.protocol}://{self.request.host}"

    @property
    def connection(self) -> HTTP1Connection:
        return cast("HTTP1Connection", self.request.connection)

    @property
    def _facts(self) -> dict[str, Any]:
        """Without the query: it holds the session's identifier, which is as good as a key."""
        return {"trace_id": self.trace_id, "method": self.request.method, "path": self.request.path}


class OpenHandler(ApiHandler):
    """For everybody, with a token or without."""

    async def authenticate(self) -> Principal:
        return Principal("anonymous")

    def authorize(self) -> None:
        pass
