"""Where the Jupyter surface is: at the root, for those who want a Jupyter server, and below each pool."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

BELOW_POOL = "/pools/(?P<pool>[^/]+)/jupyter"
BASES = ("", BELOW_POOL)

_OURS = re.compile(r"(?:/pools/[^/]+/jupyter(?=/|$))?(?:/api(?:/.*)?|/kernelspecs/.*|/tree|/hub/api|/)?", re.DOTALL)


def is_jupyter(path: str) -> bool:
    """Whether a path belongs to this surface. The token in a query, or in front of a path, counts only there."""
    return bool(path) and _OURS.fullmatch(path) is not None


def at_bases(table: Iterable[tuple[str, Any]], arguments: dict[str, Any]) -> list[Any]:
    """Each route twice."""
    return [(base + path, handler, arguments) for base in BASES for path, handler in table]


def base_of(path: str) -> str:
    """Of a request's path: empty at the root."""
    match = re.match(BELOW_POOL, path)
    return match[0] if match else ""
