"""Pools in our own words: their numbers now, their settings, and changing them while the gateway runs.

GET    /pools
GET    /pools/{pool}
PUT    /pools/{pool}   the settings of `[pools.<name>]` as JSON; what is not named has its default; 201 when it is new
PATCH  /pools/{pool}   a JSON merge patch (RFC 7396) of those settings
DELETE /pools/{pool}   with all its sessions
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kernelpool.api.aca_handler import POOL_PATH
from kernelpool.api.base import ApiHandler, Collaborators
from kernelpool.api.json_text import parse_json
from kernelpool.api.openapi.operation import (
    POOL,
    Json,
    Operation,
    Surface,
    answer,
    array_of,
    at_both_bases,
    json_answer,
    object_of,
    ref,
    text,
)
from kernelpool.auth.principal import Role
from kernelpool.errors import InvalidRequest
from kernelpool.gateway import PoolInfo
from kernelpool.management import validated
from kernelpool.pool.settings import PoolSettings

SIZES = ("memory", "workspace", "tmp")


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
        info, is_new = await self.collaborators.management.put(self.principal, settings)
        self.answer(describe(info), 201 if is_new else 200)

    async def _patch(self, name: str) -> None:
        changes = settings_in(bytes(self.body), name)
        self.answer(describe(await self.collaborators.management.patch(self.principal, name, changes)))

    async def _delete(self, name: str) -> None:
        await self.collaborators.management.delete(self.principal, name)
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


_COUNT = {"type": "integer", "minimum": 0}
_SECONDS = {"type": "number"}
_SIZE = {"type": ["integer", "string"], "description": "Bytes, or text such as `512Mi`."}
_EXAMPLE = {"ready": 2, "cooldown": 300}


def _settings_schema(*, patch: bool = False) -> Json:
    """Of `PoolSettings`, without the name; with sizes as text where they are sent; with null for the default in a
    patch."""
    schema = PoolSettings.model_json_schema()
    properties = _inlined(schema["properties"], schema.pop("$defs"))
    limits = properties["limits"]
    del properties["name"]
    for holder, names in ((properties, ("max_upload", "output_bytes", "history_bytes")), (limits["properties"], SIZES)):
        for name in names:
            holder[name] = {**holder[name], **_SIZE}
    properties["egress"]["anyOf"].append({"type": "string", "description": "Domains, with commas between them."})
    if patch:
        limits["properties"] = _or_null(limits["properties"])
        properties = _or_null(properties)
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _inlined(value: Any, definitions: Json) -> Any:
    """Without references: they would point into another document."""
    if isinstance(value, dict):
        if "$ref" in value:
            named = definitions[value["$ref"].rpartition("/")[2]]
            return _inlined({**named, **{key: item for key, item in value.items() if key != "$ref"}}, definitions)
        return {key: _inlined(item, definitions) for key, item in value.items()}
    return [_inlined(item, definitions) for item in value] if isinstance(value, list) else value


def _or_null(properties: Mapping[str, Json]) -> Json:
    return {name: {"anyOf": [schema, {"type": "null"}]} for name, schema in properties.items()}


def _body(schema: str) -> Json:
    return {"required": True, "content": {"application/json": {"schema": ref(schema), "example": _EXAMPLE}}}


SURFACE = Surface(
    "Pools",
    "Their numbers now, and their settings. Without `api-version`.",
    at_both_bases(
        {
            "GET /pools": Operation(
                "listPools", "All pools", {200: json_answer("All.", object_of({"value": array_of(ref("Pool"))}))}
            ),
            f"GET {POOL}": Operation("getPool", "A pool", {200: json_answer("The pool.", ref("Pool"))}),
            f"PUT {POOL}": Operation(
                "putPool",
                "Make a pool, or give it exactly these settings",
                {200: json_answer("Changed.", ref("Pool")), 201: json_answer("Made.", ref("Pool"))},
                body=_body("PoolSettings"),
                errors=(409,),
            ),
            f"PATCH {POOL}": Operation(
                "patchPool",
                "Change some settings of a pool",
                {200: json_answer("Changed.", ref("Pool"))},
                description="A JSON merge patch (RFC 7396): null is the default.",
                body=_body("PoolChanges"),
                errors=(409,),
            ),
            f"DELETE {POOL}": Operation(
                "deletePool", "Delete a pool with all its sessions", {204: answer("It is gone.")}, errors=(409,)
            ),
        }
    ),
    {
        "Pool": object_of(
            {
                "name": text(),
                "runtime": text("What runs in its sandboxes."),
                "language": text(),
                "ready": _COUNT | {"description": "Sandboxes that wait for the next sessions."},
                "outdated": _COUNT | {"description": "Of those, the ones made from settings that it has no more."},
                "starting": _COUNT,
                "waiting": _COUNT | {"description": "Callers who wait for a sandbox."},
                "sessions": _COUNT,
                "maxSessions": _COUNT,
                "defaultTimeoutInSeconds": _SECONDS,
                "maxTimeoutInSeconds": _SECONDS,
                "maxUploadInBytes": _COUNT,
                "settings": ref("PoolSettings"),
            }
        ),
        "PoolSettings": _settings_schema(),
        "PoolChanges": _settings_schema(patch=True),
    },
)
