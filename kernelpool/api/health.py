"""Whether the process lives and whether it takes requests: for probes, so without a token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kernelpool.api.base import Collaborators, OpenHandler
from kernelpool.api.openapi.operation import Operation, Surface, json_answer, object_of, text


class LiveHandler(OpenHandler):
    """The event loop turns: no more is promised."""

    is_probe = True

    async def get(self) -> None:
        self.answer({"status": "alive"})


class ReadyHandler(OpenHandler):
    """503 while starting and while draining, so that nobody new is sent here."""

    is_probe = True

    def initialize(self, collaborators: Collaborators, is_ready: Callable[[], bool] = bool) -> None:
        super().initialize(collaborators)
        self._is_ready = is_ready

    async def get(self) -> None:
        ready = self._is_ready()
        self.answer({"status": "ready" if ready else "not ready"}, 200 if ready else 503)


def routes(collaborators: Collaborators, is_ready: Callable[[], bool]) -> list[Any]:
    return [
        ("/healthz", LiveHandler, {"collaborators": collaborators}),
        ("/readyz", ReadyHandler, {"collaborators": collaborators, "is_ready": is_ready}),
    ]


_STATUS = object_of({"status": text()})
SURFACE = Surface(
    "Process",
    "For probes. No token.",
    {
        "GET /healthz": Operation(
            "getHealth", "Whether it lives", {200: json_answer("It does.", _STATUS)}, is_open=True
        ),
        "GET /readyz": Operation(
            "getReadiness",
            "Whether it takes requests",
            {200: json_answer("It does.", _STATUS), 503: json_answer("Starting or draining.", _STATUS)},
            is_open=True,
        ),
    },
)
