"""Every request that a client makes, and how its answer is read, said once for both faces. No I/O."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from kernelpool import errors
from kernelpool.client.errors import InvalidRequest, UnexpectedAnswer, error_of
from kernelpool.client.resources import (
    Metadata,
    PoolInfo,
    SessionInfo,
    file_of,
    metadata_of,
    pool_of,
    pools_of,
    session_of,
    sessions_of,
)
from kernelpool.client.results import Result, result_of
from kernelpool.models import FileInfo, WorkspacePath

T = TypeVar("T")

API_VERSION = "2025-10-02-preview"
EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request. `parse` gets the JSON of its answer, None when there is none."""

    method: str
    path: str
    """Below the gateway's URL; escaped already."""
    parse: Callable[[Any], T]
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    repeatable: bool = True
    """Sent twice it does no more than once, and answers the same."""

    @property
    def content(self) -> bytes | None:
        return None if self.json is None else json.dumps(self.json).encode()

    def with_headers(self, **headers: str) -> Call[T]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return replace(self, headers={**self.headers, **names})


@dataclass(frozen=True, slots=True)
class NotebookOptions:
    """How a notebook is to be run. Times are whole seconds to the gateway."""

    id: str
    parameters: Mapping[str, Any] | None
    timeout: float | None
    cell_timeout: float | None
    stop_on_error: bool

    @property
    def query(self) -> dict[str, str]:
        times = {"timeoutInSeconds": self.timeout, "cellTimeoutInSeconds": self.cell_timeout}
        query = {name: str(max(1, round(seconds))) for name, seconds in times.items() if seconds is not None}
        return query if self.stop_on_error else {**query, "stopOnError": "false"}


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes


def conclude(call: Call[T], answer: Answer) -> T:
    """What the answer says. Raises the `ClientError` that it is."""
    if not 200 <= answer.status < 300:
        raise error_of(answer.status, answer.headers, answer.content)
    return read(call.parse, answer.content)


def read(parse: Callable[[Any], T], content: bytes) -> T:
    """Raises `UnexpectedAnswer`: gateways are believed to mean well, but a URL may lead to something else."""
    try:
        return parse(json.loads(content) if content else None)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UnexpectedAnswer(
            f"the answer is not that of a gateway ({type(error).__name__}: {error})"[:300],
            remedy="Check that the URL leads to kernelpool, and that gateway and client are of similar versions.",
        ) from error


def new_id() -> str:
    """Of an execution, chosen by the client so that it can be sent again without running again."""
    return str(uuid.uuid4())


def new_identifier() -> str:
    """Of a session. Whoever knows it can use the session, so it is not to be guessed."""
    return f"session-{uuid.uuid4().hex}"


def code_of(code: str) -> dict[str, Any]:
    return {"code": code}


def command_of(command: str | Sequence[str], stdin: str | None, pty: bool) -> dict[str, Any]:
    """Text is for a shell, several words are a program and its arguments."""
    named: dict[str, Any] = (
        {"shellCommand": command} if isinstance(command, str) else {"execCommandAndArgs": list(command)}
    )
    return named | ({"stdin": stdin} if stdin else {}) | ({"pty": True} if pty else {})


def list_pools() -> Call[list[PoolInfo]]:
    return Call("GET", "/pools", pools_of)


class PoolCalls:
    """About a pool."""

    def __init__(self, pool: str) -> None:
        self.path = f"/pools/{_segment(pool, 'pool')}"

    def show(self) -> Call[PoolInfo]:
        return Call("GET", self.path, pool_of)

    def create(self, settings: Mapping[str, Any]) -> Call[PoolInfo]:
        return Call("PUT", self.path, pool_of, json=dict(settings))

    def update(self, settings: Mapping[str, Any]) -> Call[PoolInfo]:
        return Call("PATCH", self.path, pool_of, json=dict(settings))

    def delete(self) -> Call[None]:
        return Call("DELETE", self.path, _nothing, repeatable=False)

    def metadata(self) -> Call[Metadata]:
        return Call("GET", f"{self.path}/metadata", metadata_of, {"api-version": API_VERSION})

    def sessions(self, skip: int) -> Call[tuple[list[SessionInfo], bool]]:
        query = {"api-version": API_VERSION, "skip": str(skip)}
        return Call("GET", f"{self.path}/listSessions", sessions_of, query)


