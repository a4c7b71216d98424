"""Kernels: the caller's sessions, whatever surface made them. A new one takes a ready sandbox; DELETE ends its session.

A session made here is used over REST by the `identifier` in its model. To choose that, a client sets the environment
variable KERNEL_KERNELPOOL_IDENTIFIER, which Jupyter's own gateway clients pass on in the body's `env` as they do with
all that begin with KERNEL_; when there is such a session already, the kernel is that session's.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar
from uuid import uuid4

from kernelpool.api.jupyter import models
from kernelpool.api.jupyter.handler import JupyterHandler, object_in, text_of
from kernelpool.auth.principal import Role
from kernelpool.errors import AllocationTimeout, InvalidRequest
from kernelpool.gateway import Gateway, PoolInfo, Principal
from kernelpool.kernel import Kernel, states

IDENTIFIER = "KERNEL_KERNELPOOL_IDENTIFIER"
CREATE_SECONDS = 35.0
"""Clients wait for a new kernel for 40 seconds, whatever the pool's `allocation_timeout` is, and do not ask again."""
ID = r"(?P<kernel>[0-9A-Za-z_-]+)"


async def start_kernel(gateway: Gateway, principal: Principal, pool: PoolInfo, identifier: str = "") -> Kernel:
    """Raises as `Gateway.use`, `AllocationTimeout` soon enough to be read."""
    try:
        async with (
            asyncio.timeout(CREATE_SECONDS),
            gateway.use(principal, pool.name, identifier or f"jupyter-{uuid4().hex}") as session,
        ):
            guid = session.info.guid
    except TimeoutError:
        raise AllocationTimeout(f"no kernel of pool '{pool.name}' was ready within {CREATE_SECONDS:g} s") from None
    return gateway.kernel(principal, guid, pool.name)


async def described(kernels: list[Kernel]) -> list[dict[str, Any]]:
    known = await states(kernels)
    return [models.kernel(info, known.get(info.guid)) for info in (kernel.info for kernel in kernels)]


class KernelsHandler(JupyterHandler):
    roles: ClassVar = {"GET": Role.VIEWER}

    async def get(self, pool: str = "") -> None:
        await self.serve(self._get())

    async def post(self, pool: str = "") -> None:
        await self.serve(self._post())

    async def _get(self) -> None:
        self.answer(await described(self.gateway.kernels(self.principal, self.scope)))

    async def _post(self) -> None:
        fields = self.fields()
        pool = models.find_spec(self.specs, text_of(fields, "name", 64))
        kernel = await start_kernel(self.gateway, self.principal, pool, _identifier(fields))
        [model] = await described([kernel])
        self.set_header("Location", f"{self.request.path}/{model['id']}")  # by now without any token
        self.answer(model, 201)


class _OneHandler(JupyterHandler):
    """Of a kernel that the path names."""

    @property
    def kernel(self) -> Kernel:
        return self.gateway.kernel(self.principal, self.path_kwargs["kernel"], self.scope)


class KernelHandler(_OneHandler):
    roles: ClassVar = {"GET": Role.VIEWER}

    async def get(self, kernel: str, pool: str = "") -> None:
        await self.serve(self._get())

    async def delete(self, kernel: str, pool: str = "") -> None:
        await self.serve(self._delete())

    async def _get(self) -> None:
        [model] = await described([self.kernel])
        self.answer(model)

    async def _delete(self) -> None:
        info = self.kernel.info
        await self.gateway.stop_session(self.principal, info.pool, info.identifier)
        self.answer_nothing()


class InterruptHandler(_OneHandler):
    async def post(self, kernel: str, pool: str = "") -> None:
        await self.serve(self._post())

    async def _post(self) -> None:
        await self.kernel.interrupt()
        self.answer_nothing()


class RestartHandler(_OneHandler):
    async def post(self, kernel: str, pool: str = "") -> None:
        await self.serve(self._post())

    async def _post(self) -> None:
        kernel = self.kernel
        await kernel.restart()
        [model] = await described([kernel])
        self.answer(model)


def _identifier(fields: dict[str, Any]) -> str:
    """Of `env` nothing else counts: what else is in there is the client's own business."""
    value = object_in(fields, "env").get(IDENTIFIER)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"env.{IDENTIFIER}: must be a text")
    return value or ""
