"""Pools in Azure's words: the `Microsoft.App/sessionPools` resource of Resource Manager.

What has a counterpart here works: container type, template, numbers, lifecycle, egress, tags. What has none is refused
by its name, never ignored: a template that looked accepted would be believed. Changes are done when they are answered,
so `provisioningState` is always Succeeded. The shape is that of api-version 2025-10-02-preview, and the older one of
`dynamicPoolConfiguration` is read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kernelpool.api import arm_mcp
from kernelpool.api.arm_containers import (
    read_lifecycle,
    read_secrets,
    read_template,
    replacing,
    shown_lifecycle,
    shown_template,
    without_nulls,
)
from kernelpool.api.base import ApiHandler, Collaborators
from kernelpool.api.json_text import parse_json
from kernelpool.api.openapi.operation import Operation, Surface, answer, array_of, json_answer, object_of, ref, text
from kernelpool.api.openapi.shared import POOL_PARAMETERS
from kernelpool.auth.principal import Role
from kernelpool.errors import InvalidRequest
from kernelpool.gateway import PoolInfo
from kernelpool.management import validated
from kernelpool.pool.container import CONTAINER
from kernelpool.pool.settings import PoolSettings

_SUBSCRIPTION = r"(?i)/subscriptions/(?P<subscription>[^/]+)"
_GROUP = _SUBSCRIPTION + r"/resourceGroups/(?P<group>[^/]+)"
_POOLS = r"/providers/Microsoft\.App/sessionPools"

_RUNTIMES = {"pythonlts": "python", "nodelts": "node", "shell": "shell", "customcontainer": CONTAINER}
_CONTAINER_TYPES = {"python": "PythonLTS", "node": "NodeLTS", "shell": "Shell", CONTAINER: "CustomContainer"}
_TYPES = ", ".join(_CONTAINER_TYPES.values())
_EGRESS = {"egressenabled": True, "egressdisabled": False}
_READ_ONLY = {"poolManagementEndpoint", "provisioningState", "nodeCount", "templateUpdateStatus"}
_ENVELOPE = {"id", "name", "type", "etag", "systemData", "location", "tags", "properties", "identity"}
_NOT_HERE = {
    "environmentId": "environments of custom containers",
    "managedIdentitySettings": "managed identities",
}


class ArmListHandler(ApiHandler):
    roles: ClassVar = {"GET": Role.VIEWER}

    async def get(self, subscription: str, group: str = "local") -> None:
        self.query.api_version  # noqa: B018 - raises when it is missing or malformed
        base = f"/subscriptions/{subscription}/resourceGroups/{group}"
        self.answer({"value": [resource(pool, base, self.origin) for pool in self.gateway.pools(self.principal)]})


class ArmPoolHandler(ApiHandler):
    roles: ClassVar = {"GET": Role.VIEWER, "PUT": Role.ADMIN, "PATCH": Role.ADMIN, "DELETE": Role.ADMIN}

    async def accept(self) -> None:
        self.query.api_version  # noqa: B018 - raises when it is missing or malformed

    async def get(self, subscription: str, group: str, pool: str) -> None:
        self._answer(self.gateway.pool(self.principal, pool))

    async def put(self, subscription: str, group: str, pool: str) -> None:
        await self.serve(self._put(pool))

    async def patch(self, subscription: str, group: str, pool: str) -> None:
        await self.serve(self._patch(pool))

    async def delete(self, subscription: str, group: str, pool: str) -> None:
        await self.serve(self._delete(pool))

    async def _put(self, name: str) -> None:
        values = settings_of(_object(parse_json(bytes(self.body)), "body"))
        if "runtime" not in values:
            raise InvalidRequest(f"properties.containerType: is missing; say one of {_TYPES}")
        is_custom = values["runtime"] == CONTAINER
        if is_custom and not values.get("container"):
            raise InvalidRequest("properties.containerType: a CustomContainer needs properties.customContainerTemplate")
        values = without_nulls(_for_kind(values, is_custom=is_custom))
        info, is_new = await self.collaborators.management.put(self.principal, validated({**values, "name": name}))
        self._answer(info, 201 if is_new else 200)

    async def _patch(self, name: str) -> None:
        changes = settings_of(_object(parse_json(bytes(self.body)), "body"))
        pool = self.gateway.pool(self.principal, name).settings
        changes = replacing(_for_kind(changes, is_custom=pool.container is not None), pool)
        if changes.get("egress") is True and pool.egress:
            # "EgressEnabled" without a list, from a client that knows of none, takes no list away.
            del changes["egress"]
        self._answer(await self.collaborators.management.patch(self.principal, name, changes))

    async def _delete(self, name: str) -> None:
        await self.collaborators.management.delete(self.principal, name)
        self.answer_nothing()

    def _answer(self, pool: PoolInfo, status: int = 200) -> None:
        base = "/subscriptions/{subscription}/resourceGroups/{group}".format(**self.path_kwargs)
        self.answer(resource(pool, base, self.origin), status)


def resource(pool: PoolInfo, base: str, origin: str) -> dict[str, Any]:
    """`base`: of the group, as the caller wrote it."""
    settings = pool.settings
    endpoint = f"{origin}{base}/sessionPools/{pool.name}"
    return {
        "id": f"{base}/providers/Microsoft.App/sessionPools/{pool.name}",
        "name": pool.name,
        "type": "Microsoft.App/sessionPools",
        "location": settings.location,
        "tags": settings.tags,
        "properties": {
            "containerType": _CONTAINER_TYPES.get(pool.runtime, pool.runtime),
            "poolManagementType": "Dynamic",
            "nodeCount": 1,
            "scaleConfiguration": {
                "maxConcurrentSessions": settings.max_sessions,
                "readySessionInstances": settings.ready,
            },
            "dynamicPoolConfiguration": {"lifecycleConfiguration": shown_lifecycle(settings)},
            **_custom_of(settings),
            "sessionNetworkConfiguration": _network_of(settings.egress),
            "mcpServerSettings": arm_mcp.shown_mcp(settings, endpoint),
            "poolManagementEndpoint": endpoint,
            "provisioningState": "Succeeded",
        },
    }


def _custom_of(settings: PoolSettings) -> dict[str, Any]:
    if (container := settings.container) is None:
        return {}
    return {
        "customContainerTemplate": shown_template(container, settings.limits, settings.name),
        "secrets": [{"name": name} for name in container.secrets],
    }


def _for_kind(values: dict[str, Any], *, is_custom: bool) -> dict[str, Any]:
    """What a pool of kernels has of a container is that its lifecycle is not the container's."""
    arm_mcp.check_kind(values, is_custom=is_custom)
    if is_custom or "container" not in values:
        return values
    if values["container"] != {"lifecycle": "timed"}:
        raise InvalidRequest(
            "properties.containerType: only a CustomContainer has properties.customContainerTemplate, "
            "properties.secrets, and another lifecycle than Timed"
        )
    return {name: value for name, value in values.items() if name != "container"}


