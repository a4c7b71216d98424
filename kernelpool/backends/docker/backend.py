"""The Docker backend: keeps account of its containers, hears of their deaths, and finds those of an earlier gateway."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from kernelpool.backends.base import Finding, RuntimeMetadata, Sandbox, SandboxSpec, Say
from kernelpool.backends.container import APP_SOCKET, ContainerSpec, Registry
from kernelpool.backends.docker import doctor
from kernelpool.backends.docker.container import SOCKET
from kernelpool.backends.docker.custom import CustomImage, CustomStart, described, fetched, whole_state
from kernelpool.backends.docker.engine import Engine, EngineError, is_gvisor, runtimes
from kernelpool.backends.docker.events import Events
from kernelpool.backends.docker.folders import Folders, Record, variables
from kernelpool.backends.docker.image import PrepareImage
from kernelpool.backends.docker.images import find_or_build
from kernelpool.backends.docker.labels import GATEWAY, SANDBOX, container_name, holder_name
from kernelpool.backends.docker.network import holder_image
from kernelpool.backends.docker.outside import ensure, forget, refuse_unproven
from kernelpool.backends.docker.sandbox import DockerSandbox
from kernelpool.backends.docker.settings import DockerSettings
from kernelpool.backends.docker.start import AGENT, Program, Shown, Start
from kernelpool.backends.doctor import ask_probe, silent_probe, throw_away
from kernelpool.backends.tree.steps import in_thread
from kernelpool.egress.doors import DoorKeeper
from kernelpool.errors import BackendUnavailable, InvalidRequest, PrepareFailed, StartFailed
from kernelpool.runtimes import Runtime
from kernelpool.tasks import Tasks, finish

log = logging.getLogger(__name__)

_ID: Final = re.compile(r"[0-9a-f]{12}")
_ERASE_SECONDS: Final = 30.0
_PAUSE: Final = 0.1
_NOT_FOUND: Final = 404
_ALIVE: Final = ("running", "created", "restarting")


@dataclass(frozen=True, slots=True)
class _Opened:
    """What there is between entering and leaving the backend."""

    stack: AsyncExitStack
    engine: Engine
    folders: Folders
    events: Events
    gate: asyncio.Semaphore
    tasks: Tasks


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
        self._images: dict[tuple[str, str], Shown] = {}
        # Of custom containers, by the name that the pool gives.
        self._customs: dict[str, CustomImage] = {}
        self._registries: dict[str, Registry | None] = {}
        # Of their holders.
        self._net: str | None = None
        self._image_lock = asyncio.Lock()
        # Starting, alive or being removed, by id; and which of them are starting.
        self._sandboxes: dict[str, DockerSandbox] = {}
        self._starting: set[str] = set()
        self._info: Mapping[str, Any] | None = None
        # Whether what is not in there is nobody's.
        self._has_adopted = False

    def __repr__(self) -> str:
        return f"<DockerBackend {self._path} [{len(self._sandboxes)} sandboxes, {len(self._starting)} starting]>"

    @property
    def name(self) -> str:
        return "docker"

    async def __aenter__(self) -> Self:
        """Raises `StartFailed` when no engine answers or the directories cannot serve, saying what to do."""
        settings = self._settings
        _refuse_elsewhere(settings)
        async with AsyncExitStack() as stack:
            folders = await in_thread(Folders, self._path, settings.run_dir)
            stack.callback(folders.close)
            engine = await stack.enter_async_context(Engine(settings))
            tasks = Tasks("docker backend")
            stack.push_async_callback(tasks.aclose)
            events = Events(engine, folders.tag, self._catch_up, self._heard)
            gate = asyncio.Semaphore(settings.start_concurrency)
            self._open = _Opened(stack, engine, folders, events, gate, tasks)
            await stack.enter_async_context(events)
            self._open = replace(self._open, stack=stack.pop_all())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sandbox in list(self._sandboxes.values()):
            await sandbox.aclose()
        self._sandboxes.clear()
        if self._open:
            await self._open.stack.aclose()
            self._open = None

    @property
    def _opened(self) -> _Opened:
        if self._open is None:
            raise RuntimeError("the backend is not entered")
        return self._open

    async def prepare(self, runtime: Runtime, say: Say) -> RuntimeMetadata:
        return (await self._image(runtime, say)).image.metadata

    async def prepare_container(self, container: ContainerSpec, registry: Registry | None, say: Say) -> RuntimeMetadata:
        self._registries[container.image] = registry
        self._customs[container.image] = await fetched(self._opened.engine, container, registry, say)
        await self._holder_image(say)
        return described(container, time.time())

    async def _holder_image(self, say: Say) -> str:
        async with self._image_lock:
            if self._net is None:
                self._net = await holder_image(self._opened.engine, say)
            return self._net

    async def _custom_image(self, container: ContainerSpec) -> CustomImage:
        """Fetched ahead, unless somebody has removed it meanwhile."""
        name = container.image
        if name not in self._customs:
            self._customs[name] = await fetched(self._opened.engine, container, self._registries.get(name), log.info)
        return self._customs[name]

    async def _image(self, runtime: Runtime, say: Say) -> Shown:
        key = (runtime.name, runtime.image)
        async with self._image_lock:
            if key not in self._images:
                engine = self._opened.engine
                image = await self._prepare_image(engine, runtime, say)
                try:
                    config = (await engine.call(lambda client: client.inspect_image(image.id)))["Config"] or {}
                except EngineError as error:
                    raise PrepareFailed(f"the image of {runtime.name} cannot be used: {error}") from error
                if config.get("Volumes"):
                    raise PrepareFailed(
                        f"the image of {runtime.name} has volumes, which would be writable without limit"
                    )
                self._images[key] = Shown(image, variables(config.get("Env") or []))
            return self._images[key]

    # --- the doctor

    async def check(self, spec: SandboxSpec) -> Sequence[Finding]:
        info = await self._told()
        if spec.oci_runtime is not None and spec.oci_runtime not in runtimes(info):
            raise InvalidRequest(
                f"the engine has no oci_runtime {spec.oci_runtime!r}, only {', '.join(runtimes(info))}"
            )
        if spec.egress.mode == "outside":
            refuse_unproven(spec, info)
        findings = doctor.engine_findings(info, spec.oci_runtime)
        if spec.container is not None:
            image = await self._custom_image(spec.container)
            return [*findings, *doctor.custom_findings(info, spec, spec.container, image.user)]
        try:
            sandbox = await self._start(throw_away(spec), doctor.PROBE)
        except StartFailed as error:
            return [*findings, doctor.start_finding(error, spec)]
        try:
            seen = await ask_probe(sandbox.address)
        finally:
            await sandbox.destroy()
        if seen is None:
            return [*findings, silent_probe("")]
        return [*findings, *doctor.compare(seen, info, spec)]

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

    # --- life

    async def create(self, spec: SandboxSpec) -> Sandbox:
        if spec.egress.mode == "outside":
            refuse_unproven(spec, await self._told())
        if spec.egress.mode == "domains" and self._doors is None:
            raise StartFailed("there is no proxy here that could hold sessions to a list of domains")
        if spec.container is not None:
            return await self._start_custom(spec, spec.container)
        return await self._start(spec, AGENT)

    async def _start(self, spec: SandboxSpec, program: Program) -> DockerSandbox:
        opened = self._opened
        shown = await self._image(spec.runtime, log.info)
        if not is_gvisor(await self._told(), spec.oci_runtime):
            # A container has no user namespace of its own: its agent would count the processes of all sandboxes.
            spec = replace(spec, agent=replace(spec.agent, processes=0))
        outside = spec.egress.mode == "outside"
        net = await holder_image(opened.engine, log.info) if outside else ""

        async def start(sandbox: DockerSandbox) -> None:
            way_out = await ensure(opened.engine, opened.folders.tag) if outside else None
            made = Start(opened.engine, opened.folders, spec, shown, program, net, way_out)
            await made.run(sandbox, self._open_door)

        return await self._run(spec, start, socket=SOCKET)

    async def _start_custom(self, spec: SandboxSpec, container: ContainerSpec) -> DockerSandbox:
        opened = self._opened
        image = await self._custom_image(container)
        net = await self._holder_image(log.info)

        async def start(sandbox: DockerSandbox) -> None:
            outside = spec.egress.mode == "outside"
            way_out = await ensure(opened.engine, opened.folders.tag) if outside else None
            made = CustomStart(opened.engine, opened.folders, spec, image, net, way_out)
            await made.run(sandbox, self._open_door)

        return await self._run(spec, start, socket=APP_SOCKET)

    async def _run(
        self, spec: SandboxSpec, start: Callable[[DockerSandbox], Awaitable[None]], socket: str
    ) -> DockerSandbox:
        opened = self._opened
        if spec.id in self._sandboxes:
            raise StartFailed(f"there is a sandbox {spec.id} already")
        record = Record(
            spec.id, spec.pool, spec.fingerprint, time.time(), spec.agent.secret, socket, spec.egress.setting
        )
        sandbox = self._register(record)
        self._starting.add(spec.id)
        try:
            async with opened.gate, asyncio.timeout(self._settings.start_timeout):
                await start(sandbox)
        except BaseException as error:
            with contextlib.suppress(BackendUnavailable):  # what is left goes when the engine is back
                await finish(self._erase(sandbox))
            if isinstance(error, EngineError) and error.status == _NOT_FOUND:
                # Somebody has removed one: it is prepared again.
                self._images.pop((spec.runtime.name, spec.runtime.image), None)
                self._customs.clear()
                self._net = None
            if (failure := self._failure(error)) is not None:
                raise failure from error
            raise
        finally:
            self._starting.discard(spec.id)
        return sandbox

    async def _open_door(self, sandbox: DockerSandbox) -> None:
        """With the policy that it was made with, whatever its pool says by now. Raises `OSError`. For everybody who
        gets as far as its folder: the users of sandboxes are no users of the host."""
        if self._doors is not None and sandbox.egress.mode == "domains":
            folder = self._opened.folders.folder(sandbox.id)
            await self._doors.open(sandbox.id, sandbox.pool, sandbox.egress, folder, None)

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

    def _register(self, record: Record) -> DockerSandbox:
        sandbox = DockerSandbox(record, self._opened.folders.socket(record), self._erase)
        self._sandboxes[record.id] = sandbox
        return sandbox

    async def adopt(self) -> Sequence[Sandbox]:
        known = set(self._sandboxes)
        containers = await self._containers()
        left = containers.keys() | await in_thread(self._opened.folders.ids)
        await asyncio.gather(*(self._adopt_or_erase(id, containers.get(id)) for id in left - known))
        await self._tidy_network()
        self._has_adopted = True
        return [sandbox for sandbox in self._sandboxes.values() if sandbox.id not in known]

    async def _adopt_or_erase(self, id: str, state: str | None) -> None:
        folders = self._opened.folders
        record = await in_thread(folders.record, id)
        if record is None or state != "running" or not await in_thread(folders.is_sealed, id):
            await self._remove(id)
            return
        sandbox = self._register(record)
        try:
            await self._open_door(sandbox)
        except OSError as error:  # it lives on without a way out
            log.error("adopted sandbox has no egress", extra={"sandbox": id}, exc_info=error)
        # Only now is its death heard of: it may have been just before.
        if await self._why_dead(sandbox) is not None:
            await self._erase(sandbox)

    # --- death

    def _heard(self, id: str) -> None:
        if (sandbox := self._sandboxes.get(id)) and not sandbox.is_dead:
            self._opened.tasks.spawn(self._look_at(sandbox), "death")

    async def _look_at(self, sandbox: DockerSandbox) -> None:
        with contextlib.suppress(BackendUnavailable):  # looked at again when the engine is back
            if (why := await self._why_dead(sandbox)) is not None:
                sandbox.died(why)

    async def _why_dead(self, sandbox: DockerSandbox) -> str | None:
        """None: it lives, or is about to."""
        tag, record = self._opened.folders.tag, sandbox.record
        state = await self._state(container_name(tag, record.id))
        is_starting = record.id in self._starting
        if state["Status"] in _ALIVE if state is not None else is_starting:
            if not record.has_holder:
                return None
            held = await self._state(holder_name(tag, record.id))
            is_held = held["Status"] in _ALIVE if held is not None else is_starting
            return None if is_held else "its network's holder ended"
        if state is None:
            return None if record.id in self._starting else "its container was removed"
        if state.get("OOMKilled"):
            return "out of memory"
        if not record.is_custom:
            return "its agent ended"
        await self._tell_last_words(record.id)
        return f"the container exited with status {state.get('ExitCode')}"

    async def _state(self, name: str) -> Mapping[str, Any] | None:
        """None when there is no such container."""
        try:
            state: Mapping[str, Any] = (await self._opened.engine.call(lambda client: client.inspect_container(name)))[
                "State"
            ]
        except EngineError as error:
            if error.status != _NOT_FOUND:
                raise BackendUnavailable("the Docker Engine does not tell of a sandbox") from error
            return None
        return state

    async def _tell_last_words(self, id: str) -> None:
        """Of a custom container, to the operator: it is removed with its log."""
        name = container_name(self._opened.folders.tag, id)
        with contextlib.suppress(EngineError, BackendUnavailable):
            said = await self._opened.engine.call(lambda client: client.logs(name, tail=20))
            log.info("custom container ended", extra={"sandbox": id, "said": said[-2000:].decode(errors="replace")})

    async def _catch_up(self) -> None:
        """The engine's events have begun, for the first time or again: what did they not tell?"""
        self._info = None
        containers = await self._containers()
        for sandbox in list(self._sandboxes.values()):
            if sandbox.id not in self._starting and containers.get(sandbox.id) != "running":
                await self._look_at(sandbox)
        if not self._has_adopted:
            return
        left = containers.keys() | await in_thread(self._opened.folders.ids)
        for id in left - self._sandboxes.keys():
            self._opened.tasks.spawn(self._remove_later(id), "orphan")

    async def _containers(self) -> dict[str, str]:
        """State of what each sandbox is made of, by sandbox."""
        label = f"{GATEWAY}={self._opened.folders.tag}"
        try:
            listed = await self._opened.engine.call(
                lambda client: client.containers(all=True, filters={"label": label})
            )
        except EngineError as error:
            raise BackendUnavailable("the Docker Engine does not list its containers") from error
        ids = {one["Labels"].get(SANDBOX, "") for one in listed}
        return {
            id: whole_state([one for one in listed if one["Labels"].get(SANDBOX) == id])
            for id in ids
            if _ID.fullmatch(id)
        }

    async def _erase(self, sandbox: DockerSandbox) -> None:
        try:
            if self._doors is not None:
                await self._doors.close(sandbox.id)
            await self._remove_later(sandbox.id)
        finally:
            self._sandboxes.pop(sandbox.id, None)
        if sandbox.egress.mode == "outside":
            await self._tidy_network()

    async def _tidy_network(self) -> None:
        """The bridge goes with the last sandbox that is on it."""
        if not any(sandbox.egress.mode == "outside" for sandbox in self._sandboxes.values()):
            with contextlib.suppress(BackendUnavailable):
                await forget(self._opened.engine, self._opened.folders.tag)

    async def _remove_later(self, id: str) -> None:
        """Now, or else when the engine is back: what is left is nobody's, and found as such."""
        try:
            await self._remove(id)
        except BackendUnavailable:
            self._opened.events.look_again()
            raise

    async def _remove(self, id: str) -> None:
        """Its containers, running or not, then its directory, then its record."""
        opened = self._opened
        record = await in_thread(opened.folders.record, id)
        names = [container_name(opened.folders.tag, id)]
        if record is None or record.has_holder:
            names.append(holder_name(opened.folders.tag, id))
        for name in names:
            await self._remove_container(name)
        await in_thread(opened.folders.remove, id)

    async def _remove_container(self, name: str) -> None:
        deadline = time.monotonic() + _ERASE_SECONDS
        while True:
            try:
                await self._opened.engine.call(lambda client: client.remove_container(name, v=True, force=True))
            except EngineError as error:
                if error.status == _NOT_FOUND:
                    return
                # Somebody removes it already, or what was killed is not quite dead: nothing tells when it is.
                if time.monotonic() > deadline:
                    raise BackendUnavailable("the Docker Engine does not remove a sandbox") from error
                log.debug("container is not removed yet", extra={"container": name, "engine": str(error)})
            else:
                return
            await asyncio.sleep(_PAUSE)


def _refuse_elsewhere(settings: DockerSettings) -> None:
    """The way to an agent is a socket in a directory."""
    if settings.host.startswith("unix://"):
        return
    if not settings.host.startswith(("tcp://", "http://", "https://")):
        raise StartFailed(f"docker.host {settings.host} is neither unix:// nor tcp://")
    if settings.run_dir is None:
        raise StartFailed(
            f"the engine at {settings.host} is taken to be on another machine, where this gateway cannot reach "
            "sandboxes; if it is on this one, set docker.run_dir to a directory that both have at the same path"
        )
