"""Pools as an operator sees them: their numbers now, and their limits. Changing them is for a later version."""

from __future__ import annotations

from typing import Any

from kernelpool.api.aca_handler import POOL_PATH
from kernelpool.api.base import ApiHandler, Collaborators
from kernelpool.gateway import PoolInfo


class PoolsHandler(ApiHandler):
    async def get(self) -> None:
        self.answer({"value": [describe(pool) for pool in self.gateway.pools(self.principal)]})


class PoolHandler(ApiHandler):
    async def get(self, pool: str) -> None:
        self.answer(describe(self.gateway.pool(self.principal, pool)))


def describe(pool: PoolInfo) -> dict[str, Any]:
    return {
        "name": pool.name,
        "runtime": pool.runtime,
        "language": pool.language,
        "ready": pool.ready,
        "starting": pool.starting,
        "sessions": pool.sessions,
        "maxSessions": pool.max_sessions,
        "defaultTimeoutInSeconds": pool.default_timeout,
        "maxTimeoutInSeconds": pool.max_timeout,
        "maxUploadInBytes": pool.max_upload,
    }


def routes(collaborators: Collaborators) -> list[Any]:
    shared = {"collaborators": collaborators}
    return [("(?i)/pools", PoolsHandler, shared), (POOL_PATH, PoolHandler, shared)]
