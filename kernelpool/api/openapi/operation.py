"""How a surface describes itself for the OpenAPI document: its operations, as few lines each as can be.

    SURFACE = Surface(
        "Pools", "Pools as an operator sees them.",
        operations={"GET /pools": Operation("listPools", "All pools", {200: json_answer("All of them.", LISTING)})},
    )

What every operation has is added by `document`: the security scheme, and the errors that anything may meet.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Json = dict[str, Any]

POOL = "/pools/{pool}"
ARM_POOL = "/subscriptions/{subscriptionId}/resourceGroups/{resourceGroup}/sessionPools/{pool}"
"""The other base path of a pool, as Azure's own URLs have it."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    id: str
    summary: str
    answers: Mapping[int, Json] | Mapping[int | str, Json]
    """Response Objects of the statuses below 400, and of errors that look otherwise here; `default` is any other."""
    description: str = ""
    parameters: Sequence[Json] = ()
    """Without those of the path, which are known by their names."""
    body: Json | None = None
    """A Request Body Object."""
    errors: Collection[int] = ()
    """Statuses from 400 on, beside those that everybody may meet."""
    fault: Json | None = None
    """A schema, where errors look otherwise than everywhere; but not 401 and 403."""
    is_open: bool = False
    """Needs no token."""


@dataclass(frozen=True, slots=True)
class Surface:
    """A group of operations by `"METHOD /path"`, and the schemas that they refer to by name."""

    tag: str
    description: str
    operations: Mapping[str, Operation]
    schemas: Mapping[str, Json] = field(default_factory=dict)


def at_both_bases(operations: Mapping[str, Operation]) -> dict[str, Operation]:
    """The operations of a pool, again at Azure's base path. Every id is unique."""
    twins = {
        name.replace(POOL, ARM_POOL, 1): replace(operation, id=f"{operation.id}ByArmPath")
        for name, operation in operations.items()
        if POOL in name
    }
    return {**operations, **twins}


# The small pieces that operations are made of.


def ref(name: str, kind: str = "schemas") -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def parameter(name: str, schema: Json, description: str = "", place: str = "query", **rest: Any) -> Json:
    return {"name": name, "in": place, "description": description, "schema": schema, **rest}


def header(description: str, schema: Json | None = None, *, always: bool = False) -> Json:
    return {
        "description": description,
        "schema": schema or {"type": "string"},
        **({"required": True} if always else {}),
    }


def answer(
    description: str,
    content: Mapping[str, Json] | None = None,
    headers: Mapping[str, Json] | None = None,
    links: Mapping[str, Json] | None = None,
) -> Json:
    parts = {"headers": headers, "content": content, "links": links}
    return {"description": description, **{name: dict(part) for name, part in parts.items() if part}}


def json_answer(description: str, schema: Json, headers: Mapping[str, Json] | None = None) -> Json:
    return answer(description, {"application/json": {"schema": schema}}, headers)


def link(operation: str, **parameters: str) -> Json:
    """To an operation about what this one made."""
    return {"operationId": operation, "parameters": parameters}


def object_of(properties: Mapping[str, Json], *, optional: Collection[str] = (), description: str = "") -> Json:
    """An object of which all properties are always there, but for those named."""
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        **({"description": description} if description else {}),
        "properties": dict(properties),
        **({"required": required} if required else {}),
    }


def array_of(items: Json) -> Json:
    return {"type": "array", "items": items}


def text(description: str = "", **rest: Any) -> Json:
    return {"type": "string", **({"description": description} if description else {}), **rest}
