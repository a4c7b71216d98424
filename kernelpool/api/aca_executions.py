"""Executions over ACA's data plane: run code and wait, run it and poll, or watch it as Server-Sent Events.

`Accept: text/event-stream` turns a submission, or a look at an execution, into a stream: `id:` is the event's number,
`event:` its kind, and the last one, `done`, carries the JSON that the plain answer would have been. A client that
lost the stream sends `Last-Event-ID`, with the same `operation-id` or to the execution's own URL, and misses nothing.
So a streamed execution runs on when its client leaves, like an asynchronous one; its timeout bounds it. A client
that leaves a plain synchronous call cancels what it was waiting for.

`Prefer: respond-async` (RFC 7240) asks for the same as `"executionType": "Asynchronous"`, and Shell pools take it.

The request header `operation-id` becomes the execution's id: sent twice, the code still runs once.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast
from urllib.parse import quote, urlencode

from kernelpool.api import sse
from kernelpool.api.aca_handler import AcaHandler
from kernelpool.api.base import Collaborators
from kernelpool.api.bodies import MAX_STREAMS, Rules, Submission, parse_submission
from kernelpool.api.dialects import AnswerOptions, Shape, event_data, execution_answer, executions_page
from kernelpool.api.json_text import dump_json
from kernelpool.api.query import required_identifier
from kernelpool.api.quirks import reads_results_as_text
from kernelpool.errors import ExecutionNotFound, InvalidRequest
from kernelpool.gateway import Session
from kernelpool.models import Event, ExecuteRequest, Execution, KeptExecution

PAGE = 100
PAGE_CODE = 4 << 20
"""Characters of code after which a page ends."""
SHELL_LANGUAGE = "bash"
"""Of pools that are as strict with bodies as ACA's Shell pools."""


class _Handler(AcaHandler):
    """Answers with executions."""

    def text_results(self, shape: Shape) -> bool:
        return shape is Shape.MODERN and reads_results_as_text(self.request.headers.get("User-Agent", ""))

    async def stream(
        self, session: Session, execution: ExecuteRequest | str, shape: Shape, options: AnswerOptions
    ) -> None:
        after = sse.last_event_id(self.request.headers.get("Last-Event-ID"))
        await self.stream_events(self._tell(session, execution, after, shape, options))

    async def _tell(
        self, session: Session, execution: ExecuteRequest | str, after: int, shape: Shape, options: AnswerOptions
    ) -> None:
        id = execution if isinstance(execution, str) else execution.id
        last = after if after >= 0 else None
        # A generator, whatever the protocol's type says of it: closing it ends the watching.
        async with aclosing(cast("AsyncGenerator[Event | None]", session.events(execution, after))) as events:
            async for event in events:
                await self._tell_event(event)
                last = event.seq if event else last
        finished = await session.execution(id)
        answer = execution_answer(finished, session.info.identifier, shape, options, asynchronous=True)
        await self.push(sse.frame("done", dump_json(answer), last))

    async def _tell_event(self, event: Event | None) -> None:
        if event is None:
            await self.push(sse.KEEP_ALIVE)
        elif event.kind != "done":  # ours says more, and takes its place
            await self.push(sse.frame(event.kind, dump_json(event_data(event)), event.seq))


class ExecuteHandler(_Handler):
    """POST of code, in any of the three dialects."""

    def initialize(self, collaborators: Collaborators, shape: Shape = Shape.MODERN) -> None:
        super().initialize(collaborators)
        self.shape = shape

    async def post(self, pool: str) -> None:
        await self.serve(self._post())

    async def _post(self) -> None:
        received = time.monotonic()
        submission = parse_submission(bytes(self.body), self._rules())
        asynchronous = submission.asynchronous or self._prefers_async()
        identifier = required_identifier(self.query.identifier or submission.identifier)
        request = ExecuteRequest(self._operation_id(), submission.code, submission.timeout, command=submission.command)
        options = AnswerOptions(
            streams_max_length=submission.streams_max_length,
            jupyter_format=submission.jupyter_format,
            with_outputs=self.query.flag("outputs", True),
            text_results=self.text_results(self.shape),
            language=self.pool.language,
        )
        async with self.gateway.use(self.principal, self.pool.name, identifier) as session:
            sent = time.monotonic()
            self.describe_session(session)
            self.set_header("operation-id", request.id)
            self.set_header("Operation-Location", self._location(request.id, identifier, submission))
            if self.wants_stream:
                await self.stream(session, request, self.shape, options)
                return
            execution = await (session.submit(request) if asynchronous else session.execute(request))
            self._describe_times(session, execution, received, sent)
        self.answer(execution_answer(execution, identifier, self.shape, options, asynchronous=asynchronous))

    def _prefers_async(self) -> bool:
        preferences = ",".join(self.request.headers.get_list("Prefer")).lower().split(",")
        if any(preference.strip() == "respond-async" for preference in preferences):
            self.set_header("Preference-Applied", "respond-async")
            return True
        return False

    def _rules(self) -> Rules:
        settings = self.pool.settings
        return Rules(
            settings.default_timeout,
            settings.max_timeout,
            settings.output_streams_max_length,
            is_shell=self.pool.language == SHELL_LANGUAGE,
        )

    def _operation_id(self) -> str:
        given = self.request.headers.get_list("operation-id")
        if len(given) > 1:
            raise InvalidRequest("the header operation-id is given more than once")
        return given[0] if given else str(uuid.uuid4())

    def _location(self, id: str, identifier: str, submission: Submission) -> str:
        """Where to poll. It carries what the body said about the form of the answer: the gateway remembers nothing."""
        query = {"api-version": self.query.api_version, "identifier": identifier}
        if submission.streams_max_length != self.pool.settings.output_streams_max_length:
            query["outputStreamsMaxLength"] = str(submission.streams_max_length)
        if submission.jupyter_format:
            query["returnJupyterFormatExecutionResult"] = "true"
        if not self.query.flag("outputs", True):
            query["outputs"] = "false"
        return f"{self.base_url}/executions/{quote(id, safe='')}?{urlencode(query)}"

    def _describe_times(self, session: Session, execution: Execution, received: float, sent: float) -> None:
        now = time.monotonic()
        times = {
            "x-ms-overall-execution-time": now - received,
            "x-ms-preparation-time": sent - received,
            "x-ms-allocation-time": session.allocation_seconds,
            "x-ms-execution-request-time": now - sent,
            "x-ms-execution-read-response-time": max(0.0, now - sent - execution.seconds),
            "x-ms-total-execution-service-time": now - sent,
            "x-ms-container-execution-duration": execution.seconds,
        }
        for name, seconds in times.items():
            self.set_header(name, str(round(seconds * 1000)))


