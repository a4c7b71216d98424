"""Kernelspecs: the pools that the caller may use, each with the language and the logos of its runtime."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from kernelpool.api.jupyter import models
from kernelpool.api.jupyter.handler import JupyterHandler
from kernelpool.api.jupyter.paths import base_of
from kernelpool.auth.principal import Role
from kernelpool.errors import NotFound
from kernelpool.gateway import PoolInfo

LOGOS: Mapping[str, str] = {
    "logo-svg.svg": "image/svg+xml",
    "logo-32x32.png": "image/png",
    "logo-64x64.png": "image/png",
}


class _Handler(JupyterHandler):
    roles: ClassVar = {"GET": Role.VIEWER}

    async def describe(self, pool: PoolInfo) -> dict[str, Any]:
        return models.kernelspec(pool, await self.logos(pool), base_of(self.request.path))

    async def logos(self, pool: PoolInfo) -> Mapping[str, bytes]:
        return await asyncio.to_thread(_read_logos, self.gateway.source_of(pool.name).runtime.folder)

    def pool_of(self, name: str) -> PoolInfo:
        found = next((pool for pool in self.specs if pool.name == name), None)
        if found is None:
            raise NotFound(f"There is no kernelspec '{name[:64]}'.")
        return found


class SpecsHandler(_Handler):
    async def get(self, pool: str = "") -> None:
        await self.serve(self._get())

    async def _get(self) -> None:
        default = models.default_spec(self.specs)
        specs = {pool.name: await self.describe(pool) for pool in self.specs}
        self.answer({"default": default.name, "kernelspecs": specs})


class SpecHandler(_Handler):
    async def get(self, spec: str, pool: str = "") -> None:
        await self.serve(self._get(spec))

    async def _get(self, spec: str) -> None:
        self.answer(await self.describe(self.pool_of(spec)))


class LogoHandler(_Handler):
    async def get(self, spec: str, logo: str, pool: str = "") -> None:
        await self.serve(self._get(spec, logo))

    async def _get(self, spec: str, logo: str) -> None:
        data = (await self.logos(self.pool_of(spec))).get(logo)
        if data is None:
            raise NotFound(f"The kernelspec '{spec[:64]}' has no '{logo[:64]}'.")
        self.set_header("Content-Type", LOGOS[logo])
        self.set_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; sandbox")
        self.finish(data)


@cache
def _read_logos(folder: Path) -> Mapping[str, bytes]:
    """Of a runtime, which has them beside its `runtime.toml`, or none."""
    return {name: (folder / name).read_bytes() for name in LOGOS if (folder / name).is_file()}