class SessionCalls:
    """About a session, its executions and its files."""

    def __init__(self, pool: str, identifier: str) -> None:
        self._path = PoolCalls(pool).path
        self._query = {"api-version": API_VERSION, "identifier": identifier}

    def submit(
        self, work: Mapping[str, Any], timeout: float | None, id: str, *, streamed: bool = False
    ) -> Call[Result]:
        """`work` is what `code_of` or `command_of` made. The same `id` never runs twice. Streams are not cut: the
        pool's own limit on output is enough."""
        body = {**work, "outputStreamsMaxLength": 0}
        if timeout is not None:
            body["timeoutInSeconds"] = timeout
        # The header, since Shell pools refuse an executionType.
        headers = {"operation-id": id, "Prefer": "respond-async", **({"Accept": EVENT_STREAM} if streamed else {})}
        return Call("POST", f"{self._path}/executions", result_of, self._query, headers, json=body)

    def execution(self, id: str, *, streamed: bool = False) -> Call[Result]:
        headers = {"Accept": EVENT_STREAM} if streamed else {}
        query = {**self._query, "outputStreamsMaxLength": "0"}
        return Call("GET", self._execution(id), result_of, query, headers)

    def cancel(self, id: str) -> Call[Result]:
        query = {**self._query, "outputStreamsMaxLength": "0"}
        return Call("POST", f"{self._execution(id)}/cancel", result_of, query)

    def notebook(self) -> Call[dict[str, Any]]:
        return Call("GET", f"{self._path}/notebook", dict, self._query)

    def run_notebook(self, notebook: Mapping[str, Any], options: NotebookOptions) -> Call[None]:
        """The same `id` never runs a cell twice."""
        headers = {"operation-id": options.id, "Accept": EVENT_STREAM}
        body = {"notebook": notebook, "parameters": dict(options.parameters or {})}
        return Call("POST", f"{self._path}/notebook", _nothing, {**self._query, **options.query}, headers, json=body)

    def executions(self, after: int) -> Call[dict[str, Any]]:
        return Call("GET", f"{self._path}/executions", dict, {**self._query, "after": str(after)})

    def info(self) -> Call[SessionInfo]:
        return Call("GET", f"{self._path}/session", session_of, self._query)

    def stop(self) -> Call[None]:
        return Call("DELETE", f"{self._path}/session", _nothing, self._query)

    def list_files(self, path: str, *, recursive: bool) -> Call[list[FileInfo]]:
        listed = _checked(WorkspacePath.parse, path).text
        query = {**self._query, "path": listed, "recursive": str(recursive).lower()}
        return Call("GET", f"{self._path}/files", lambda answer: [file_of(e, listed) for e in answer["value"]], query)

    def file_info(self, name: str) -> Call[FileInfo]:
        return self._file("GET", name)

    def delete_file(self, name: str) -> Call[None]:
        return replace(self._file("DELETE", name), parse=_nothing, repeatable=False)

    def write_file(self, name: str) -> Call[FileInfo]:
        return self._file("PUT", name, "/content")

    def read_file(self, name: str, start: int | None, stop: int | None) -> Call[FileInfo]:
        call = self._file("GET", name, "/content")
        return call if start is None and stop is None else call.with_headers(Range=_range(start, stop))

    def _file(self, method: str, name: str, suffix: str = "") -> Call[Any]:
        """The directory goes into the query: a `/` in a path is what proxies decode, and some of them refuse."""
        directory, _, last = _checked(WorkspacePath.parse_file, name).text.rpartition("/")
        path = f"{self._path}/files/{quote(last, safe='')}{suffix}"
        return Call(method, path, lambda answer: file_of(answer, directory), {**self._query, "path": directory})

    def _execution(self, id: str) -> str:
        return f"{self._path}/executions/{_segment(id, 'execution')}"


def _range(start: int | None, stop: int | None) -> str:
    """From Python's words, a negative start included, to HTTP's, which count the last byte."""
    if start is not None and start < 0 and stop is None:
        return f"bytes={start}"
    if (start or 0) < 0 or (stop is not None and stop <= (start or 0)):
        raise InvalidRequest(f"there are no bytes from {start} to {stop}", remedy="Count from the start of the file.")
    return f"bytes={start or 0}-{'' if stop is None else stop - 1}"


def _segment(text: str, what: str) -> str:
    """Of a path: no name can lead to another place."""
    if text in ("", ".", ".."):
        raise InvalidRequest(f"{text!r} is no name of a {what}")
    return quote(text, safe="", errors="replace")


def _checked(parse: Callable[[str], WorkspacePath], name: str) -> WorkspacePath:
    try:
        return parse(name)
    except errors.InvalidRequest as error:
        raise InvalidRequest(error.message, code=error.code, remedy=error.remedy) from None


def _nothing(answer: Any) -> None:
    return None
