"""The tools that run something, or look at what runs."""

from __future__ import annotations

import asyncio
import json
import shlex
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal, cast

from pydantic import BaseModel, Field

from kernelpool.api.mcp.arguments import (
    CancelExecution,
    InSession,
    Nothing,
    ReadOutput,
    RunCode,
    RunCommand,
    RunPythonInEnvironment,
    RunShellInEnvironment,
)
from kernelpool.api.mcp.call import Answer, Call
from kernelpool.api.mcp.transcript import (
    MAX_ANSWER,
    MAX_TEXT,
    Transcript,
    errors,
    exit_code,
    fitting,
    notes_of,
    result,
    stderr,
    stream,
    transcript,
    window,
)
from kernelpool.errors import SessionNotFound
from kernelpool.gateway import Session
from kernelpool.models import Command, Event, ExecuteRequest, Execution, ExecutionState, Kind, Origin

LEAST_TEXT = 2_000
"""Characters that an answer has in any case."""


class Run(BaseModel):
    """What a run returns."""

    session: str = Field(description="The session it ran in.")
    executionId: str = Field(description="What read_output and cancel_execution call it.")
    state: Literal["queued", "running", "succeeded", "failed", "canceled"]
    stdout: str
    stderr: str = Field(description="With the traceback, when the code raised.")
    result: str = Field(description="The value of the last expression; empty without one.")
    errorName: str = Field(description="The exception that the code raised; empty without one.")
    errorMessage: str
    exitCode: int = Field(description="Of a command, -1 when it was stopped; of code always 0.")
    seconds: float = Field(description="How long it ran.")
    images: int = Field(description="Images that are in the content.")
    files: list[str] = Field(description="Files that it wrote, relative to /mnt/data.")
    notes: list[str] = Field(description="What else happened: a time-out, variables that were lost.")
    omittedCharacters: int = Field(description="Left out of the text; read_output has them.")


class EnvironmentRun(Run):
    environmentId: str


class Launched(BaseModel):
    environmentId: str = Field(description="Goes into the tools that run something in the environment.")


class Reset(BaseModel):
    session: str
    wasThere: bool


async def run_code(call: Call, wanted: RunCode) -> Answer:
    request = _request(call, wanted.code, wanted.timeout)
    return await _run(call, wanted.session, request, wanted.max_characters, background=wanted.background)


async def run_command(call: Call, wanted: RunCommand) -> Answer:
    request = _request(call, wanted.command, wanted.timeout, Command())
    return await _run(call, wanted.session, request, wanted.max_characters, background=wanted.background)


async def read_output(call: Call, wanted: ReadOutput) -> Answer:
    async with call.find(wanted.session) as session:
        execution = await session.execution(wanted.execution)
        if wanted.wait and not execution.state.is_final:
            await call.ticking(_until_done(session, wanted.execution, wanted.wait), wanted.wait, "Waiting")
            execution = await session.execution(wanted.execution)
        whole = transcript(execution)
        if wanted.offset:
            whole = Transcript(whole.text[wanted.offset :], ())
        return _answer(session.info.identifier, execution, whole, wanted.max_characters, wanted.offset)


async def cancel_execution(call: Call, wanted: CancelExecution) -> Answer:
    async with call.find(wanted.session) as session:
        execution = await call.ticking(session.cancel(wanted.execution), None, "Canceling")
        answer = _answer(session.info.identifier, execution, transcript(execution), MAX_TEXT)
        return replace(answer, is_error=False)  # it is what was asked for


async def reset_session(call: Call, wanted: InSession) -> Answer:
    identifier = wanted.session or call.caller.identifier
    try:
        await call.caller.gateway.stop_session(call.caller.principal, call.pool.name, identifier)
    except SessionNotFound:
        text, was_there = "There was no such session; the next code makes it.", False
    else:
        text, was_there = "The session is gone with its variables and files; the next code makes a fresh one.", True
    return Answer(text, Reset(session=identifier, wasThere=was_there).model_dump())


async def launch(call: Call, wanted: Nothing) -> Answer:
    """A name is all that it is: the session is made by the first run, as with ACA."""
    environment = str(uuid.uuid4())
    return Answer(f"environmentId: {environment}", Launched(environmentId=environment).model_dump())


