"""Notebooks, for the OpenAPI document. `api/notebooks.py` makes what is described here."""

from __future__ import annotations

from kernelpool.api.openapi.operation import (
    POOL,
    Json,
    Operation,
    Surface,
    answer,
    array_of,
    at_both_bases,
    object_of,
    parameter,
    ref,
    text,
)
from kernelpool.api.openapi.shared import FINDS, SESSION_HEADERS, SESSION_PARAMETERS, USES, also
from kernelpool.notebooks.document import MEDIA_TYPE
from kernelpool.notebooks.running import MAX_ID

_CELL: Json = {"type": "object", "description": "As nbformat 4.5 has it; `metadata.kernelpool` says how it was run."}

SCHEMAS: dict[str, Json] = {
    "Notebook": object_of(
        {
            "nbformat": {"const": 4},
            "nbformat_minor": {"type": "integer", "minimum": 5},
            "metadata": {
                "type": "object",
                "description": "After a run, `kernelpool` holds `status` (succeeded or failed), the number of cells "
                "`executed`, and of a failure the `cell`, its `cause` and a `message`.",
            },
            "cells": array_of(_CELL),
        },
        description="A valid nbformat document.",
    ),
    "NotebookToRun": {
        "description": "A notebook, or one with parameters around it.",
        "anyOf": [
            {
                "type": "object",
                "description": "Of nbformat 3 or 4.",
                "required": ["nbformat", "metadata"],
                "properties": {"nbformat": {"enum": [3, 4]}, "metadata": {"type": "object"}},
                "additionalProperties": True,
            },
            {
                "type": "object",
                "required": ["notebook"],
                "properties": {
                    "notebook": {"type": "object"},
                    "parameters": {"type": ["object", "null"], "description": "Values by the names of variables."},
                },
                "additionalProperties": True,
            },
        ],
    },
}

_PARAMETERS: list[Json] = [
    parameter("stopOnError", {"type": "boolean"}, "`false` goes on after cells that raise."),
    parameter(
        "cellTimeoutInSeconds", {"type": "integer", "minimum": 1}, "That a cell may run, within the pool's limit."
    ),
    parameter("timeoutInSeconds", {"type": "integer", "minimum": 1}, "Of all cells, waiting included."),
    parameter("parameters", text(), "A JSON object: values that are put into the notebook, as papermill does."),
    parameter(
        "operation-id",
        text(pattern=f"^[A-Za-z0-9._:~-]{{1,{MAX_ID}}}$"),
        "Cells are executed under ids made of it. Sent again, a run goes on where it stopped, and nothing runs twice.",
        "header",
    ),
]
_NOTEBOOK = {MEDIA_TYPE: {"schema": ref("Notebook")}}
_EVENTS = {
    "text/event-stream": {
        "schema": {
            "type": "string",
            "description": "`cell` (`index`, `cell`, `state`), what an execution's stream tells with `index` and "
            "`cell` beside it, at last `done` with the notebook, or `error`.",
        }
    }
}
_EXAMPLE = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {},
    "cells": [
        {"cell_type": "code", "id": "one", "metadata": {}, "source": "1 + 1", "outputs": [], "execution_count": None}
    ],
}

SURFACE = Surface(
    "Notebooks",
    "What a session ran as a notebook, and notebooks run in a session.",
    at_both_bases(
        {
            f"GET {POOL}/notebook": Operation(
                "getNotebook",
                "What the session ran, whoever asked for it",
                {200: answer("The notebook, with outputs, executable again.", _NOTEBOOK, SESSION_HEADERS)},
                "What is no longer kept is said in a cell of its own. The session is never allocated by this.",
                [*SESSION_PARAMETERS, parameter("download", text(), "Makes it a download of that name.")],
                errors=FINDS,
            ),
            f"POST {POOL}/notebook": Operation(
                "runNotebook",
                "Run a notebook",
                {
                    200: answer(
                        "The executed notebook. Cells that raise are a result, not an error.",
                        _NOTEBOOK | _EVENTS,
                        {**SESSION_HEADERS, "operation-id": ref("OperationId", "headers")},
                    )
                },
                "Cell by cell, in the session's one queue. Cells tagged `skip-execution` are left as they are, those "
                "tagged `raises-exception` may raise. With `Accept: text/event-stream`, progress as it happens.",
                [*also("lastEventId"), *_PARAMETERS],
                {
                    "required": True,
                    "content": {"application/json": {"schema": ref("NotebookToRun"), "example": _EXAMPLE}},
                },
                errors=USES,
            ),
        }
    ),
    SCHEMAS,
)
