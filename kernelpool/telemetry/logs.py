"""Logs: one JSON object a line, so that nothing a session or a caller says can forge a second one.

A line says which request, pool and session it belongs to, where that is known: whoever logs need not.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

from kernelpool.telemetry.tracing import current_ids

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; the rest are the facts of the event."""
_known: ContextVar[Mapping[str, str]] = ContextVar("kernelpool_log_facts")


@contextmanager
def log_context(**facts: str) -> Iterator[None]:
    """Lines that are logged meanwhile, in this task and those that it starts, have these facts too."""
    token = _known.set({**_known.get({}), **facts})
    try:
        yield
    finally:
        _known.reset(token)


class ContextFilter(logging.Filter):
    """Lets everything pass, and adds what is known of where it comes from. What a line says itself wins."""

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in {**current_ids(), **_known.get({})}.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


class JsonFormatter(logging.Formatter):
    """`{"at", "level", "logger", "event", …facts}`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _OWN and name not in line}
        if record.exc_info:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))
        # ASCII only: line separators of Unicode and terminal controls cannot break out either.
        return json.dumps(line, default=str, ensure_ascii=True)


def configure_logging(level: str, stream: TextIO | None = None) -> None:
    """For the whole process; called once, by the command line."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(ContextFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel("WARNING")
    # What it has to say of a request stands in kernelpool.access.
    logging.getLogger("tornado.access").setLevel("ERROR")
