"""Metrics for Prometheus: for viewers of the operator's own tenant and all pools, or for everybody if he says so."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from kernelpool.api.base import ApiHandler, Collaborators, OpenHandler
from kernelpool.api.openapi.operation import Operation, Surface, answer
from kernelpool.auth.principal import DEFAULT_TENANT, Role
from kernelpool.errors import Forbidden
from kernelpool.telemetry.metrics import CONTENT_TYPE, Metrics


class MetricsHandler(ApiHandler):
    is_probe = True
    roles: ClassVar = {"GET": Role.VIEWER}

    def initialize(self, collaborators: Collaborators, metrics: Metrics) -> None:  # type: ignore[override]
        super().initialize(collaborators)
        self._metrics = metrics

    async def accept(self) -> None:
        """They tell of all tenants and all pools."""
        if self.principal.tenant != DEFAULT_TENANT or self.principal.pools is not None:
            raise Forbidden(
                f"{self.principal.name} is not of the tenant '{DEFAULT_TENANT}' with access to all pools, "
                "of which metrics tell."
            )

    async def get(self) -> None:
        await self.serve(self._get())

    async def _get(self) -> None:
        pools = await self.gateway.survey()
        text = await asyncio.to_thread(self._metrics.render, pools)
        self.set_header("Content-Type", CONTENT_TYPE)
        await self.finish(text)


class PublicMetricsHandler(OpenHandler, MetricsHandler):
    """Where nobody but the operator can reach the gateway."""

    async def accept(self) -> None:
        pass


def routes(collaborators: Collaborators, metrics: Metrics, *, public: bool) -> list[Any]:
    handler = PublicMetricsHandler if public else MetricsHandler
    return [("/metrics", handler, {"collaborators": collaborators, "metrics": metrics})]


SURFACE = Surface(
    "Metrics",
    "For Prometheus.",
    {"GET /metrics": Operation("getMetrics", "All metrics", {200: answer("Prometheus' text.", {"text/plain": {}})})},
)
