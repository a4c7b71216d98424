"""The executions of ACA's data plane, for the OpenAPI document. `dialects` makes what is described here."""

from __future__ import annotations

from kernelpool.api.dialects import LEGACY_STATUS, MODERN_STATUS
from kernelpool.api.openapi.operation import (
    POOL,
    Json,
    Operation,
    Surface,
    answer,
    array_of,
    at_both_bases,
    json_answer,
    link,
    object_of,
    ref,
    text,
)
from kernelpool.api.openapi.shared import FINDS, SAME_SESSION, SESSION_HEADERS, USES, VERSION_HEADERS, also
from kernelpool.models import EndCause, ExecutionState, Kind, Origin

_MIME_BUNDLE = {"type": "object", "description": "Representations by MIME type; binary ones are base64."}
_FILES = array_of({"type": "string"}) | {"description": "Workspace files that it was saved to."}
_NULLABLE_TEXT = {"type": ["string", "null"]}
_COUNT = {"type": "integer", "minimum": 0}

OUTPUTS: dict[str, Json] = {
    "StreamOutput": object_of(
        {"output_type": {"const": "stream"}, "name": {"enum": ["stdout", "stderr"]}, "text": text()}
    ),
    "DisplayOutput": object_of(
        {
            "output_type": {"const": "display_data"},
            "data": _MIME_BUNDLE,
            "metadata": {"type": "object"},
            "display_id": text("What `update_display` will name. Only in streams."),
            "files": _FILES,
        },
        optional=["files", "metadata", "display_id"],
    ),
    "ResultOutput": object_of(
        {
            "output_type": {"const": "execute_result"},
            "data": _MIME_BUNDLE,
            "metadata": {"type": "object"},
            "execution_count": {"type": ["integer", "null"]},
            "files": _FILES,
        },
        optional=["files", "metadata", "execution_count"],
    ),
    "ErrorOutput": object_of(
        {
            "output_type": {"const": "error"},
            "ename": text(),
            "evalue": text(),
            "traceback": array_of({"type": "string"}),
        },
        optional=["traceback"],
    ),
}

EVENTS: dict[str, Json] = {
    "state": object_of({"state": {"enum": [state.value for state in ExecutionState]}}),
    "output": {"$ref": "#/components/schemas/Output"},
    "update_display": object_of({"display_id": text(), "data": _MIME_BUNDLE, "metadata": {"type": "object"}}),
    "clear_output": object_of({"wait": {"type": "boolean"}}),
    "gap": object_of({"dropped_bytes": _COUNT}),
    "done": {"description": "The JSON that polling the execution would give, in the shape of the route."},
    "error": {"$ref": "#/components/schemas/Error"},
}
"""What a stream tells, by the name of the event."""

_RESULT: dict[str, Json] = {
    "stdout": text("Head and tail, at most `outputStreamsMaxLength` bytes of it."),
    "stderr": text("Likewise; after a failure with its message and traceback."),
    "executionTimeInMilliseconds": _COUNT,
    "executionCount": {"type": ["integer", "null"]},
    "exitCode": {
        "type": ["integer", "null"],
        "minimum": 0,
        "maximum": 255,
        "description": "Of commands alone: 128 and a signal's number after a signal, null when it was ended before.",
    },
    "truncated": object_of(
        {"stdout": _COUNT, "stderr": _COUNT, "outputs": _COUNT}, description="Bytes that were left out."
    ),
    "stateLost": object_of(
        {"before": _NULLABLE_TEXT, "during": _NULLABLE_TEXT}, description="Why variables are gone, said once."
    ),
    "interrupted": {"type": "boolean"},
    "kernelRestarted": {"type": "boolean"},
    "files": array_of({"type": "string"}) | {"description": "Workspace files written while it ran."},
    "filesComplete": {"type": "boolean", "description": "False when there were too many to tell."},
    "cause": {"enum": [*(cause.value for cause in EndCause), None], "description": "How it ended; null before."},
    "message": _NULLABLE_TEXT | {"description": "A sentence on how it ended."},
    "outputs": array_of(ref("Output")) | {"description": "Everything shown, in order, as in a notebook."},
}
_OPTIONAL = ["outputs", "exitCode"]
_VALUE = ref("Value")
_LEGACY = {"id": text(), "status": {"enum": sorted(set(LEGACY_STATUS.values()))}}

