"""Endpoint: the services of the gateway's pools, one a language, made when the first client comes.

The SDK is an extra, and importing it takes a second and 20 MiB: gateways whose pools nobody reaches by MCP pay neither.
"""

from __future__ import annotations

import asyncio
import importlib
from collections import OrderedDict
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kernelpool.errors import McpNotInstalled
from kernelpool.tasks import Tasks

if TYPE_CHECKING:
    from kernelpool.api.mcp.service import Service

MAX_ENDED = 10_000


class Endpoint:
    """An async context manager; does nothing until it is asked."""

    def __init__(self) -> None:
        self._tasks = Tasks("mcp")
        self._lock = asyncio.Lock()
        # The mutable state: services by language, and MCP sessions that their clients have ended.
        self._services: dict[str, Service] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Endpoint [{', '.join(self._services) or 'not asked yet'}]>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.aclose()

    async def service(self, language: str) -> Service:
        """Raises `McpNotInstalled`."""
        if (found := self._services.get(language)) is not None:
            return found
        async with self._lock:
            if language not in self._services:
                self._services[language] = await self._open(language)
        return self._services[language]

    def end(self, session: str) -> None:
        """From now on this MCP session is unknown."""
        self._ended[session] = None
        while len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    def has_ended(self, session: str) -> bool:
        return session in self._ended

    async def _open(self, language: str) -> Service:
        service = await asyncio.to_thread(_make, language)
        ready = asyncio.Event()
        self._tasks.spawn(service.run(ready), language, apart=True)
        await ready.wait()
        return service


def _make(language: str) -> Service:
    """Blocks. Raises `McpNotInstalled`."""
    try:
        module = importlib.import_module("kernelpool.api.mcp.service")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("kernelpool"):
            raise
        raise McpNotInstalled(f"this gateway has no MCP server: the package '{error.name}' is not installed") from None
    service: Service = module.Service(language)
    return service
