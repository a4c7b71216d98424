"""Errors in the OpenAPI document: one answer a status, made from the classes that `errors.py` and the base have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kernelpool.api.base import HTTP_CODES, OTHER_HTTP_CODE
from kernelpool.api.openapi.operation import Json, answer, array_of, header, object_of, ref, text
from kernelpool.errors import KernelpoolError, SessionLimitReached

OPEN = (400, 414, 421, 431, 500)
"""Whatever is asked for: a wrong host, a request or a URL that is none or too long, a bug."""
EVERYWHERE = (*OPEN, 401, 403, 404, 429, 503)
"""And what needs a token: none, no right, a quota, a drain."""
SENDING = (413, 415)
"""What may have a body."""


def error_classes(root: type[KernelpoolError] = KernelpoolError) -> Iterator[type[KernelpoolError]]:
    """Those with a code of their own; the others are only branches of the tree. Not those of tests."""
    if "code" in vars(root) and root.__module__.startswith("kernelpool."):
        yield root
    for child in root.__subclasses__():
        yield from error_classes(child)


def error_codes() -> list[str]:
    return sorted({*(error.code for error in error_classes()), *HTTP_CODES.values(), OTHER_HTTP_CODE})


SCHEMAS: Mapping[str, Json] = {
    "Error": object_of(
        {
            "error": object_of(
                {
                    "code": ref("ErrorCode"),
                    "message": text("A sentence that names the thing and the limit."),
                    "traceId": text("Finds the request in the gateway's log."),
                    "remedy": text("What to do."),
                },
                optional=["remedy"],
            ),
            "message": text("The same, where Jupyter's clients read it; only on their surface."),
            "reason": text("The code, likewise."),
        },
        optional=["message", "reason"],
        description="How every error is told but two.",
    ),
    "FullPool": object_of(
        {"code": {"const": SessionLimitReached.code}, "message": text("Which pool, and its limit.")},
        description="A pool at its maximum, without an envelope, as ACA has it.",
    ),
    "Problem": object_of(
        {
            "type": text(format="uri"),
            "title": text(),
            "status": {"type": "integer"},
            "errors": {
                "type": "object",
                "description": "Sentences by the name of the field; `$` is the body.",
                "additionalProperties": array_of({"type": "string"}),
            },
            "traceId": text("Finds the request in the gateway's log."),
        },
        description="A JSON body with wrong fields.",
    ),
}

_HEADERS = {
    401: {"WWW-Authenticate": header("`Bearer`", always=True)},
    416: {"Content-Range": header("`bytes */<size>`")},
    429: {"Retry-After": header("Seconds.", {"type": "integer", "minimum": 1}, always=True)},
    503: {"Retry-After": header("Seconds.", {"type": "integer", "minimum": 1})},
}


def error_schemas() -> dict[str, Json]:
    return {"ErrorCode": {"type": "string", "enum": error_codes()}, **SCHEMAS}


def error_answers() -> dict[int, Json]:
    """Response Objects by status, for `components`."""
    by_status: dict[int, dict[str, type[KernelpoolError]]] = {}
    for error in error_classes():
        by_status.setdefault(error.status, {})[error.code] = error
    return {status: _answer(status, by_status[status]) for status in sorted(by_status)}


def component(status: int) -> str:
    return f"Error{status}"


def _answer(status: int, errors: Mapping[str, type[KernelpoolError]]) -> Json:
    lines = [f"- `{code}`: {error.remedy}" for code, error in sorted(errors.items())]
    envelope = ref("Error")
    content = {"application/json": {"schema": envelope}}
    if status == 400:
        content["application/problem+json"] = {"schema": ref("Problem")}
    if SessionLimitReached.code in errors:
        content["application/json"] = {"schema": {"anyOf": [envelope, ref("FullPool")]}}
    headers = {"x-ms-error-code": header("The code.", ref("ErrorCode"), always=True), **_HEADERS.get(status, {})}
    return answer("\n".join(lines), content, headers)