SCHEMAS: dict[str, Json] = {
    **OUTPUTS,
    "Output": {"oneOf": [ref(name) for name in OUTPUTS]},
    "Value": {
        "description": "Of the last line: a primitive, the text that Jupyter shows, or the last figure. Null after a "
        "failure, an empty text without a value.",
        "anyOf": [{"type": ["string", "number", "boolean", "null"]}, ref("Image")],
    },
    "Image": object_of({"type": {"const": "image"}, "format": {"enum": ["png", "jpeg", "svg"]}, "base64_data": text()}),
    "Execution": object_of(
        {
            "id": text(),
            "identifier": text("The session."),
            "executionType": {"enum": ["Synchronous", "Asynchronous"]},
            "status": {
                "description": "Of a command that has ended its exit code, or -1 when it was ended before.",
                "anyOf": [{"enum": sorted(set(MODERN_STATUS.values()))}, text() | {"pattern": "^(-1|[0-9]{1,3})$"}],
            },
            "result": ref("ExecutionResult"),
            "error": object_of({"code": text(), "message": text()}, description="Why it did not succeed."),
        },
        optional=["result", "error"],
        description="`result` is there once it has ended.",
    ),
    "ExecutionResult": object_of({**_RESULT, "executionResult": _VALUE}, optional=[*_OPTIONAL, "executionResult"]),
    "FlatExecution": object_of({**_LEGACY, **_RESULT, "result": _VALUE}, optional=_OPTIONAL),
    "WrappedExecution": object_of(
        {
            "properties": object_of(
                {**_LEGACY, **_RESULT, "result": _VALUE, "executionResult": _VALUE}, optional=_OPTIONAL
            )
        }
    ),
    "ServerSentEvent": {
        "oneOf": [
            object_of({"id": text(), "event": {"const": kind}, "data": data}, optional=["id"])
            for kind, data in EVENTS.items()
        ]
    },
}

_NULLABLE_TIME = {"type": ["string", "null"], "format": "date-time"}
_PAGE = object_of(
    {
        "value": array_of(
            object_of(
                {
                    "id": text(),
                    "number": {"type": "integer", "minimum": 1},
                    "origin": text("By which door it came.", enum=[origin.value for origin in Origin]),
                    "kind": text("Code, or a command.", enum=[kind.value for kind in Kind]),
                    "status": {"enum": sorted(set(MODERN_STATUS.values()))},
                    "code": _NULLABLE_TEXT | {"description": "Null when it was too long to be kept."},
                    "cell": _NULLABLE_TEXT | {"description": "The id of the notebook's cell that it stands in."},
                    "executionCount": {"type": ["integer", "null"]},
                    "createdAt": _NULLABLE_TIME,
                    "startedAt": _NULLABLE_TIME,
                    "finishedAt": _NULLABLE_TIME,
                    "executionTimeInMilliseconds": _COUNT,
                    "cause": _RESULT["cause"],
                    "message": _RESULT["message"],
                }
            )
        ),
        "count": _COUNT | {"description": "All that it ever ran. On the last page."},
        "nextLink": text("Where the next page is, when there may be one.", format="uri"),
    },
    optional=["count", "nextLink"],
)

# As tolerant as `bodies` is: numbers may come as text, null is as good as nothing.
_NUMBER = {"type": ["number", "string", "null"], "pattern": r"^[0-9]+(\.[0-9]+)?$"}
_OPTIONAL_FLAG = {"type": ["boolean", "null"]}
_OPTIONS: dict[str, Json] = {
    "codeInputType": {"enum": ["Inline", "InlineText", "InlineBase64"], "default": "Inline"},
    "executionType": {"enum": ["Synchronous", "Asynchronous"], "default": "Synchronous"},
    "timeoutInSeconds": _NUMBER | {"minimum": 1, "description": "At most what the pool allows."},
    "outputStreamsMaxLength": _NUMBER | {"minimum": 0, "multipleOf": 1},
    "useEmptyKernel": _OPTIONAL_FLAG | {"description": "Accepted, and changes nothing."},
    "returnJupyterFormatExecutionResult": _OPTIONAL_FLAG,
}


_WITHOUT_NUL = "^[^\\u0000]*$"
_INPUT: dict[str, Json] = {
    "stdin": _NULLABLE_TEXT | {"description": "What the command reads; nothing, when it is left out."},
    "pty": _OPTIONAL_FLAG | {"description": "Whether the command gets a terminal, where both streams are stdout."},
}
_COMMANDS: dict[str, Json] = {
    "shellCommand": text("For `bash -lc`, at most 131,071 bytes.", pattern=_WITHOUT_NUL),
    "execCommandAndArgs": array_of({"type": "string", "pattern": _WITHOUT_NUL})
    | {"minItems": 1, "description": "A program and its arguments."},
}


