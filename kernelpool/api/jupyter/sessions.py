"""Jupyter sessions: which document of a client has which kernel. They live with their kernel, over a restart too.

A path is a name that the client gave a file of its own. Nothing here opens it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import uuid4
from weakref import WeakValueDictionary

from kernelpool.api.base import Collaborators
from kernelpool.api.jupyter import models
from kernelpool.api.jupyter.handler import JupyterHandler, object_in, text_of
from kernelpool.api.jupyter.kernels import described, start_kernel
from kernelpool.auth.principal import Role
from kernelpool.errors import Conflict, InvalidRequest, JupyterSessionNotFound, KernelNotFound
from kernelpool.journal import MAX_JUPYTER_SESSIONS, JupyterSession
from kernelpool.kernel import Kernel

ID = r"(?P<session>[0-9A-Za-z_-]+)"
MAX_PATH, MAX_NAME, MAX_TYPE = 1024, 255, 64

Locks = WeakValueDictionary[tuple[str, str], asyncio.Lock]


@dataclass(frozen=True, slots=True)
class Opened:
    session: JupyterSession
    kernel: Kernel


class _Handler(JupyterHandler):
    roles: ClassVar = {"GET": Role.VIEWER}

    def initialize(self, collaborators: Collaborators, locks: Locks | None = None) -> None:
        super().initialize(collaborators)
        self._locks = Locks() if locks is None else locks

    @property
    def opened(self) -> Iterator[Opened]:
        for kernel in self.gateway.kernels(self.principal, self.scope):
            for session in kernel.jupyter_sessions:
                yield Opened(session, kernel)

    def lock(self, path: str) -> asyncio.Lock:
        """Two requests for one document get one kernel."""
        return self._locks.setdefault((self.principal.tenant, path), asyncio.Lock())

    async def wanted_kernel(self, fields: dict[str, Any], *, strict: bool) -> Kernel | None:
        """The one that a body names, started if it names a kernelspec; None when it names none. One that is not there
        any more is as good as none, unless that is `strict`. Raises `KernelNotFound`, `PoolNotFound`."""
        kernel = object_in(fields, "kernel")
        id, name = text_of(kernel, "id", 64), text_of(kernel, "name", 64)
        if id:
            try:
                return self.gateway.kernel(self.principal, id, self.scope)
            except KernelNotFound:
                if strict:
                    raise
        if name:
            return await start_kernel(self.gateway, self.principal, models.find_spec(self.specs, name))
        return None

    async def answer_session(self, opened: Opened, status: int = 200) -> None:
        [kernel] = await described([opened.kernel])
        self.answer(models.session(opened.session, kernel), status)

    async def end_kernel(self, kernel: Kernel) -> None:
        info = kernel.info
        await self.gateway.stop_session(self.principal, info.pool, info.identifier)


class SessionsHandler(_Handler):
    async def get(self, pool: str = "") -> None:
        await self.serve(self._get())

    async def post(self, pool: str = "") -> None:
        await self.serve(self._post())

    async def _get(self) -> None:
        opened = list(self.opened)
        kernels = {each.kernel.info.guid: each.kernel for each in opened}
        shown = {kernel["id"]: kernel for kernel in await described(list(kernels.values()))}
        self.answer([models.session(each.session, shown[each.kernel.info.guid]) for each in opened])

    async def _post(self) -> None:
        fields = _checked(self.fields())
        path = _path(fields)
        if not path:
            raise InvalidRequest("path: is missing")
        async with self.lock(path):
            opened = next((each for each in self.opened if each.session.path == path), None)
            if opened is None:
                opened = await self._open(fields, path)
        self.set_header("Location", f"{self.request.path}/{opened.session.id}")
        await self.answer_session(opened, 201)

    async def _open(self, fields: dict[str, Any], path: str) -> Opened:
        session = JupyterSession(
            id=str(uuid4()),
            path=path,
            name=text_of(fields, "name", MAX_NAME),
            type=text_of(fields, "type", MAX_TYPE, "notebook"),
        )
        # Clients open documents again with the kernel that they had, which may have ended since.
        kernel = await self.wanted_kernel(fields, strict=False)
        if kernel is None:
            kernel = await start_kernel(self.gateway, self.principal, models.default_spec(self.specs))
        await attach(kernel, session)
        return Opened(session, kernel)


class SessionHandler(_Handler):
    async def get(self, session: str, pool: str = "") -> None:
        await self.serve(self._get(session))

    async def patch(self, session: str, pool: str = "") -> None:
        await self.serve(self._patch(session))

    async def delete(self, session: str, pool: str = "") -> None:
        await self.serve(self._delete(session))

    async def _get(self, id: str) -> None:
        await self.answer_session(self._find(id))

    async def _patch(self, id: str) -> None:
        """Another kernel ends the one before, unless another document has it, too."""
        fields, before = _checked(self.fields()), self._find(id)
        old = before.session
        session = old.model_copy(
            update={
                "path": _path(fields) or old.path,
                "name": text_of(fields, "name", MAX_NAME, old.name),
                "type": text_of(fields, "type", MAX_TYPE) or old.type,
            }
        )
        kernel = await self.wanted_kernel(fields, strict=True) or before.kernel
        rest = without(before.kernel, id)
        await before.kernel.keep(rest)
        await attach(kernel, session)
        if kernel.info.guid != before.kernel.info.guid and not rest:
            await self.end_kernel(before.kernel)
        await self.answer_session(Opened(session, kernel))

    async def _delete(self, id: str) -> None:
        await self.end_kernel(self._find(id).kernel)
        self.answer_nothing()

    def _find(self, id: str) -> Opened:
        found = next((each for each in self.opened if each.session.id == id), None)
        if found is None:
            raise JupyterSessionNotFound(f"There is no session '{id[:40]}'.")
        return found


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    """What is wrong is named, also where it would not count. Raises `InvalidRequest`."""
    for name, limit in (("path", MAX_PATH), ("name", MAX_NAME), ("type", MAX_TYPE)):
        text_of(fields, name, limit)
    for name in ("id", "name"):
        text_of(object_in(fields, "kernel"), name, 64)
    return fields


def _path(fields: dict[str, Any]) -> str:
    """Older clients name it in `notebook`. Raises `InvalidRequest`."""
    return text_of(fields, "path", MAX_PATH) or text_of(object_in(fields, "notebook"), "path", MAX_PATH)


async def attach(kernel: Kernel, session: JupyterSession) -> None:
    """Raises `Conflict` when the kernel has as many documents as it may."""
    there = kernel.jupyter_sessions
    if len(there) >= MAX_JUPYTER_SESSIONS:
        raise Conflict(f"The kernel has {len(there)} sessions; {MAX_JUPYTER_SESSIONS} are allowed.")
    await kernel.keep((*there, session))


def without(kernel: Kernel, id: str) -> tuple[JupyterSession, ...]:
    return tuple(each for each in kernel.jupyter_sessions if each.id != id)
