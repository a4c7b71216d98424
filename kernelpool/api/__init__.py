"""One module a surface over the same Gateway. A surface is a module with `routes`, and a line here."""

from __future__ import annotations

from collections.abc import Callable

from kernelpool.api import aca, arm, health, metrics, pools
from kernelpool.api.base import Collaborators, EdgeApplication, application
from kernelpool.telemetry.metrics import Metrics


def make_application(
    collaborators: Collaborators,
    is_ready: Callable[[], bool],
    counted: Metrics | None = None,
    *,
    metrics_public: bool = False,
) -> EdgeApplication:
    """`counted` is what /metrics shows; without it there is no such page."""
    return application(
        [
            *health.routes(collaborators, is_ready),
            *(metrics.routes(collaborators, counted, public=metrics_public) if counted else []),
            *pools.routes(collaborators),
            *arm.routes(collaborators),
            *aca.routes(collaborators),
        ],
        collaborators,
    )