async def run_python_in_environment(call: Call, wanted: RunPythonInEnvironment) -> Answer:
    return _in_environment(await _run(call, wanted.environment, _request(call, wanted.code)))


async def run_shell_in_environment(call: Call, wanted: RunShellInEnvironment) -> Answer:
    request = _request(call, wanted.line or shlex.join(wanted.words), command=Command(tuple(wanted.words)))
    return _in_environment(await _run(call, wanted.environment, request))


def _in_environment(answer: Answer) -> Answer:
    data = dict(answer.data or {})
    return Answer(answer.text, {**data, "environmentId": data["session"]}, answer.images, answer.is_error)


def _request(call: Call, code: str, timeout: float = 0, command: Command | None = None) -> ExecuteRequest:
    seconds = timeout or call.pool.settings.default_timeout
    return ExecuteRequest(uuid.uuid4().hex, code, seconds, origin=Origin.MCP, command=command)


async def _run(
    call: Call, identifier: str, request: ExecuteRequest, limit: int = MAX_TEXT, *, background: bool = False
) -> Answer:
    async def run() -> Answer:
        async with call.use(identifier) as session:
            execution = await (session.submit(request) if background else session.execute(request))
            return _answer(session.info.identifier, execution, transcript(execution), limit)

    # The wait for a sandbox, too, is one that clients want a sign of.
    return await call.ticking(run(), request.timeout, "Running")


async def _until_done(session: Session, id: str, seconds: float) -> None:
    try:
        async with (
            asyncio.timeout(seconds) as deadline,
            aclosing(cast("AsyncGenerator[Event | None]", session.events(id))) as events,
        ):
            async for _ in events:
                pass
    except TimeoutError:
        if not deadline.expired():
            raise


def _answer(identifier: str, execution: Execution, whole: Transcript, limit: int, begins: int = 0) -> Answer:
    """With less text than was asked for, where all of it would be more than clients take."""
    while True:
        answer = _answer_of(identifier, execution, whole, limit, begins)
        if limit <= LEAST_TEXT or _size(answer) <= MAX_ANSWER:
            return answer
        limit //= 2


def _size(answer: Answer) -> int:
    """Bytes on the wire, where what is not ASCII is escaped."""
    return len(json.dumps([answer.text, answer.data])) + sum(len(image.data) for image in answer.images)


def _answer_of(identifier: str, execution: Execution, whole: Transcript, limit: int, begins: int) -> Answer:
    how = f'; read_output with execution="{execution.id}" and offset={{offset}} reads them'
    text = window(whole.text, limit, how.replace("{offset}", str(begins + limit // 2)))
    data = _data(identifier, execution, limit)
    images = fitting(whole.images, MAX_ANSWER - len(json.dumps([text.text, data.model_dump()])) - 1000)
    shown = text.text or _silence(execution)
    if len(images) < len(whole.images):
        shown += f"\n[{len(whole.images) - len(images)} of {len(whole.images)} images are not shown here: too large]"
    if not execution.state.is_final:
        shown += f'\n[read_output with execution="{execution.id}" and wait=60 waits for its end]'
    data.images, data.omittedCharacters = len(images), text.omitted
    return Answer(shown, data.model_dump(), images, is_error=_has_failed(execution))


def _has_failed(execution: Execution) -> bool:
    """A command that says something by its exit code has not: `grep` that finds nothing is an answer."""
    is_answer = execution.kind is Kind.COMMAND and execution.exit_code is not None
    return execution.state in (ExecutionState.FAILED, ExecutionState.CANCELED) and not is_answer


def _silence(execution: Execution) -> str:
    return "(no output)" if execution.state.is_final else ""


def _data(identifier: str, execution: Execution, limit: int) -> Run:
    raised = errors(execution)
    return Run(
        session=identifier,
        executionId=execution.id,
        state=cast("Any", execution.state.value),
        stdout=window(stream(execution, "stdout"), limit).text,
        stderr=window(stderr(execution), limit).text,
        result=window(result(execution), limit).text,
        errorName=raised[-1].ename[:200] if raised else "",
        errorMessage=raised[-1].evalue[:2000] if raised else "",
        exitCode=exit_code(execution),
        seconds=round(execution.seconds, 3),
        images=0,
        files=list(execution.files[:100]),
        notes=list(notes_of(execution)),
        omittedCharacters=0,
    )