class ExecutionsHandler(ExecuteHandler):
    """The newest route of code, and the list of what the session ran, whoever asked for it (ours; ACA has none)."""

    async def get(self, pool: str) -> None:
        await self.serve(self._get())

    async def _get(self) -> None:
        after = self.query.number("after", 0)
        found: list[KeptExecution] = []
        count, size = 0, 0
        async with self.gateway.find(self.principal, self.pool.name, self.identifier) as session:
            self.describe_session(session)
            listed = session.executions(after, limit=PAGE)
            async with aclosing(cast("AsyncGenerator[KeptExecution | int]", listed)) as items:
                async for item in items:
                    if isinstance(item, int):
                        count = item
                        break
                    found.append(item)
                    size += len(item.code or "")
                    if size > PAGE_CODE:
                        break
        self.answer(executions_page(found, count, self._next_link(found, size)))

    def _next_link(self, found: list[KeptExecution], size: int) -> str | None:
        if len(found) < PAGE and size <= PAGE_CODE:
            return None
        query = {"api-version": self.query.api_version, "identifier": self.identifier, "after": str(found[-1].number)}
        return f"{self.base_url}/executions?{urlencode(query)}"


class _OneHandler(_Handler):
    """Of an execution that is named by the path."""

    async def accept(self) -> None:
        await super().accept()
        id = self.path_kwargs["execution"]
        if not ExecuteRequest.is_id(id):
            raise ExecutionNotFound(f"no execution can have the id {id[:40]!r}")

    async def cancel(self, id: str) -> None:
        options = self.answer_options()
        async with self.gateway.find(self.principal, self.pool.name, self.identifier) as session:
            self.answer_with(await session.cancel(id), options)

    def answer_with(self, execution: Execution, options: AnswerOptions) -> None:
        # Who asks by id has, as a rule, submitted it asynchronously.
        self.answer(execution_answer(execution, self.identifier, Shape.MODERN, options, asynchronous=True))

    def answer_options(self) -> AnswerOptions:
        """From the query; `Operation-Location` has put there what the body said."""
        return AnswerOptions(
            streams_max_length=self.query.number(
                "outputStreamsMaxLength", self.pool.settings.output_streams_max_length, MAX_STREAMS
            ),
            jupyter_format=self.query.flag("returnJupyterFormatExecutionResult", False),
            with_outputs=self.query.flag("outputs", True),
            text_results=self.text_results(Shape.MODERN),
            language=self.pool.language,
        )


class ExecutionHandler(_OneHandler):
    """A look at an execution, and its end by the caller's wish (ours; ACA has no way to cancel)."""

    async def get(self, pool: str, execution: str) -> None:
        await self.serve(self._get(execution))

    async def delete(self, pool: str, execution: str) -> None:
        await self.serve(self.cancel(execution))

    async def _get(self, id: str) -> None:
        options = self.answer_options()
        async with self.gateway.find(self.principal, self.pool.name, self.identifier) as session:
            self.describe_session(session)
            self.set_header("operation-id", quote(id, safe=":"))
            if self.wants_stream:
                await self.stream(session, id, Shape.MODERN, options)
            else:
                self.answer_with(await session.execution(id), options)


class CancelHandler(_OneHandler):
    """The same end by POST, for clients that would rather not send DELETE."""

    async def post(self, pool: str, execution: str) -> None:
        await self.serve(self.cancel(execution))
