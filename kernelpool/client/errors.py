"""What a client raises: what the gateway answered instead, or why there was no answer.

    ClientError
    ├── Unreachable              no connection: nothing was sent
    ├── ConnectionBroken         no complete answer: whether the gateway has done it is not known
    ├── UnexpectedAnswer         what answers does not speak as a gateway does
    ├── InvalidRequest           400, and whatever else the caller can mend
    │   ├── PayloadTooLarge      413
    │   ├── RangeNotSatisfiable  416
    │   └── WorkspaceFull        507
    ├── Unauthorized             401
    ├── Forbidden                403
    ├── NotFound                 404
    │   ├── PoolNotFound
    │   ├── SessionNotFound
    │   ├── ExecutionNotFound
    │   └── FileNotFound
    ├── Conflict                 409
    ├── TryLater                 429 and 503; `retry_after` when the gateway says how long
    │   ├── SessionLimitReached
    │   └── ExecutionQueueFull
    └── ServerFault              any other 5xx
        └── SandboxLost          the session is over; its variables and files are gone

Code that raises is not here: it is a `Result` with an `error`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MAX_MESSAGE = 2000
"""Characters of an answer that is no envelope."""


class ClientError(Exception):
    """Base of all. `code`, `remedy` and `trace_id` are the gateway's words; an operator finds its log by the last."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        status: int | None = None,
        remedy: str | None = None,
        trace_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).__name__
        self.status = status
        self.remedy = remedy
        self.trace_id = trace_id
        self.retry_after = retry_after


class Unreachable(ClientError):
    pass


class ConnectionBroken(ClientError):
    pass


class UnexpectedAnswer(ClientError):
    pass


class InvalidRequest(ClientError):
    pass


class PayloadTooLarge(InvalidRequest):
    pass


class RangeNotSatisfiable(InvalidRequest):
    pass


class WorkspaceFull(InvalidRequest):
    pass


class Unauthorized(ClientError):
    pass


class Forbidden(ClientError):
    pass


class NotFound(ClientError):
    pass


class PoolNotFound(NotFound):
    pass


class SessionNotFound(NotFound):
    pass


class ExecutionNotFound(NotFound):
    pass


class FileNotFound(NotFound):
    pass


class Conflict(ClientError):
    pass


class TryLater(ClientError):
    pass


class SessionLimitReached(TryLater):
    pass


class ExecutionQueueFull(TryLater):
    pass


class ServerFault(ClientError):
    pass


class SandboxLost(ServerFault):
    pass


_BY_CODE: dict[str, type[ClientError]] = {
    "SessionPoolNotFound": PoolNotFound,
    "NoSessionFoundError": SessionNotFound,
    "ExecutionNotFound": ExecutionNotFound,
    "FileNotFound": FileNotFound,
    "SessionsCountExceedsLimit": SessionLimitReached,
    "ExecutionQueueFull": ExecutionQueueFull,
    "SandboxLost": SandboxLost,
}
_BY_STATUS: dict[int, type[ClientError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: PayloadTooLarge,
    416: RangeNotSatisfiable,
    429: TryLater,
    503: TryLater,
    507: WorkspaceFull,
}


def error_of(status: int, headers: Mapping[str, str], content: bytes) -> ClientError:
    """The error that an answer with this status is. `headers` are found in any case, as httpx has them."""
    if status < 400:
        return UnexpectedAnswer(f"the answer has status {status}; is this the URL of a gateway?", status=status)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):  # as a proxy in between would have answered
        text = content.decode(errors="replace").strip()[:MAX_MESSAGE]
        body = {"error": {"message": f"status {status}: {text}" if text else f"status {status}"}}
    return error_in(body, status, _seconds(headers.get("Retry-After")))


def error_in(body: Any, status: int | None, retry_after: float | None = None) -> ClientError:
    """By an envelope: in `error`, or flat as that of a full pool, or the problem+json of a body with wrong fields."""
    outer = body if isinstance(body, dict) else {}
    inner = outer.get("error")
    fields = inner if isinstance(inner, dict) else outer
    code, remedy, trace_id = (_text(fields.get(name)) for name in ("code", "remedy", "traceId"))
    kind = _BY_CODE.get(code or "") or _BY_STATUS.get(status or 0)
    if kind is None:
        kind = InvalidRequest if status is not None and status < 500 else ServerFault
    message = _text(fields.get("message")) or _problem(outer) or code or f"status {status}"
    return kind(message, code=code or "", status=status, remedy=remedy, trace_id=trace_id, retry_after=retry_after)


def _problem(body: Mapping[str, Any]) -> str:
    errors = body.get("errors")
    lists = errors.values() if isinstance(errors, dict) else ()
    return " ".join(str(sentence) for sentences in lists if isinstance(sentences, list) for sentence in sentences)


def _seconds(header: str | None) -> float | None:
    """Dates, which some proxies send, are for clocks that agree."""
    return float(header) if header and header.isascii() and header.isdigit() and len(header) < 10 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
