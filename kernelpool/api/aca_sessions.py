"""Sessions and metadata over ACA's data plane. Built-in pools and custom containers name some things differently."""

from __future__ import annotations

from typing import Any, ClassVar

from kernelpool.api import resources
from kernelpool.api.aca_handler import AcaHandler
from kernelpool.auth.principal import Role
from kernelpool.gateway import SessionInfo

PAGE = 300


class SessionHandler(AcaHandler):
    roles: ClassVar = {"GET": Role.VIEWER}

    async def get(self, pool: str) -> None:
        await self.serve(self._get())

    async def delete(self, pool: str) -> None:
        await self.serve(self._delete())

    async def _get(self) -> None:
        async with self.gateway.find(self.principal, self.pool.name, self.identifier) as session:
            self.set_header("x-ms-session-etag", session.info.etag)
            self.describe_session(session)
            self.answer(resources.session(session.info))

    async def _delete(self) -> None:
        await self.gateway.stop_session(self.principal, self.pool.name, self.identifier)
        self.answer_nothing()


class ListHandler(AcaHandler):
    roles: ClassVar = {"GET": Role.VIEWER}

    async def get(self, pool: str) -> None:
        await self.serve(self._get())

    async def _get(self) -> None:
        sessions, link = await page_of_sessions(self)
        self.answer({"sessions": sessions, **link})


class ManagementListHandler(AcaHandler):
    roles: ClassVar = {"POST": Role.VIEWER}

    async def post(self, pool: str) -> None:
        await self.serve(self._post())

    async def _post(self) -> None:
        sessions, link = await page_of_sessions(self)
        self.answer({"value": sessions, "count": len(sessions), **link})


class ManagementGetHandler(AcaHandler):
    roles: ClassVar = {"POST": Role.VIEWER}

    async def post(self, pool: str) -> None:
        await self.serve(self._post())

    async def _post(self) -> None:
        async with self.gateway.find(self.principal, self.pool.name, self.identifier) as session:
            self.answer(resources.session(session.info))


class ManagementStopHandler(AcaHandler):
    async def post(self, pool: str) -> None:
        await self.serve(self._post())

    async def _post(self) -> None:
        await self.gateway.stop_session(self.principal, self.pool.name, self.identifier)
        self.answer_text(f"Session {self.identifier} in session pool {self.pool.name} stopped.")


class MetadataHandler(AcaHandler):
    roles: ClassVar = {"GET": Role.VIEWER}

    async def get(self, pool: str) -> None:
        await self.serve(self._get())

    async def _get(self) -> None:
        self.answer(resources.metadata(await self.gateway.metadata(self.principal, self.pool.name)))


async def page_of_sessions(handler: AcaHandler) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One page from `skip` on, and the link to the next one when there is one."""
    skip = handler.query.number("skip", 0)
    version = handler.query.api_version
    every: list[SessionInfo] = list(await handler.gateway.list_sessions(handler.principal, handler.pool.name))
    page = [resources.session(info) for info in every[skip : skip + PAGE]]
    if skip + PAGE >= len(every):
        return page, {}
    url = f"{handler.request.protocol}://{handler.request.host}{handler.request.path}"
    return page, {"nextLink": f"{url}?api-version={version}&skip={skip + PAGE}"}
