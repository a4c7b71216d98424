"""Logs: one JSON object a line, so that nothing a session or a caller says can forge a second one."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from typing import Any, TextIO

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; the rest are the facts of the event."""


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
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel("WARNING")
    # What it has to say of a request stands in kernelpool.access.
    logging.getLogger("tornado.access").setLevel("ERROR")
