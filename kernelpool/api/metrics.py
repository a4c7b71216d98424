"""Metrics for Prometheus, behind the same authentication as the rest unless the operator opened them."""

from __future__ import annotations

import asyncio
from typing import Any

from kernelpool.api.base import ApiHandler, Collaborators
from kernelpool.gateway import Principal
from kernelpool.telemetry.metrics import CONTENT_TYPE, Metrics


class MetricsHandler(ApiHandler):
    is_probe = True

    def initialize(self, collaborators: Collaborators, metrics: Metrics | None = None, public: bool = False) -> None:
        super().initialize(collaborators)
        assert metrics is not None  # `routes` gives it
        self._metrics = metrics
        self._public = public

    async def authenticate(self) -> Principal:
        return Principal("anonymous") if self._public else await super().authenticate()

    async def get(self) -> None:
        await self.serve(self._get())

    async def _get(self) -> None:
        pools = await self.gateway.survey()
        text = await asyncio.to_thread(self._metrics.render, pools)
        self.set_header("Content-Type", CONTENT_TYPE)
        await self.finish(text)


def routes(collaborators: Collaborators, metrics: Metrics, *, public: bool) -> list[Any]:
    return [("/metrics", MetricsHandler, {"collaborators": collaborators, "metrics": metrics, "public": public})]