def _network_of(egress: bool | list[str]) -> dict[str, Any]:
    """Azure has no lists of domains: `allowedDomains` is a property of ours, there where it says what is enabled."""
    network: dict[str, Any] = {"status": "EgressEnabled" if egress else "EgressDisabled"}
    return {**network, "allowedDomains": egress} if isinstance(egress, list) else network


def settings_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """A resource, or a part of one, as settings of ours. Raises `InvalidRequest`, naming what has no counterpart."""
    _refuse_unknown(body, _ENVELOPE, "")
    identity = _object(body.get("identity") or {}, "identity").get("type", "None")
    if identity != "None":
        raise InvalidRequest(f"identity.type: managed identities do not exist here; say None, not {identity!r:.40}")
    values = {name: body[name] for name in ("location", "tags") if name in body}
    properties = _object(body.get("properties") or {}, "properties")
    for name, what in _NOT_HERE.items():
        if properties.get(name):
            raise InvalidRequest(f"properties.{name}: {what} do not exist here")
    known = {
        "containerType": _container_type,
        "poolManagementType": _management_type,
        "scaleConfiguration": _scale,
        "dynamicPoolConfiguration": _lifecycle,
        "customContainerTemplate": read_template,
        "secrets": read_secrets,
        "sessionNetworkConfiguration": _network,
        "mcpServerSettings": arm_mcp.read_mcp,
    }
    _refuse_unknown(properties, {*known, *_NOT_HERE, *_READ_ONLY}, "properties.")
    for name, read in known.items():
        if properties.get(name) is not None:
            said = read(properties[name])
            if "container" in said:  # several properties of theirs are one setting of ours
                said["container"] = {**values.get("container", {}), **said["container"]}
            values |= said
    return values


