"""A pool's MCP server in Azure's words: `mcpServerSettings`, and the key that clients of the pool send.

    POST {resource}/fetchMcpServerCredentials    the key, the same until it is renewed
    POST {resource}/rotateMcpServerCredentials   another one; from then on the old one is none
    POST {resource}/regenerateCredentials        the same by the name that the documentation has

A key lets whoever has it run code in the pool, in the tenant of whoever fetched it. So fetching needs both roles: that
of who manages the pool and that of who may do what the key may.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kernelpool.api.base import ApiHandler, Collaborators
from kernelpool.auth.principal import Role
from kernelpool.errors import InvalidRequest, McpServerNotEnabled
from kernelpool.pool.settings import PoolSettings
from kernelpool.telemetry.audit import Action, Entry

_PATH = "properties.mcpServerSettings"
_NAMES = {"ismcpserverenabled": "enabled", "ismcpserverapikeydisabled": "api_key"}
_READ_ONLY = "mcpserverendpoint"


class FetchHandler(ApiHandler):
    roles: ClassVar = {"POST": Role.ADMIN}

    async def accept(self) -> None:
        self.query.api_version  # noqa: B018 - raises when it is missing or malformed
        self.principal.require(Role.EXECUTOR)
        self.pool = self.gateway.pool(self.principal, self.path_kwargs["pool"])
        settings = self.pool.settings.mcp
        if self.pool.settings.container is not None or not settings.enabled:
            raise McpServerNotEnabled(f"Pool '{self.pool.name}' has no MCP server.")
        if not settings.api_key:
            raise McpServerNotEnabled(f"The MCP server of pool '{self.pool.name}' takes no keys of its own.")

    async def post(self, subscription: str, group: str, pool: str) -> None:
        self._answer(Action.POOL_KEY_FETCH)

    def _answer(self, action: Action) -> None:
        keys, who = self.collaborators.authenticator.pool_keys, self.principal
        self.answer({"apiKey": keys.key(self.pool.name, who.tenant)})
        self.collaborators.telemetry.audit.record(Entry(action, "succeeded", who.tenant, who.name, self.pool.name))


class RotateHandler(FetchHandler):
    async def post(self, subscription: str, group: str, pool: str) -> None:
        await self.serve(self._post())

    async def _post(self) -> None:
        await self.collaborators.authenticator.pool_keys.renew(self.pool.name)
        self._answer(Action.POOL_KEY_RENEW)


class RegenerateHandler(RotateHandler):
    """The other name."""


def read_mcp(value: Any) -> dict[str, Any]:
    """Settings of ours. Azure reads its names in any case, and writes them in two ways itself."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"{_PATH}: must be a JSON object")
    said: dict[str, bool] = {}
    for name, item in value.items():
        if name.lower() == _READ_ONLY or item is None:
            continue
        ours = _NAMES.get(name.lower())
        if ours is None:
            raise InvalidRequest(f"{_PATH}.{name[:100]}: no such property")
        if not isinstance(item, bool):
            raise InvalidRequest(f"{_PATH}.{name[:100]}: must be true or false")
        said[ours] = item if ours == "enabled" else not item
    return {"mcp": said}


def check_kind(values: Mapping[str, Any], *, is_custom: bool) -> None:
    """Raises `InvalidRequest` for a container that is to have one."""
    if is_custom and values.get("mcp", {}).get("enabled"):
        raise InvalidRequest(
            f"{_PATH}.isMcpServerEnabled: a CustomContainer has no MCP server but its own, which /mcp is forwarded to"
        )


def shown_mcp(settings: PoolSettings, endpoint: str) -> dict[str, Any] | None:
    if settings.container is not None:
        return None
    return {
        "isMcpServerEnabled": settings.mcp.enabled,
        "isMcpServerApiKeyDisabled": not settings.mcp.api_key,
        **({"mcpServerEndpoint": f"{endpoint}/mcp"} if settings.mcp.enabled else {}),
    }


def routes(collaborators: Collaborators, pool: str) -> list[Any]:
    """`pool`: the pattern of the resource."""
    shared = {"collaborators": collaborators}
    return [
        (pool + "/fetchMcpServerCredentials", FetchHandler, shared),
        (pool + "/rotateMcpServerCredentials", RotateHandler, shared),
        (pool + "/regenerateCredentials", RegenerateHandler, shared),
    ]
