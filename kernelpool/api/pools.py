"""Pools in our own words: their numbers now, their settings, and changing them while the gateway runs.

GET    /pools
GET    /pools/{pool}
PUT    /pools/{pool}   the settings of `[pools.<name>]` as JSON; what is not named has its default; 201 when it is new
PATCH  /pools/{pool}   a JSON merge patch (RFC 7396) of those settings
DELETE /pools/{pool}   with all its sessions
"""

from __future__ import annotations

from typing import Any, ClassVar

from kernelpool.api.aca_handler import POOL_PATH
from kernelpool.api.base import ApiHandler, Collaborators
from kernelpool.api.json_text import parse_json
from kernelpool.auth.principal import Role
from kernelpool.errors import InvalidRequest
from kernelpool.gateway import PoolInfo
from kernelpool.management import validated


class PoolsHandler(ApiHandler):
    roles: ClassVar = {"GET": Role.VIEWER}

    async def get(self) -> None:
        self.answer({"value": [describe(pool) for pool in self.gateway.pools(self.principal)]})


class PoolHandler(ApiHandler):
    roles: ClassVar = {"GET": Role.VIEWER, "PUT": Role.ADMIN, "PATCH": Role.ADMIN, "DELETE": Role.ADMIN}

    async def get(self, pool: str) -> None:
        self.answer(describe(self.gateway.pool(self.principal, pool)))

    async def put(self, pool: str) -> None:
        await self.serve(self._put(pool))

    async def patch(self, pool: str) -> None:
        await self.serve(self._patch(pool))

    async def delete(self, pool: str) -> None:
        await self.serve(self._delete(pool))

    async def _put(self, name: str) -> None:
        settings = validated({**settings_in(bytes(self.body), name), "name": name})
        info, is_new = await self.collaborators.management.put(settings)
        self.answer(describe(info), 201 if is_new else 200)

    async def _patch(self, name: str) -> None:
        changes = settings_in(bytes(self.body), name)
        self.answer(describe(await self.collaborators.management.patch(name, changes)))

    async def _delete(self, name: str) -> None:
        await self.collaborators.management.delete(name)
        self.answer_nothing()


def settings_in(body: bytes, name: str) -> dict[str, Any]:
    """Raises `InvalidRequest`."""
    values = parse_json(body)
    if not isinstance(values, dict):
        raise InvalidRequest("The body must be a JSON object with the pool's settings.")
    if values.get("name", name) != name:
        raise InvalidRequest("name: must be the name in the URL, or left out; a pool cannot be renamed")
    return values


def describe(pool: PoolInfo) -> dict[str, Any]:
    settings = pool.settings
    return {
        "name": pool.name,
        "runtime": pool.runtime,
        "language": pool.language,
        "ready": pool.ready,
        "outdated": pool.outdated,
        "starting": pool.starting,
        "waiting": pool.waiting,
        "sessions": pool.sessions,
        "maxSessions": settings.max_sessions,
        "defaultTimeoutInSeconds": settings.default_timeout,
        "maxTimeoutInSeconds": settings.max_timeout,
        "maxUploadInBytes": settings.max_upload,
        "settings": settings.model_dump(mode="json", exclude={"name"}),
    }


def routes(collaborators: Collaborators) -> list[Any]:
    shared = {"collaborators": collaborators}
    return [("(?i)/pools", PoolsHandler, shared), (POOL_PATH, PoolHandler, shared)]