def _body(name: str, *, wrapped: bool) -> Json:
    """Code, or one of the two kinds of commands, which only the newest shape tells of."""
    code = object_of(
        {name: text("Code, or base64 of it as `codeInputType` says. Both are refused by Shell pools."), **_OPTIONS},
        optional=_OPTIONS,
    )
    limits = {option: _OPTIONS[option] for option in ("timeoutInSeconds", "outputStreamsMaxLength")}
    commands = [
        object_of({field: schema, **_INPUT, **limits}, optional=[*_INPUT, *limits])
        for field, schema in _COMMANDS.items()
    ]
    schema = object_of({"properties": code}) if wrapped else {"oneOf": [code, *commands]}
    value: Json = {name: "x = 20\nprint('hello')\nx + 1"}
    return {
        "required": True,
        "description": "Names and enum values in any case; any of the three shapes is read on any route.",
        "content": {"application/json": {"schema": schema, "example": {"properties": value} if wrapped else value}},
    }


_STREAM = {
    "schema": {
        "type": "string",
        "contentMediaType": "text/event-stream",
        "contentSchema": array_of(ref("ServerSentEvent")),
    }
}
_HEADERS = {**SESSION_HEADERS, "operation-id": ref("OperationId", "headers")}
_TIMES = {
    f"x-ms-{name}": ref("Milliseconds", "headers")
    for name in (
        "overall-execution-time",
        "preparation-time",
        "allocation-time",
        "execution-request-time",
        "execution-read-response-time",
        "total-execution-service-time",
        "container-execution-duration",
    )
}
_SUBMITTED = {**_HEADERS, "Operation-Location": ref("OperationLocation", "headers"), **_TIMES}


_LINKS = {
    operation: link(operation, **SAME_SESSION, execution="$response.body#/id")
    for operation in ("getExecution", "cancelExecution", "deleteExecution")
}


def _answered(schema: str, headers: Json, *, streams: bool = True, links: Json | None = None) -> dict[int, Json]:
    content = {"application/json": {"schema": ref(schema)}, **({"text/event-stream": _STREAM} if streams else {})}
    description = "The execution. Code that raises is one that failed, not an error."
    return {200: answer(description, content, headers, links)}


def _submit(id: str, summary: str, answers: dict[int, Json], body: Json) -> Operation:
    parameters = also("operationId", "outputs", "lastEventId", "prefer")
    return Operation(id, summary, answers, _STREAMING, parameters, body, errors=USES)


def _cancel(id: str, summary: str) -> Operation:
    parameters = also("outputs", "outputStreamsMaxLength", "jupyterFormat")
    answers = _answered("Execution", VERSION_HEADERS, streams=False)
    return Operation(id, summary, answers, parameters=parameters, errors=FINDS)


_STREAMING = "With `Accept: text/event-stream`, Server-Sent Events: each output as it happens, at last `done`."

SURFACE = Surface(
    "Executions",
    "Code, run in a session's one interpreter, in the order in which it came; commands, run beside it.",
    at_both_bases(
        {
            f"POST {POOL}/executions": _submit(
                "execute",
                "Run code, or a command",
                _answered("Execution", _SUBMITTED, links=_LINKS),
                _body("code", wrapped=False),
            ),
            f"GET {POOL}/executions": Operation(
                "listExecutions",
                "What the session ran, whoever asked for it",
                {200: json_answer("A page of it, the oldest first, without outputs.", _PAGE, SESSION_HEADERS)},
                "`number` counts all that the session ever ran: what is missing is kept no longer.",
                also("after"),
                errors=FINDS,
            ),
            f"GET {POOL}/executions/{{execution}}": Operation(
                "getExecution",
                "An execution as it is now",
                _answered("Execution", _HEADERS),
                _STREAMING,
                also("outputs", "outputStreamsMaxLength", "jupyterFormat", "lastEventId"),
                errors=FINDS,
            ),
            f"DELETE {POOL}/executions/{{execution}}": _cancel("deleteExecution", "Interrupt it, or unqueue it"),
            f"POST {POOL}/executions/{{execution}}/cancel": _cancel("cancelExecution", "The same by POST"),
            f"POST {POOL}/code/execute": _submit(
                "executeWrapped",
                "Run code, in the older shape",
                _answered("WrappedExecution", _SUBMITTED),
                _body("code", wrapped=True),
            ),
            f"POST {POOL}/python/execute": _submit(
                "executeFlat",
                "Run code, in the oldest shape",
                _answered("FlatExecution", _SUBMITTED),
                _body("pythonCode", wrapped=True),
            ),
        }
    ),
    SCHEMAS,
)
