"""Bodies of execution requests → `Submission`. Tolerant in form, strict in meaning; every field's fault is named."""

from __future__ import annotations

import base64
import binascii
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StringConstraints, ValidationError

from kernelpool.api.json_text import parse_json
from kernelpool.errors import InvalidRequest
from kernelpool.models import Command, check_argument

MAX_STREAMS = 64 << 20


class InvalidBody(InvalidRequest):
    """Answered as `application/problem+json`; `errors` maps field names to sentences."""

    remedy = "Correct the fields that `errors` names."

    def __init__(self, errors: Mapping[str, list[str]]) -> None:
        super().__init__("; ".join(sentence for sentences in errors.values() for sentence in sentences))
        self.errors = dict(errors)


@dataclass(frozen=True, slots=True)
class Submission:
    """What a body asks for, whatever dialect it was written in."""

    code: str
    """Of a command, what to show of it."""
    command: Command | None
    asynchronous: bool
    timeout: float
    streams_max_length: int
    jupyter_format: bool
    identifier: str | None
    """Only the oldest clients put it here."""


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _no_flag(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("Input should be a number")
    return value


_Word = BeforeValidator(_lower)
_Number = BeforeValidator(_no_flag)


class _Body(BaseModel):
    """The union of all dialects' fields, by their lower-case names; unknown ones are ignored, as ACA does."""

    model_config = ConfigDict(str_max_length=None, hide_input_in_errors=True)

    code: str | None = None
    pythoncode: str | None = None
    codeinputtype: Annotated[Literal["inline", "inlinetext", "inlinebase64"], _Word] = "inline"
    executiontype: Annotated[Literal["synchronous", "asynchronous"], _Word] = "synchronous"
    timeoutinseconds: Annotated[float, _Number, Field(allow_inf_nan=False)] | None = None
    outputstreamsmaxlength: Annotated[int, _Number, Field(ge=0)] | None = None
    useemptykernel: StrictBool | None = None
    returnjupyterformatexecutionresult: StrictBool | None = None
    returnjupyterformat: StrictBool | None = None  # what the examples of the specification call it
    identifier: Annotated[str, StringConstraints(max_length=1024)] | None = None
    shellcommand: str | None = None
    execcommandandargs: Annotated[list[str], Field(min_length=1)] | None = None
    stdin: str | None = None
    pty: StrictBool | None = None


_NAMES = {
    "code": "code",
    "pythoncode": "pythonCode",
    "codeinputtype": "codeInputType",
    "executiontype": "executionType",
    "timeoutinseconds": "timeoutInSeconds",
    "outputstreamsmaxlength": "outputStreamsMaxLength",
    "useemptykernel": "useEmptyKernel",
    "returnjupyterformatexecutionresult": "returnJupyterFormatExecutionResult",
    "returnjupyterformat": "returnJupyterFormat",
    "identifier": "identifier",
    "shellcommand": "shellCommand",
    "execcommandandargs": "execCommandAndArgs",
    "stdin": "stdin",
    "pty": "pty",
}
_NOT_ON_SHELL_POOLS = ("codeinputtype", "executiontype")


@dataclass(frozen=True, slots=True)
class Rules:
    """What a pool lets a body ask for."""

    default_timeout: float
    max_timeout: float
    default_streams: int
    is_shell: bool = False
    """A Shell pool, which refuses what ACA's refuse."""


def parse_submission(text: bytes, rules: Rules) -> Submission:
    """Raises `InvalidRequest` for what is no JSON, `InvalidBody` for JSON that makes no request."""
    fields = _fields(parse_json(text))
    if rules.is_shell and (odd := [_NAMES[name] for name in _NOT_ON_SHELL_POOLS if name in fields]):
        raise InvalidBody({name: [f"{name} is not allowed in a Shell pool; leave it out."] for name in odd})
    body = _validated(fields)
    code, command = _work(body)
    return Submission(
        code=code,
        command=command,
        asynchronous=body.executiontype == "asynchronous",
        timeout=_timeout(body.timeoutinseconds, rules.default_timeout, rules.max_timeout),
        streams_max_length=min(
            rules.default_streams if body.outputstreamsmaxlength is None else body.outputstreamsmaxlength, MAX_STREAMS
        ),
        jupyter_format=bool(body.returnjupyterformatexecutionresult or body.returnjupyterformat),
        identifier=body.identifier,
    )


def _work(body: _Body) -> tuple[str, Command | None]:
    """The code, or the command and how it is shown: exactly one of what can be asked for."""
    code = body.code if body.code is not None else body.pythoncode
    given = {"code": code, "shellCommand": body.shellcommand, "execCommandAndArgs": body.execcommandandargs}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InvalidBody({name: [f"Only one of {' and '.join(names)} can be run at once."] for name in names})
    if not names:
        raise InvalidBody({"code": ["The code field is required, or shellCommand, or execCommandAndArgs."]})
    if code is not None:
        if odd := [name for name in ("stdin", "pty") if getattr(body, name) is not None]:
            raise InvalidBody({name: [f"{name} is for shellCommand and execCommandAndArgs."] for name in odd})
        return (_decoded(code) if body.codeinputtype == "inlinebase64" else code), None
    try:
        command = Command(tuple(body.execcommandandargs or ()), body.stdin or "", bool(body.pty))
        if body.shellcommand is not None:
            check_argument(body.shellcommand, "the command")
    except InvalidRequest as error:
        raise InvalidBody({names[0]: [f"{names[0]}: {error.message}."]}) from None
    return body.shellcommand if body.shellcommand is not None else shlex.join(command.arguments), command


def _fields(value: Any) -> dict[str, Any]:
    """Flat or in `properties`, or some here and some there."""
    if not isinstance(value, dict):
        raise InvalidBody({"$": ["The body must be a JSON object."]})
    outer = {name.lower(): item for name, item in value.items()}
    inner = outer.pop("properties", {})
    if not isinstance(inner, dict):
        raise InvalidBody({"properties": ["properties must be a JSON object."]})
    return {**outer, **{name.lower(): item for name, item in inner.items()}}


def _validated(fields: dict[str, Any]) -> _Body:
    try:
        return _Body.model_validate(fields)
    except ValidationError as error:
        errors: dict[str, list[str]] = {}
        for fault in error.errors(include_url=False, include_input=False):
            name = str(fault["loc"][0])
            errors.setdefault(_NAMES.get(name, name), []).append(f"{_NAMES.get(name, name)}: {fault['msg']}.")
        raise InvalidBody(errors) from None


def _decoded(code: str) -> str:
    try:
        return base64.b64decode(code, validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidBody({"code": ["code must be base64 of UTF-8 text, as codeInputType says."]}) from None


def _timeout(asked: float | None, default: float, limit: float) -> float:
    if asked is None:
        return min(default, limit)
    if not 1 <= asked <= limit:
        raise InvalidBody({"timeoutInSeconds": [f"timeoutInSeconds must be from 1 to {limit:g}, not {asked:g}."]})
    return asked
