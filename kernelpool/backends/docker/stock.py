"""What sandboxes are made from, fetched or built ahead: images of runtimes, of custom containers, of their holders."""

from __future__ import annotations

import asyncio
import logging

from kernelpool.backends.base import SandboxSpec, Say
from kernelpool.backends.container import ContainerSpec, Registry
from kernelpool.backends.docker.custom import CustomImage, fetched
from kernelpool.backends.docker.engine import Engine, EngineError
from kernelpool.backends.docker.folders import variables
from kernelpool.backends.docker.image import PrepareImage
from kernelpool.backends.docker.network import holder_image
from kernelpool.backends.docker.start import Shown
from kernelpool.errors import PrepareFailed
from kernelpool.runtimes import Runtime

log = logging.getLogger(__name__)


class Stock:
    """Each is looked for once, until `forget`. All of it raises `PrepareFailed`."""

    def __init__(self, engine: Engine, prepare_image: PrepareImage) -> None:
        self._engine = engine
        self._prepare_image = prepare_image
        self._images: dict[tuple[str, str], Shown] = {}
        # Of custom containers, by the name that the pool gives.
        self._customs: dict[str, CustomImage] = {}
        self._registries: dict[str, Registry | None] = {}
        # Of their holders.
        self._net: str | None = None
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Stock of {self._engine!r} [{len(self._images)} images, {len(self._customs)} of custom containers]>"

    async def image(self, runtime: Runtime, say: Say) -> Shown:
        key = (runtime.name, runtime.image)
        async with self._lock:
            if key not in self._images:
                self._images[key] = await self._looked_for(runtime, say)
            return self._images[key]

    async def fetch(self, container: ContainerSpec, registry: Registry | None, say: Say) -> None:
        self._registries[container.image] = registry
        self._customs[container.image] = await fetched(self._engine, container, registry, say)

    async def custom(self, container: ContainerSpec) -> CustomImage:
        """Fetched ahead, unless somebody has removed it meanwhile."""
        name = container.image
        if name not in self._customs:
            await self.fetch(container, self._registries.get(name), log.info)
        return self._customs[name]

    async def holder(self, say: Say) -> str:
        async with self._lock:
            if self._net is None:
                self._net = await holder_image(self._engine, say)
            return self._net

    def forget(self, spec: SandboxSpec) -> None:
        """Somebody has removed one of what it is made from: all that may be is looked for again."""
        self._images.pop((spec.runtime.name, spec.runtime.image), None)
        self._customs.clear()
        self._net = None

    async def _looked_for(self, runtime: Runtime, say: Say) -> Shown:
        image = await self._prepare_image(self._engine, runtime, say)
        try:
            config = (await self._engine.call(lambda client: client.inspect_image(image.id)))["Config"] or {}
        except EngineError as error:
            raise PrepareFailed(f"the image of {runtime.name} cannot be used: {error}") from error
        if config.get("Volumes"):
            raise PrepareFailed(f"the image of {runtime.name} has volumes, which would be writable without limit")
        return Shown(image, variables(config.get("Env") or []))
