"""Notebooks over HTTP: a session's own as a document, and documents run in a session. Ours: ACA has none of it.

    GET  {pool}/notebook?identifier=…    what the session ran, whoever asked for it; `?download=name.ipynb` names a file
    POST {pool}/notebook?identifier=…    runs the notebook in the body, or `{"notebook": …, "parameters": {…}}`

A run's answer is the executed notebook; with `Accept: text/event-stream` each cell is told as it begins, shows
something and ends, and `done` carries the notebook. Cells are executed under ids made of `operation-id`: sent again
with the same one (and `Last-Event-ID`, for a stream), a run goes on where it stopped, and nothing runs twice. A client
that leaves a plain run cancels its cell; one that leaves a stream may come back, so that its cell runs on, but no other
is begun.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from typing import Any, cast

from kernelpool.agents.base import MAX_LISTED
from kernelpool.api import sse
from kernelpool.api.aca_handler import AcaHandler
from kernelpool.api.base import log
from kernelpool.api.dialects import event_data
from kernelpool.api.downloads import HEADERS, content_disposition
from kernelpool.api.json_text import dump_json
from kernelpool.errors import InvalidNotebook, InvalidRequest, KernelpoolError
from kernelpool.gateway import Session
from kernelpool.models import ExecuteRequest, Execution, ExecutionState, KeptExecution
from kernelpool.notebooks.cells import Cells, facts_of
from kernelpool.notebooks.document import MEDIA_TYPE, head_of, language_metadata
from kernelpool.notebooks.outputs import OURS
from kernelpool.notebooks.parameters import inject
from kernelpool.notebooks.reading import Notebook, parse, read_notebook
from kernelpool.notebooks.running import NotebookRun, RunOptions

MAX_EXPORT = 512 << 20
"""Bytes of a session's notebook; far more than an agent keeps."""
CELL = 10**12
"""Numbers that the events of one cell have for their ids in a stream; none has so many."""
FILE_NAME = "notebook.ipynb"


class NotebookHandler(AcaHandler):
    async def get(self, pool: str) -> None:
        await self.serve(self._get())

    async def post(self, pool: str) -> None:
        await self.serve(self._post())

    # --- the session's own

    async def _get(self) -> None:
        async with self.gateway.find(self.principal, self.pool.name, self.identifier) as session:
            self.describe_session(session)
            self._describe_file()
            head = head_of(await self._language() | {OURS: {"session": session.info.etag}})
            if self.request.method == "HEAD":
                await self.finish()
                return
            try:
                await self._send(head, session)
            except (KernelpoolError, TimeoutError) as error:
                if not self._headers_written:
                    raise
                log.warning("notebook broke off", extra={"trace_id": self.trace_id, "error": repr(error)})
                self.connection.close()

    async def _send(self, head: Mapping[str, Any], session: Session) -> None:
        """Cell by cell: it is never in memory as a whole."""
        opening, closing = _around_cells(head)
        separator = opening
        async with aclosing(cast("Any", self._cells(session))) as cells:
            async for cell in cells:
                await self.push(separator + dump_json(cell))
                separator = b","
        await self.finish((opening if separator == opening else b"") + closing)

    async def _cells(self, session: Session) -> AsyncIterator[dict[str, Any]]:
        cells = Cells(self.pool.language)
        async with aclosing(cells_of(session, cells)) as every:
            async for cell in every:
                yield cell
                if self.exchange.sent > MAX_EXPORT:
                    for last in cells.cut():
                        yield last
                    return

    def _describe_file(self) -> None:
        for header, value in HEADERS.items():
            if header != "Accept-Ranges":
                self.set_header(header, value)
        self.set_header("Content-Type", MEDIA_TYPE)
        name = self.query.text("download")
        if name is not None:
            self.set_header("Content-Disposition", content_disposition(name[:200] or FILE_NAME))

    async def _language(self) -> dict[str, Any]:
        return language_metadata(self.pool.language, await self.gateway.metadata(self.principal, self.pool.name))

    # --- one of the caller's

    async def _post(self) -> None:
        identifier, options, parameters = self.identifier, self._options(), self._parameters()
        raw, self.body = bytes(self.body), bytearray()  # what waits for long need not hold it meanwhile
        notebook = await asyncio.to_thread(_prepared, raw, parameters, self.pool.language)
        del raw
        notebook["metadata"] = _described(notebook["metadata"], await self._language())
        async with self.gateway.use(self.principal, self.pool.name, identifier) as session:
            self.describe_session(session)
            self.set_header("operation-id", options.id)
            if self.wants_stream:
                streamed = _Streamed(session, self, notebook)
                await self.stream_events(streamed.run(options))
                return
            executed = await NotebookRun(notebook, options, _Plain(session)).run()
        self.set_header("Content-Type", MEDIA_TYPE)
        for piece in pieces_of(executed):
            await self.push(piece)
        await self.finish()

    def _options(self) -> RunOptions:
        """Raises `InvalidRequest`."""
        settings = self.pool.settings
        given = self.request.headers.get_list("operation-id")
        if len(given) > 1:
            raise InvalidRequest("the header operation-id is given more than once")
        usual = min(settings.default_timeout, settings.max_timeout)
        return RunOptions(
            id=given[0] if given else str(uuid.uuid4()),
            cell_timeout=self._seconds("cellTimeoutInSeconds", usual, settings.max_timeout),
            timeout=self._seconds("timeoutInSeconds", settings.max_alive, settings.max_alive),
            max_output=settings.history_bytes,
            stop_on_error=self.query.flag("stopOnError", True),
        )

    def _seconds(self, name: str, default: float, limit: float) -> float:
        if self.query.text(name) is None:
            return default
        asked = self.query.number(name, 0, int(limit))
        if asked < 1:
            raise InvalidRequest(f"query parameter {name} must be from 1 to {limit:g}")
        return asked

    def _parameters(self) -> dict[str, Any] | None:
        text = self.query.text("parameters")
        if text is None:
            return None
        value = parse(text.encode())
        if not isinstance(value, dict):
            raise InvalidRequest("query parameter parameters must be a JSON object")
        return value


