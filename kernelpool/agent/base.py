"""What all routes of the agent share: the secret, errors as JSON, and that nothing happens before activation."""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tornado.httputil import HTTPServerRequest
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler

from kernelpool.agent.executions import Executions
from kernelpool.agent.lease import Lease
from kernelpool.agent.usage import Usage
from kernelpool.agent.workspace import Workspace
from kernelpool.errors import Conflict, InvalidRequest, KernelpoolError, NotFound, Unauthorized
from kernelpool.models import WorkspacePath

log = logging.getLogger(__name__)

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What the handlers share."""

    secret: str
    executions: Executions
    workspace: Workspace
    lease: Lease
    transfers: Transfers
    usage: Usage


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


def is_authorized(request: HTTPServerRequest, sandbox: Sandbox) -> bool:
    """Whether it has the sandbox's secret."""
    given = request.headers.get("Authorization", "")
    return hmac.compare_digest(given.encode(), f"Bearer {sandbox.secret}".encode())


class Handler(RequestHandler):
    """Checks the secret, turns errors into JSON."""

    def initialize(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def prepare(self) -> None:
        if not is_authorized(self.request, self.sandbox):
            raise Unauthorized("wrong secret")
        self.sandbox.lease.heard()

    def set_default_headers(self) -> None:
        self.set_header("Content-Type", JSON)
        self.clear_header("Server")

    def compute_etag(self) -> None:
        """None: nobody asks conditionally, and hashing every answer costs."""

    def body(self, kind: Callable[..., Any]) -> Any:
        """The request's JSON body as a `kind`. Raises `InvalidRequest`."""
        raw, self.request.body = self.request.body, b""  # a caller may wait for long, and need not hold it meanwhile
        try:
            return kind(**json.loads(raw))
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


class ActivatedHandler(Handler):
    """Nothing of a session happens before the sandbox is one."""

    def prepare(self) -> None:
        super().prepare()
        if self.sandbox.lease.activation is None:
            raise Conflict("this sandbox is not activated")
