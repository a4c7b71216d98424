"""JSON in and out: strict when reading what callers send, always valid when writing what sandboxes said."""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic_core import from_json

from kernelpool.errors import InvalidRequest

MAX_DEPTH = 100
_dump = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def parse_json(body: bytes) -> Any:
    """RFC 8259 text in UTF-8. Raises `InvalidRequest` for anything else: NaN, a BOM, half a surrogate pair, depth."""
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"body is not valid JSON: {error}") from None


def dump_json(value: Any) -> bytes:
    """Compact UTF-8. What JSON cannot say is replaced, never refused: a session's output must not fail its answer."""
    try:
        return _dump(value).encode()
    except (ValueError, TypeError, RecursionError):  # UnicodeEncodeError, for a lone surrogate, is a ValueError
        return _dump(_sayable(value)).encode()


def mend_text(text: str) -> str:
    """The text with lone surrogates replaced, so that it can be encoded."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _sayable(value: Any, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        return "…"
    match value:
        case str():
            return mend_text(value)
        case float() if math.isnan(value):
            return None
        case float() if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        case dict():
            return {mend_text(str(key)): _sayable(item, depth + 1) for key, item in value.items()}
        case list() | tuple():
            return [_sayable(item, depth + 1) for item in value]
        case bool() | int() | float() | None:
            return value
        case _:
            return mend_text(str(value))
