"""The OpenAPI document: what the surfaces say of themselves, put together."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from kernelpool import __version__
from kernelpool.api.openapi.errors import EVERYWHERE, OPEN, SENDING, component, error_answers, error_schemas
from kernelpool.api.openapi.operation import ARM_POOL, Json, Operation, Surface, ref
from kernelpool.api.openapi.shared import HEADERS, PARAMETERS, PATH_PARAMETERS

_DESCRIPTION = """\
Self-hosted dynamic sessions, compatible with those of Azure Container Apps, with additions that no client has to know.

Names of query parameters and of a body's fields are read in any case. Errors have codes and say what to do."""

_ARM_TAG = "At Azure's base path"


def make_document(surfaces: Sequence[Surface]) -> Json:
    answers = error_answers()
    paths: dict[str, Json] = {}
    for surface in surfaces:
        for name, operation in surface.operations.items():
            method, path = name.split(" ")
            tag = _ARM_TAG if path.startswith(ARM_POOL) else surface.tag
            item = paths.setdefault(path, _path_item(path))
            if method in ("POST", "PUT", "PATCH"):
                operation = replace(operation, errors=(*operation.errors, *SENDING))
            item[method.lower()] = _operation(tag, operation, answers)
    shared = {component(status): error for status, error in answers.items()}
    used = json.dumps(paths)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kernelpool",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"bearer": []}],
        "tags": _tags(surfaces),
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {name: schema for surface in surfaces for name, schema in surface.schemas.items()}
            | error_schemas(),
            "parameters": PARAMETERS | PATH_PARAMETERS,
            "headers": HEADERS,
            "responses": {name: error for name, error in shared.items() if f'/{name}"' in used},
        },
    }


def _path_item(path: str) -> Json:
    names = [name for name in re.findall(r"{(\w+)}", path) if name in PATH_PARAMETERS]
    return {"parameters": [ref(name, "parameters") for name in names]} if names else {}


def _operation(tag: str, operation: Operation, known: Mapping[int, Json]) -> Json:
    errors = {*(OPEN if operation.is_open else EVERYWHERE), *operation.errors} & {*known}
    return {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [tag],
        **({"description": operation.description} if operation.description else {}),
        **({"security": []} if operation.is_open else {}),
        **({"parameters": list(operation.parameters)} if operation.parameters else {}),
        **({"requestBody": operation.body} if operation.body else {}),
        "responses": {
            **{str(status): answer for status, answer in operation.answers.items()},
            **{str(status): _error(status, operation, known) for status in sorted(errors - set(operation.answers))},
        },
    }


def _error(status: int, operation: Operation, known: Mapping[int, Json]) -> Json:
    if operation.fault is None or status in (401, 403):
        return ref(component(status), "responses")
    return {**known[status], "content": {"application/json": {"schema": operation.fault}}}


def _tags(surfaces: Sequence[Surface]) -> list[Mapping[str, str]]:
    tags = [{"name": surface.tag, "description": surface.description} for surface in surfaces]
    return [*tags, {"name": _ARM_TAG, "description": f"The same under `{ARM_POOL}`, in any case."}]
