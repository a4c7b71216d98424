"""The templates of routes, which name a request in metrics and traces: as many as there are routes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from tornado.web import RequestHandler

UNKNOWN = "unknown"
_ALTERNATIVES = re.compile(r"\(\?:([^|()]+)\|[^()]*\)")
_NAMED = re.compile(r"\(\?P<(\w+)>[^()]*\)")


class Routes:
    def __init__(self, table: Iterable[Any]) -> None:
        self._of: dict[type[RequestHandler], list[tuple[re.Pattern[str], str]]] = defaultdict(list)
        for pattern, handler, *_ in table:
            self._of[handler].append((re.compile(pattern), template(pattern)))

    def of(self, handler: RequestHandler) -> str:
        """That matched it. A handler stands on few routes, so looking again costs next to nothing."""
        path = handler.request.path
        return next((name for pattern, name in self._of[type(handler)] if pattern.fullmatch(path)), UNKNOWN)


def template(pattern: str) -> str:
    """`(?i)/(?:pools|…)/(?P<pool>[^/]+)/files` → `/pools/{pool}/files`; ACA's own base path counts as ours."""
    text = _ALTERNATIVES.sub(r"\1", pattern.removeprefix("(?i)"))
    return _NAMED.sub(r"{\1}", text).replace("\\", "").rstrip("$")
