"""Errors in the envelope, and whole answers for requests that never get as far as a handler."""

from __future__ import annotations

import uuid
from http.client import responses
from typing import Any

from kernelpool.api.json_text import dump_json
from kernelpool.errors import KernelpoolError, TryLater


def error_envelope(code: str, message: str, trace_id: str, remedy: str | None) -> dict[str, Any]:
    error = {"code": code, "message": message, "traceId": trace_id}
    return {"error": error | ({"remedy": remedy} if remedy else {})}


def retry_after(error: TryLater) -> str:
    return str(max(1, round(error.retry_after)))


def refusal(error: KernelpoolError) -> bytes:
    """The last answer of a connection."""
    body = dump_json(error_envelope(error.code, error.message, uuid.uuid4().hex, error.remedy))
    headers = {
        "Server": "kernelpool",
        "Content-Type": "application/json; charset=utf-8",
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "x-ms-error-code": error.code,
        "Connection": "close",
    }
    if isinstance(error, TryLater):
        headers["Retry-After"] = retry_after(error)
    lines = [f"HTTP/1.1 {error.status} {responses.get(error.status, 'Error')}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