def _container_type(value: Any) -> dict[str, Any]:
    runtime = _RUNTIMES.get(str(value).lower())
    if runtime is None:
        raise InvalidRequest(f"properties.containerType: say one of {_TYPES}, not {str(value)[:40]!r}")
    # The backend that can; Azure has no word for it.
    return {"runtime": runtime, **({"backend": "docker"} if runtime == CONTAINER else {})}


def _management_type(value: Any) -> dict[str, Any]:
    if str(value).lower() != "dynamic":
        raise InvalidRequest("properties.poolManagementType: only Dynamic exists")
    return {}


def _scale(value: Any) -> dict[str, Any]:
    names = {"maxConcurrentSessions": "max_sessions", "readySessionInstances": "ready"}
    return _renamed(value, names, "properties.scaleConfiguration")


def _lifecycle(value: Any) -> dict[str, Any]:
    path = "properties.dynamicPoolConfiguration"
    outer = _object(value, path)
    _refuse_unknown(
        outer,
        {"lifecycleConfiguration", "executionType", "cooldownPeriodInSeconds", "coolDownPeriodInSeconds"},
        path + ".",
    )
    inner = {
        **{name: item for name, item in outer.items() if name != "lifecycleConfiguration"},
        **_object(outer.get("lifecycleConfiguration") or {}, path + ".lifecycleConfiguration"),
    }
    kind = inner.pop("lifecycleType", inner.pop("executionType", None))
    lifecycle = read_lifecycle(str(kind), path) if kind else {}
    inner = {name: item for name, item in inner.items() if item is not None}
    names = {
        "cooldownPeriodInSeconds": "cooldown",
        "coolDownPeriodInSeconds": "cooldown",
        "maxAlivePeriodInSeconds": "max_alive",
    }
    return {**_renamed(inner, names, path), **lifecycle}


def _network(value: Any) -> dict[str, Any]:
    path = "properties.sessionNetworkConfiguration"
    network = _object(value, path)
    _refuse_unknown(network, {"status", "allowedDomains"}, path + ".")
    egress = _EGRESS.get(str(network.get("status")).lower())
    if egress is None:
        raise InvalidRequest(f"{path}.status: say EgressEnabled or EgressDisabled")
    domains = network.get("allowedDomains")
    if not egress and domains:
        raise InvalidRequest(f"{path}.allowedDomains: contradicts the status EgressDisabled")
    return {"egress": egress if domains is None else domains}


def _renamed(value: Any, names: Mapping[str, str], path: str) -> dict[str, Any]:
    values = _object(value, path)
    _refuse_unknown(values, names, path + ".")
    return {names[name]: item for name, item in values.items()}


def _object(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path}: must be a JSON object")
    return value


def _refuse_unknown(values: Mapping[str, Any], known: Any, path: str) -> None:
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InvalidRequest(f"{path}{unknown[0][:100]}: no such property")


def routes(collaborators: Collaborators) -> list[Any]:
    shared = {"collaborators": collaborators}
    return [
        (_SUBSCRIPTION + _POOLS, ArmListHandler, shared),
        (_GROUP + _POOLS, ArmListHandler, shared),
        (_GROUP + _POOLS + "/(?P<pool>[^/]+)", ArmPoolHandler, shared),
        *arm_mcp.routes(collaborators, _GROUP + _POOLS + "/(?P<pool>[^/]+)"),
    ]


_RESOURCE = ref("SessionPoolResource")
_MCP = object_of(
    {
        "isMcpServerEnabled": {"type": "boolean"},
        "isMcpServerApiKeyDisabled": {"type": "boolean"},
        "mcpServerEndpoint": text(format="uri"),
    },
    optional=("mcpServerEndpoint",),
    description="null for a CustomContainer.",
)
_KEY = {200: json_answer("The key, for the header `x-ms-apikey`.", object_of({"apiKey": text()}))}
_ANY = {"type": "object"}
_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": ref("SessionPoolChanges"),
            "example": {"location": "local", "properties": {"containerType": "PythonLTS"}},
        }
    },
}
_POOL = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.App/sessionPools"
_LISTED = {200: json_answer("All.", object_of({"value": array_of(_RESOURCE)}))}
_MANY = (409,)

