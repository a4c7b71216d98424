"""One module a surface over the same Gateway. A surface is a module with `routes` and `SURFACE`, its description, and
a line for each here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kernelpool.api import aca, arm, forward, health, jupyter, metrics, pools
from kernelpool.api.application import EdgeApplication
from kernelpool.api.base import Collaborators
from kernelpool.api.mcp import routes as mcp_routes
from kernelpool.api.openapi import executions, files, handlers, notebooks, sessions
from kernelpool.api.openapi import mcp as openapi_mcp
from kernelpool.api.openapi.document import make_document
from kernelpool.telemetry.metrics import Metrics

SURFACES = [
    executions.SURFACE,
    notebooks.SURFACE,
    files.SURFACE,
    sessions.SURFACE,
    openapi_mcp.SURFACE,
    pools.SURFACE,
    arm.SURFACE,
    jupyter.SURFACE,
    forward.SURFACE,
    health.SURFACE,
    metrics.SURFACE,
    handlers.SURFACE,
]


def make_application(
    collaborators: Collaborators,
    is_ready: Callable[[], bool],
    counted: Metrics | None = None,
    *,
    metrics_public: bool = False,
) -> EdgeApplication:
    """`counted` is what /metrics shows; without it there is no such page."""
    return EdgeApplication(
        [
            *health.routes(collaborators, is_ready),
            *(metrics.routes(collaborators, counted, public=metrics_public) if counted else []),
            *handlers.routes(collaborators, openapi_document()),
            *pools.routes(collaborators),
            *arm.routes(collaborators),
            *jupyter.routes(collaborators),
            *mcp_routes.routes(collaborators),
            *aca.routes(collaborators),
            *forward.routes(collaborators),
        ],
        collaborators,
    )


def openapi_document() -> dict[str, Any]:
    return make_document(SURFACES)