class _Plain:
    """Runs cells for a client that waits for the whole: one that leaves cancels them."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def perform(self, index: int, request: ExecuteRequest) -> Execution:
        return await self._session.execute(request)

    async def cancel(self, id: str) -> Execution:
        return await self._session.cancel(id)

    async def finish(self, index: int, execution: Execution) -> None:
        pass


class _Streamed:
    """Runs cells for a client that watches, from behind the event on that it saw last."""

    def __init__(self, session: Session, handler: AcaHandler, notebook: Notebook) -> None:
        self._session = session
        self._handler = handler
        self._notebook = notebook
        self._last = sse.last_event_id(handler.request.headers.get("Last-Event-ID"))

    async def run(self, options: RunOptions) -> None:
        executed = await NotebookRun(self._notebook, options, self).run()
        await self._handler.push(b"event: done\ndata: ")
        for piece in pieces_of(executed):
            await self._handler.push(piece)
        await self._handler.push(b"\n\n")

    async def perform(self, index: int, request: ExecuteRequest) -> Execution:
        after = max(-1, self._last - index * CELL)
        async with aclosing(cast("Any", self._session.events(request, after))) as events:
            async for event in events:
                if event is None:
                    await self._handler.push(sse.KEEP_ALIVE)
                elif event.kind == "state":
                    if not ExecutionState(event.data["state"]).is_final:  # of its end there is more to say
                        await self._tell(index, event.seq, "cell", {**event.data, "execution": request.id})
                elif event.kind != "done":
                    await self._tell(index, event.seq, event.kind, event_data(event))
        return await self._session.execution(request.id)

    async def cancel(self, id: str) -> Execution:
        return await self._session.cancel(id)

    async def finish(self, index: int, execution: Execution) -> None:
        facts = {"seconds": execution.seconds, "execution_count": execution.execution_count}
        state = {name: value for name, value in facts_of(execution).items() if name in ("state", "cause", "execution")}
        await self._tell(index, CELL - 1, "cell", state | facts)

    async def _tell(self, index: int, number: int, kind: str, data: Mapping[str, Any]) -> None:
        id = index * CELL + number
        if id > self._last:
            where = {"index": index, "cell": self._notebook["cells"][index]["id"]}
            await self._handler.push(sse.frame(kind, dump_json({**where, **data}), id))


async def cells_of(session: Session, cells: Cells) -> AsyncGenerator[dict[str, Any], None]:
    """All of a session's, one in memory at a time."""
    async with aclosing(_kept(session, outputs=False)) as every:
        async for item in every:
            if isinstance(item, KeptExecution):
                cells.foresee(item)
    async with aclosing(_kept(session, outputs=True)) as every:
        async for item in every:
            for cell in cells.of(item) if isinstance(item, KeptExecution) else cells.end(item):
                yield cell


async def _kept(session: Session, *, outputs: bool) -> AsyncGenerator[KeptExecution | int, None]:
    """All that a session keeps, page after page, at last how many there ever were."""
    after, listed = 0, MAX_LISTED
    while listed == MAX_LISTED:
        listed = 0
        async with aclosing(cast("Any", session.executions(after, outputs=outputs))) as page:
            async for item in page:
                if isinstance(item, KeptExecution):
                    listed, after = listed + 1, item.number
                    yield item
                elif listed < MAX_LISTED:
                    yield item


def pieces_of(notebook: Notebook) -> Iterable[bytes]:
    """Its JSON on one line, a cell at a time: to write a large one at once would hold up everybody else."""
    opening, closing = _around_cells({name: value for name, value in notebook.items() if name != "cells"})
    yield opening
    for index, cell in enumerate(notebook["cells"]):
        yield (b"," if index else b"") + dump_json(cell)
    yield closing


def _around_cells(head: Mapping[str, Any]) -> tuple[bytes, bytes]:
    return dump_json(head).removesuffix(b"}") + b',"cells":[', b"]}"


def _prepared(raw: bytes, parameters: dict[str, Any] | None, language: str) -> Notebook:
    """What takes time, and so is done in a thread. Raises `InvalidNotebook`."""
    value = parse(raw)
    if isinstance(value, dict) and "notebook" in value and "nbformat" not in value:
        parameters = value.get("parameters") if parameters is None else parameters
        value = value["notebook"]
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidNotebook("parameters must be a JSON object")
    notebook = read_notebook(value)
    if parameters:
        inject(notebook, parameters, language)
    # Of our own types again: nbformat's are slow, and lose what they are when they are copied.
    plain: Notebook = json.loads(json.dumps(notebook))
    return plain


def _described(metadata: Mapping[str, Any], language: Mapping[str, Any]) -> dict[str, Any]:
    """With the language that runs it, as nbclient does, and with a kernel when it names none."""
    return {"kernelspec": language["kernelspec"], **metadata, "language_info": language["language_info"]}
