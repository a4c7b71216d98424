"""What all handlers of the Jupyter surface share: the pool that the path may name, bodies, errors in both shapes."""

from __future__ import annotations

from typing import Any

from kernelpool.api.base import ApiHandler
from kernelpool.api.json_text import parse_json
from kernelpool.errors import InvalidRequest
from kernelpool.gateway import PoolInfo


class JupyterHandler(ApiHandler):
    takes_json = False
    """Whatever the body is called: clients send `text/plain`, `application/octet-stream`, or nothing at all."""

    @property
    def scope(self) -> str | None:
        """The pool that the path names; None at the root, where all are that the caller may enter."""
        return self.path_kwargs.get("pool")

    async def accept(self) -> None:
        if self.scope is not None:
            self.gateway.pool(self.principal, self.scope)

    def envelope(self, code: str, message: str, remedy: str | None) -> dict[str, Any]:
        """Jupyter's clients show `message`, or `reason`."""
        return {**super().envelope(code, message, remedy), "message": message, "reason": code}

    @property
    def specs(self) -> list[PoolInfo]:
        """The pools that are kernelspecs here."""
        pools = [pool for pool in self.gateway.pools(self.principal) if pool.settings.container is None]
        return [pool for pool in pools if self.scope in (None, pool.name)]

    def fields(self) -> dict[str, Any]:
        """Of the body; none when there is no body."""
        value = parse_json(bytes(self.body)) if self.body.strip() else {}
        if not isinstance(value, dict):
            raise InvalidRequest("The body must be a JSON object.")
        return value


def text_of(fields: dict[str, Any], name: str, limit: int, default: str = "") -> str:
    """Raises `InvalidRequest`, naming the field. Null is as good as nothing."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, str) or len(value) > limit:
        raise InvalidRequest(f"{name}: must be a text of at most {limit} characters")
    return value


def object_in(fields: dict[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name}: must be a JSON object")
    return value
