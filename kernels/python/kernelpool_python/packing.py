"""Message parts as JSON that every reader can read, whatever text the user's code produced."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from jupyter_client.jsonutil import json_clean, json_default

try:
    import orjson
except ModuleNotFoundError:
    orjson = None  # type: ignore[assignment]


def pack(part: Any) -> bytes:
    """`jupyter_client` fails at half a surrogate pair, and writes undecodable file names as invalid UTF-8."""
    if orjson is not None:
        with suppress(Exception):
            return orjson.dumps(part, default=json_default, option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z)
    text = json.dumps(json_clean(part), default=json_default, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace")