SURFACE = Surface(
    "Pools in Azure's words",
    "The `Microsoft.App/sessionPools` resource. What has no counterpart here is refused by its name.",
    {
        "GET /subscriptions/{subscription}/providers/Microsoft.App/sessionPools": Operation(
            "listSessionPoolsOfSubscription", "All pools", _LISTED, parameters=POOL_PARAMETERS
        ),
        f"GET {_POOL}": Operation("listSessionPools", "All pools", _LISTED, parameters=POOL_PARAMETERS),
        f"GET {_POOL}/{{pool}}": Operation(
            "getSessionPool", "A pool", {200: json_answer("The pool.", _RESOURCE)}, parameters=POOL_PARAMETERS
        ),
        f"PUT {_POOL}/{{pool}}": Operation(
            "putSessionPool",
            "Make or change a pool",
            {200: json_answer("Changed.", _RESOURCE), 201: json_answer("Made.", _RESOURCE)},
            parameters=POOL_PARAMETERS,
            body=_BODY,
            errors=_MANY,
        ),
        f"PATCH {_POOL}/{{pool}}": Operation(
            "patchSessionPool",
            "Change a pool",
            {200: json_answer("Changed.", _RESOURCE)},
            parameters=POOL_PARAMETERS,
            body=_BODY,
            errors=_MANY,
        ),
        f"DELETE {_POOL}/{{pool}}": Operation(
            "deleteSessionPool",
            "Delete a pool with all its sessions",
            {204: answer("It is gone.")},
            parameters=POOL_PARAMETERS,
            errors=(409,),
        ),
        f"POST {_POOL}/{{pool}}/fetchMcpServerCredentials": Operation(
            "fetchMcpServerCredentials",
            "The key of the pool's MCP server",
            _KEY,
            description="For whoever is both admin and executor. The path is read in any case.",
            parameters=POOL_PARAMETERS,
        ),
        f"POST {_POOL}/{{pool}}/rotateMcpServerCredentials": Operation(
            "rotateMcpServerCredentials",
            "Another key for the pool's MCP server",
            _KEY,
            description="The old one is none from then on.",
            parameters=POOL_PARAMETERS,
        ),
        f"POST {_POOL}/{{pool}}/regenerateCredentials": Operation(
            "regenerateCredentials",
            "Another key for the pool's MCP server",
            _KEY,
            description="As rotateMcpServerCredentials, by the name that Azure's documentation has.",
            parameters=POOL_PARAMETERS,
        ),
    },
    {
        "SessionPoolResource": object_of(
            {
                "id": text(),
                "name": text(),
                "type": text(),
                "location": text(),
                "tags": {"type": "object", "additionalProperties": text()},
                "properties": object_of(
                    {
                        "containerType": text(),
                        "poolManagementType": text(),
                        "nodeCount": {"type": "integer"},
                        "scaleConfiguration": object_of(
                            {"maxConcurrentSessions": {"type": "integer"}, "readySessionInstances": {"type": "integer"}}
                        ),
                        "dynamicPoolConfiguration": object_of(
                            {
                                "lifecycleConfiguration": object_of(
                                    {
                                        "lifecycleType": text(),
                                        "cooldownPeriodInSeconds": {"type": "number"},
                                        "maxAlivePeriodInSeconds": {"type": "number"},
                                    },
                                    optional=("cooldownPeriodInSeconds", "maxAlivePeriodInSeconds"),
                                )
                            }
                        ),
                        "customContainerTemplate": _ANY | {"description": "Of a CustomContainer."},
                        "secrets": array_of(object_of({"name": text()})) | {"description": "Of a CustomContainer."},
                        "sessionNetworkConfiguration": object_of(
                            {
                                "status": text(),
                                "allowedDomains": array_of(text())
                                | {"description": "Of ours: with it, only these domains can be reached."},
                            },
                            optional=("allowedDomains",),
                        ),
                        "mcpServerSettings": {"oneOf": [_MCP, {"type": "null"}]},
                        "poolManagementEndpoint": text(format="uri"),
                        "provisioningState": text(),
                    },
                    optional=("customContainerTemplate", "secrets"),
                ),
            }
        ),
        "SessionPoolChanges": object_of(
            {"location": text(), "tags": _ANY, "properties": _ANY},
            optional=("location", "tags", "properties"),
            description="As `SessionPoolResource`, or a part of one.",
        ),
    },
)
