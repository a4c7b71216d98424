"""Answers to a `history_request`: what code a session ran. Source: jupyter_client, docs/messaging.rst, "History"."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

MAX_ENTRIES = 1000
MAX_PATTERN = 256
Entry = tuple[int, str]
"""A line's number and its code."""


def answer(content: dict[str, Any], past: Iterable[Entry]) -> dict[str, Any]:
    """The content of the reply. `past` is all that is known, oldest first; it is all of one session, number 1."""
    find = _WAYS.get(str(content.get("hist_access_type")))
    found = find(content, list(past)) if find else []
    has_output = content.get("output") is True
    history = [[1, line, [code, None] if has_output else code] for line, code in found[-MAX_ENTRIES:]]
    return {"status": "ok", "history": history}


def _tail(content: dict[str, Any], past: list[Entry]) -> list[Entry]:
    count = _number(content.get("n"), MAX_ENTRIES)
    return past[-count:] if count > 0 else []


def _range(content: dict[str, Any], past: list[Entry]) -> list[Entry]:
    # 0 is the current session, negative ones are earlier: there are none.
    if _number(content.get("session"), 0) not in (0, 1):
        return []
    start = _number(content.get("start"), 1)
    stop = _number(content.get("stop"), 2**53)
    return [(line, code) for line, code in past if start <= line < stop]


def _search(content: dict[str, Any], past: list[Entry]) -> list[Entry]:
    # As SQLite's GLOB, which ipykernel uses. What it costs grows with the text, not with the power of the stars.
    pattern = str(content.get("pattern") or "*")[:MAX_PATTERN]
    found = [entry for entry in past if fnmatchcase(entry[1], pattern)]
    if content.get("unique") is True:
        found = list({code: (line, code) for line, code in found}.values())
    return found[-max(1, _number(content.get("n"), MAX_ENTRIES)) :]


def _number(value: object, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53 else default


_WAYS = {"tail": _tail, "range": _range, "search": _search}
