"""Holds answers to the OpenAPI document: strictly, so that a field or a status that it does not tell of is found."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import quote

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from kernelpool.api import openapi_document

URI = "urn:openapi"
METHODS = ("get", "head", "post", "put", "patch", "delete", "options")


class Contract:
    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        resource = DRAFT202012.create_resource(_closed(document))
        self._registry: Registry[Any] = Registry().with_resource(URI, resource)
        self._templates = [(_pattern(path), path) for path in sorted(document["paths"], key=_specificity)]
        self._validators: dict[tuple[str, ...], Draft202012Validator] = {}

    def operations(self) -> dict[str, dict[str, Any]]:
        """By `"METHOD /path"`."""
        return {
            f"{method.upper()} {path}": item[method]
            for path, item in self.document["paths"].items()
            for method in METHODS
            if method in item
        }

    def find(self, method: str, path: str) -> str | None:
        """The operation of a request, HEAD being that of GET where there is none; None for what is not described."""
        for pattern, template in self._templates:
            if pattern.fullmatch(path):
                item = self.document["paths"][template]
                methods = [method.lower(), *(["get"] if method == "HEAD" else [])]
                return next((f"{each.upper()} {template}" for each in methods if each in item), None)
        return None

    def faults(self, operation: str, status: int, headers: Mapping[str, str], body: bytes | None) -> list[str]:
        """What the document does not allow of an answer; a body of None was not looked at."""
        method, path = operation.split(" ")
        place = ["paths", path, method.lower(), "responses", str(status)]
        answer = self._at(place)
        if answer is None:
            place[-1] = "default"
            answer = self._at(place)
        if answer is None:
            return [f"{operation}: status {status} is not described"]
        if "$ref" in answer:
            place = answer["$ref"].removeprefix("#/").split("/")
            answer = self._at(place)
        faults = [f"{operation} {status}: no header {name}" for name in self._required(answer) if name not in headers]
        content = answer.get("content", {})
        kind = headers.get("Content-Type", "").partition(";")[0]
        if not content:
            return faults if not body else [*faults, f"{operation} {status}: a body that is not described"]
        described = next((each for each in (kind, "*/*") if each in content), None)
        if described is None:
            return [*faults, f"{operation} {status}: content type {kind!r} is not described"]
        if body and kind.endswith("json") and "schema" in content[described]:
            faults += self._validate([*place, "content", described, "schema"], body)
        return faults

    def schema_faults(self, name: str, value: Any) -> list[str]:
        return [str(error.message) for error in self._validator(["components", "schemas", name]).iter_errors(value)]

    def _validate(self, place: list[str], body: bytes) -> list[str]:
        errors = self._validator(place).iter_errors(json.loads(body))
        return [f"{'/'.join(place)}: {error.json_path}: {error.message[:300]}" for error in errors]

    def _validator(self, place: list[str]) -> Draft202012Validator:
        key = tuple(place)
        if key not in self._validators:
            pointer = "/".join(quote(part.replace("~", "~0").replace("/", "~1"), safe="~") for part in place)
            self._validators[key] = Draft202012Validator({"$ref": f"{URI}#/{pointer}"}, registry=self._registry)
        return self._validators[key]

    def _required(self, answer: dict[str, Any]) -> list[str]:
        headers = {name: self.resolved(value) for name, value in answer.get("headers", {}).items()}
        return [name for name, value in headers.items() if value.get("required")]

    def resolved(self, value: dict[str, Any]) -> dict[str, Any]:
        """Itself, or what it refers to."""
        return self._at(value["$ref"].removeprefix("#/").split("/")) if "$ref" in value else value

    def _at(self, place: list[str]) -> Any:
        value: Any = self.document
        for part in place:
            value = None if value is None else value.get(part)
        return value


@cache
def contract() -> Contract:
    """Of the code as it is."""
    return Contract(json.loads(json.dumps(openapi_document())))


def _closed(value: Any) -> Any:
    """A copy in which objects have no properties but those that are named."""
    if isinstance(value, list):
        return [_closed(item) for item in value]
    if not isinstance(value, dict):
        return value
    copy = {name: _closed(item) for name, item in value.items()}
    is_schema = value.get("type") == "object" and isinstance(value.get("properties"), dict)
    return {"additionalProperties": False, **copy} if is_schema else copy


def _pattern(path: str) -> re.Pattern[str]:
    parts = re.split(r"{(\w+)}", path)
    names = [f"(?P<{part}>{'.+' if part == 'name' else '[^/]+'})" for part in parts[1::2]]
    texts = [re.escape(part) for part in parts[::2]]
    return re.compile("".join(text + name for text, name in zip(texts, [*names, ""], strict=True)), re.IGNORECASE)


def _specificity(path: str) -> tuple[bool, int, int]:
    """As the routes are ordered: the later the name of a file comes, the more special, and most without one; what is
    forwarded comes last."""
    return path.endswith("{tail}"), -(path.find("{name}") % 10**6), -len(path)
