"""The Docker backend: makes sandboxes of what is in stock, and hands them to the account."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kernelpool.backends.base import Finding, RuntimeMetadata, Sandbox, SandboxSpec, Say
from kernelpool.backends.container import APP_SOCKET, ContainerSpec, Registry
from kernelpool.backends.docker import doctor
from kernelpool.backends.docker.account import Account
from kernelpool.backends.docker.container import SOCKET
from kernelpool.backends.docker.custom import CustomStart, described
from kernelpool.backends.docker.elsewhere import StartElsewhere, is_elsewhere, refuse_containers, refuse_elsewhere
from kernelpool.backends.docker.engine import Engine, EngineError, is_gvisor, runtimes
from kernelpool.backends.docker.folders import Folders, Record
from kernelpool.backends.docker.image import PrepareImage
from kernelpool.backends.docker.images import find_or_build
from kernelpool.backends.docker.outside import refuse_unproven
from kernelpool.backends.docker.sandbox import DockerSandbox
from kernelpool.backends.docker.settings import DockerSettings
from kernelpool.backends.docker.start import AGENT, Program, Start
from kernelpool.backends.docker.stock import Stock
from kernelpool.backends.doctor import ask_probe, silent_probe, throw_away
from kernelpool.backends.tree.steps import in_thread
from kernelpool.egress.doors import DoorKeeper
from kernelpool.errors import BackendUnavailable, InvalidRequest, StartFailed
from kernelpool.runtimes import Runtime

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Opened:
    """What there is between entering and leaving the backend."""

    stack: AsyncExitStack
    engine: Engine
    folders: Folders
    stock: Stock
    account: Account
    gate: asyncio.Semaphore


class DockerBackend:
    """`state` is a directory of its own; see `folders.py` for what is in it."""

    def __init__(
        self,
        state: Path,
        settings: DockerSettings | None = None,
        *,
        doors: DoorKeeper | None = None,
        prepare_image: PrepareImage = find_or_build,
    ) -> None:
        """Without `doors` no sandbox can be held to a list of domains, and none that is gets its way out back."""
        self._path = state
        self._settings = settings or DockerSettings()
        self._prepare_image = prepare_image
        self._doors = doors
        self._open: _Opened | None = None
        self._info: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<DockerBackend {self._path} [{self._open.account if self._open else 'not entered'}]>"

    @property
    def name(self) -> str:
        return "docker"

    async def __aenter__(self) -> Self:
        """Raises `StartFailed` when no engine answers or the directories cannot serve, saying what to do."""
        settings = self._settings
        elsewhere = is_elsewhere(settings)
        async with AsyncExitStack() as stack:
            folders = await in_thread(Folders, self._path, settings.run_dir)
            stack.callback(folders.close)
            engine = await stack.enter_async_context(Engine(settings))
            stock = Stock(engine, self._prepare_image)
            account = Account(engine, folders, self._doors, self._engine_returned, elsewhere=elsewhere)
            await stack.enter_async_context(account)
            gate = asyncio.Semaphore(settings.start_concurrency)
            self._open = _Opened(stack.pop_all(), engine, folders, stock, account, gate)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            await self._open.stack.aclose()
            self._open = None

    @property
    def _opened(self) -> _Opened:
        if self._open is None:
            raise RuntimeError("the backend is not entered")
        return self._open

    def _engine_returned(self) -> None:
        """It may be another one by now."""
        self._info = None

    async def prepare(self, runtime: Runtime, say: Say) -> RuntimeMetadata:
        return (await self._opened.stock.image(runtime, say)).image.metadata

    async def prepare_container(self, container: ContainerSpec, registry: Registry | None, say: Say) -> RuntimeMetadata:
        if self._opened.account.lines is not None:
            refuse_containers()
        await self._opened.stock.fetch(container, registry, say)
        await self._opened.stock.holder(say)
        return described(container, time.time())

    # --- the doctor

    async def check(self, spec: SandboxSpec) -> Sequence[Finding]:
        if self._opened.account.lines is not None:
            refuse_elsewhere(spec)
        info = await self._told()
        if spec.oci_runtime is not None and spec.oci_runtime not in runtimes(info):
            raise InvalidRequest(
                f"the engine has no oci_runtime {spec.oci_runtime!r}, only {', '.join(runtimes(info))}"
            )
        if spec.egress.mode == "outside":
            refuse_unproven(spec, info)
        findings = [*doctor.engine_findings(info, spec.oci_runtime), *doctor.way_findings(self._settings)]
        if spec.container is not None:
            image = await self._opened.stock.custom(spec.container)
            return [*findings, *doctor.custom_findings(info, spec, spec.container, image.user)]
        try:
            probe = await in_thread(doctor.probe_elsewhere) if self._opened.account.lines else doctor.PROBE
            sandbox = await self._start(throw_away(spec), probe)
        except StartFailed as error:
            return [*findings, doctor.start_finding(error, spec)]
        try:
            seen = await ask_probe(sandbox.address)
        finally:
            await sandbox.destroy()
        if seen is None:
            return [*findings, silent_probe("")]
        return [*findings, *doctor.compare(seen, info, spec, relays=int(self._opened.account.lines is not None))]

    async def _told(self) -> Mapping[str, Any]:
        """What the engine tells of itself; asked again when it has been away."""
        if self._info is not None:
            return self._info
        try:
            info: Mapping[str, Any] = await self._opened.engine.call(lambda client: client.info())
        except EngineError as error:
            raise BackendUnavailable("the Docker Engine does not tell of itself") from error
        self._info = info
        return info

    # --- sandboxes

    async def adopt(self) -> Sequence[Sandbox]:
        return await self._opened.account.adopt()

    async def create(self, spec: SandboxSpec) -> Sandbox:
        if self._opened.account.lines is not None:
            refuse_elsewhere(spec)
        if spec.egress.mode == "outside":
            refuse_unproven(spec, await self._told())
        if spec.egress.mode == "domains" and self._doors is None:
            raise StartFailed("there is no proxy here that could hold sessions to a list of domains")
        if spec.container is not None:
            return await self._start_custom(spec, spec.container)
        return await self._start(spec, AGENT)

    async def _start(self, spec: SandboxSpec, program: Program) -> DockerSandbox:
        opened = self._opened
        shown = await opened.stock.image(spec.runtime, log.info)
        if not is_gvisor(await self._told(), spec.oci_runtime):
            # A container has no user namespace of its own: its agent would count the processes of all sandboxes.
            spec = replace(spec, agent=replace(spec.agent, processes=0))
        outside = spec.egress.mode == "outside"
        net = await opened.stock.holder(log.info) if outside else ""

        async def start(sandbox: DockerSandbox) -> None:
            if (lines := opened.account.lines) is not None:
                await StartElsewhere(opened.engine, opened.folders, lines, spec, shown, program).run(sandbox)
                return
            way_out = await opened.account.way_out() if outside else None
            made = Start(opened.engine, opened.folders, spec, shown, program, net, way_out)
            await made.run(sandbox, opened.account.open_door)

        return await self._run(spec, start, socket=SOCKET)

    async def _start_custom(self, spec: SandboxSpec, container: ContainerSpec) -> DockerSandbox:
        opened = self._opened
        image = await opened.stock.custom(container)
        net = await opened.stock.holder(log.info)

        async def start(sandbox: DockerSandbox) -> None:
            outside = spec.egress.mode == "outside"
            way_out = await opened.account.way_out() if outside else None
            made = CustomStart(opened.engine, opened.folders, spec, image, net, way_out)
            await made.run(sandbox, opened.account.open_door)

        return await self._run(spec, start, socket=APP_SOCKET)

    async def _run(
        self, spec: SandboxSpec, start: Callable[[DockerSandbox], Awaitable[None]], socket: str
    ) -> DockerSandbox:
        opened = self._opened
        record = Record(
            spec.id, spec.pool, spec.fingerprint, time.time(), spec.agent.secret, socket, spec.egress.setting
        )
        sandbox = opened.account.begin(record)
        try:
            async with opened.gate, asyncio.timeout(self._settings.start_timeout):
                await start(sandbox)
        except BaseException as error:
            await opened.account.give_up(sandbox)
            if isinstance(error, EngineError) and error.status == HTTPStatus.NOT_FOUND:
                opened.stock.forget(spec)
            if (failure := self._failure(error)) is not None:
                raise failure from error
            raise
        finally:
            opened.account.started(sandbox)
        return sandbox

    def _failure(self, error: BaseException) -> StartFailed | None:
        """What callers are told; the detail is a note, because it may name paths."""
        match error:
            case TimeoutError():
                return StartFailed(f"the sandbox's agent was not there within {self._settings.start_timeout:g} s")
            case EngineError():
                failure = StartFailed("the Docker Engine could not start a sandbox")
            case OSError():
                failure = StartFailed("a sandbox could not be set up")
            case _:
                return None
        failure.add_note(str(error))
        log.warning("sandbox did not start", extra={"engine": str(error)})
        return failure
