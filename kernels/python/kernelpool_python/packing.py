"""Message parts as JSON that every reader can read, whatever text the user's code produced.

With the standard library alone: `jupyter_client` takes orjson where it finds it, and orjson 3.13 was seen to crash the
process when an interrupt came while it was at work.
"""

from __future__ import annotations

import json
from typing import Any

from jupyter_client.jsonutil import json_clean, json_default


def pack(part: Any) -> bytes:
    """`jupyter_client` fails at half a surrogate pair, and writes undecodable file names as invalid UTF-8."""
    try:
        return _dump(part).encode()
    except (TypeError, ValueError):
        return _dump(json_clean(part)).encode("utf-8", "replace")


def unpack(part: bytes | str) -> Any:
    return json.loads(part)


def _dump(part: Any) -> str:
    return json.dumps(part, default=json_default, ensure_ascii=False, allow_nan=False)
