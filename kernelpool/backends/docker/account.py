"""Account of the containers of one gateway: hears of their deaths, removes them, finds those of an earlier gateway."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self

from kernelpool.backends.base import RelayedAddress, UnixAddress
from kernelpool.backends.docker.custom import whole_state
from kernelpool.backends.docker.deaths import why_dead
from kernelpool.backends.docker.engine import Engine, EngineError
from kernelpool.backends.docker.events import Events
from kernelpool.backends.docker.folders import Folders, Record
from kernelpool.backends.docker.labels import GATEWAY, SANDBOX, container_name, holder_name
from kernelpool.backends.docker.lines import Lines
from kernelpool.backends.docker.outside import Outside, ensure, forget
from kernelpool.backends.docker.sandbox import DockerSandbox
from kernelpool.backends.tree.steps import in_thread
from kernelpool.egress.doors import DoorKeeper
from kernelpool.errors import BackendUnavailable, StartFailed
from kernelpool.tasks import Tasks, finish

log = logging.getLogger(__name__)

_ID: Final = re.compile(r"[0-9a-f]{12}")
_ERASE_SECONDS: Final = 30.0
_PAUSE: Final = 0.1


class Account:
    """An async context manager: leaving it lets the sandboxes live. `returned` is called when the engine may have been
    away."""

    def __init__(
        self,
        engine: Engine,
        folders: Folders,
        doors: DoorKeeper | None,
        returned: Callable[[], None],
        *,
        elsewhere: bool = False,
    ) -> None:
        """`elsewhere`: the engine shares no directory with us."""
        self._engine = engine
        self._folders = folders
        self._doors = doors
        self._returned = returned
        # Starting, alive or being removed, by id; and which of them are starting.
        self._sandboxes: dict[str, DockerSandbox] = {}
        self._starting: set[str] = set()
        # Whether what is not in there is nobody's.
        self._has_adopted = False
        # Nobody takes the outside network while it is being removed.
        self._network = asyncio.Lock()
        self._tasks = Tasks("docker backend")
        self._events = Events(engine, folders.tag, self._catch_up, self._heard)
        self.lines = Lines(engine, self._events.look_again) if elsewhere else None
        """The ways to sandboxes, where their agents have no socket in a directory of ours."""
        self._stack = AsyncExitStack()

    def __repr__(self) -> str:
        return f"<Account [{len(self._sandboxes)} sandboxes, {len(self._starting)} starting]>"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._tasks.aclose)
            if self.lines is not None:
                await stack.enter_async_context(self.lines)
            await stack.enter_async_context(self._events)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sandbox in list(self._sandboxes.values()):
            await sandbox.aclose()
        self._sandboxes.clear()
        await self._stack.aclose()

    # --- starts

    def begin(self, record: Record) -> DockerSandbox:
        """One that starts. Raises `StartFailed` when there is one of that id."""
        if record.id in self._sandboxes:
            raise StartFailed(f"there is a sandbox {record.id} already")
        self._starting.add(record.id)
        return self._register(record)

    def started(self, sandbox: DockerSandbox) -> None:
        """Or it failed to, and was given up."""
        self._starting.discard(sandbox.id)

    async def give_up(self, sandbox: DockerSandbox) -> None:
        """What a start that failed has made."""
        with contextlib.suppress(BackendUnavailable):  # what is left goes when the engine is back
            await finish(self._erase(sandbox))

    async def open_door(self, sandbox: DockerSandbox) -> None:
        """With the policy that it was made with, whatever its pool says by now. Raises `OSError`. For everybody who
        gets as far as its folder: the users of sandboxes are no users of the host."""
        if self._doors is not None and sandbox.egress.mode == "domains":
            folder = self._folders.folder(sandbox.id)
            await self._doors.open(sandbox.id, sandbox.pool, sandbox.egress, folder, None)

    def _register(self, record: Record) -> DockerSandbox:
        path = str(self._folders.socket(record))
        address = UnixAddress(path)
        if self.lines is not None:
            address = RelayedAddress(path, partial(self.lines.is_away, record.id))
        sandbox = DockerSandbox(record, address, self._erase)
        self._sandboxes[record.id] = sandbox
        return sandbox

    # --- adoption

    async def adopt(self) -> Sequence[DockerSandbox]:
        known = set(self._sandboxes)
        containers = await self._containers()
        left = containers.keys() | await in_thread(self._folders.ids)
        await asyncio.gather(*(self._adopt_or_erase(id, containers.get(id)) for id in left - known))
        await self._tidy_network()
        self._has_adopted = True
        return [sandbox for sandbox in self._sandboxes.values() if sandbox.id not in known]

    async def _adopt_or_erase(self, id: str, state: str | None) -> None:
        record = await in_thread(self._folders.record, id)
        if record is None or state != "running" or not await in_thread(self._folders.is_sealed, id):
            await self._remove(id)
            return
        sandbox = self._register(record)
        try:
            await self.open_door(sandbox)
        except OSError as error:  # it lives on without a way out
            log.error("adopted sandbox has no egress", extra={"sandbox": id}, exc_info=error)
        if self.lines is not None:
            await self.lines.open(id, container_name(self._folders.tag, id), self._folders.socket(record))
        # Only now is its death heard of: it may have been just before.
        if await self._why_dead(sandbox) is not None:
            await self._erase(sandbox)

    async def _containers(self) -> dict[str, str]:
        """State of what each sandbox is made of, by sandbox."""
        label = f"{GATEWAY}={self._folders.tag}"
        try:
            listed = await self._engine.call(lambda client: client.containers(all=True, filters={"label": label}))
        except EngineError as error:
            raise BackendUnavailable("the Docker Engine does not list its containers") from error
        ids = {one["Labels"].get(SANDBOX, "") for one in listed}
        return {
            id: whole_state([one for one in listed if one["Labels"].get(SANDBOX) == id])
            for id in ids
            if _ID.fullmatch(id)
        }

    # --- death

    def _heard(self, id: str) -> None:
        if (sandbox := self._sandboxes.get(id)) and not sandbox.is_dead:
            self._tasks.spawn(self._look_at(sandbox), "death")

    async def _look_at(self, sandbox: DockerSandbox) -> None:
        with contextlib.suppress(BackendUnavailable):  # looked at again when the engine is back
            if (why := await self._why_dead(sandbox)) is not None:
                sandbox.died(why)

    async def _why_dead(self, sandbox: DockerSandbox) -> str | None:
        is_starting = partial(self._starting.__contains__, sandbox.id)
        return await why_dead(self._engine, self._folders.tag, sandbox.record, is_starting)

    async def _catch_up(self) -> None:
        """The engine's events have begun, for the first time or again: what did they not tell?"""
        self._returned()
        if self.lines is not None:
            self.lines.look_again()
        containers = await self._containers()
        for sandbox in list(self._sandboxes.values()):
            if sandbox.id not in self._starting and containers.get(sandbox.id) != "running":
                await self._look_at(sandbox)
        if not self._has_adopted:
            return
        left = containers.keys() | await in_thread(self._folders.ids)
        for id in left - self._sandboxes.keys():
            self._tasks.spawn(self._remove_later(id), "orphan")

    # --- removal

    async def _erase(self, sandbox: DockerSandbox) -> None:
        try:
            if self._doors is not None:
                await self._doors.close(sandbox.id)
            if self.lines is not None:
                await self.lines.close(sandbox.id)
            await self._remove_later(sandbox.id)
        finally:
            self._sandboxes.pop(sandbox.id, None)
        if sandbox.egress.mode == "outside":
            await self._tidy_network()

    async def way_out(self) -> Outside:
        """The outside network, for a sandbox that has begun: with it, the network stays. Raises as `ensure`."""
        async with self._network:
            return await ensure(self._engine, self._folders.tag)

    async def _tidy_network(self) -> None:
        """The bridge goes with the last sandbox that is on it."""
        async with self._network:
            if not any(sandbox.egress.mode == "outside" for sandbox in self._sandboxes.values()):
                with contextlib.suppress(BackendUnavailable):
                    await forget(self._engine, self._folders.tag)

    async def _remove_later(self, id: str) -> None:
        """Now, or else when the engine is back: what is left is nobody's, and found as such."""
        try:
            await self._remove(id)
        except BackendUnavailable:
            self._events.look_again()
            raise

    async def _remove(self, id: str) -> None:
        """Its containers, running or not, then its directory, then its record."""
        tag = self._folders.tag
        record = await in_thread(self._folders.record, id)
        names = [container_name(tag, id)]
        if record is None or record.has_holder:
            names.append(holder_name(tag, id))
        for name in names:
            await self._remove_container(name)
        await in_thread(self._folders.remove, id)

    async def _remove_container(self, name: str) -> None:
        deadline = time.monotonic() + _ERASE_SECONDS
        while True:
            try:
                await self._engine.call(lambda client: client.remove_container(name, v=True, force=True))
            except EngineError as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    return
                # Somebody removes it already, or what was killed is not quite dead: nothing tells when it is.
                if time.monotonic() > deadline:
                    raise BackendUnavailable("the Docker Engine does not remove a sandbox") from error
                log.debug("container is not removed yet", extra={"container": name, "engine": str(error)})
            else:
                return
            await asyncio.sleep(_PAUSE)
