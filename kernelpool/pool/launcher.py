"""Launcher: makes the sandboxes of one pool and holds the connections to their agents."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from kernelpool.agents import Agent, Connect, ContainerAgent
from kernelpool.backends.base import Backend, Sandbox
from kernelpool.errors import StartFailed
from kernelpool.pool.settings import PoolSettings, fingerprint, sandbox_spec
from kernelpool.runtimes import Runtime

WHY_SECONDS = 3.0
"""How long a call that lost its sandbox waits for the backend to say why."""


@dataclass(frozen=True, slots=True, eq=False)
class Connected:
    """A sandbox and the connection to its agent. Compared by identity: there is one for each sandbox."""

    sandbox: Sandbox
    agent: Agent

    def __repr__(self) -> str:
        return f"<sandbox {self.sandbox.id}>"


class Launcher:
    """What a `WarmPool` needs to make and end what it holds. Leaving it closes the connections, not the sandboxes."""

    def __init__(self, settings: PoolSettings, runtime: Runtime, backend: Backend, connect: Connect) -> None:
        self._settings = settings
        self._runtime = runtime
        self._backend = backend
        self._connect = connect
        self.fingerprint = fingerprint(settings, runtime)
        self._acceptable = {self.fingerprint}
        self._open: set[Agent] = set()

    def __repr__(self) -> str:
        return f"<Launcher {self._settings.name!r} [{len(self._open)} connections]>"

    def change(self, settings: PoolSettings, runtime: Runtime, backend: Backend) -> None:
        """What is started from now on. What was, stays as it is, and goes the way that it came; but where any egress is
        taken away, nobody gets what was started with it."""
        if not settings.egress_policy.covers(self._settings.egress_policy):
            self._acceptable.clear()
        self._settings = settings
        self._runtime = runtime
        self._backend = backend
        self.fingerprint = fingerprint(settings, runtime)
        self._acceptable.add(self.fingerprint)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            await self._open.pop().aclose()

    def connect(self, sandbox: Sandbox, *, is_used: bool = False) -> Connected:
        """`is_used`: it is somebody's session. An agent knows that itself; a custom container has none to ask."""
        container = self._settings.container
        if container is None:
            agent = self._connect(sandbox)
        else:
            agent = ContainerAgent(sandbox.address, container.to_spec(), is_used=is_used)
        self._open.add(agent)
        return Connected(sandbox, agent)

    async def start(self) -> Connected:
        """Until its kernel is warm, or the pool's `start_timeout` is over."""
        seconds = self._settings.start_timeout
        try:
            async with asyncio.timeout(seconds):
                made = self.connect(await self._backend.create(sandbox_spec(self._settings, self._runtime)))
                try:
                    await self._ready_or_dead(made)
                except BaseException:
                    # Not under the deadline that may just have passed: ending it is owed in any case.
                    await asyncio.shield(self.discard(made))
                    raise
        except TimeoutError:
            raise StartFailed(f"the sandbox was not ready within {seconds:g} s") from None
        return made

    def is_current(self, item: Connected) -> bool:
        return item.sandbox.fingerprint == self.fingerprint

    def is_acceptable(self, item: Connected) -> bool:
        return item.sandbox.fingerprint in self._acceptable

    async def wait_dead(self, item: Connected) -> str:
        return await item.sandbox.wait_dead()

    async def discard(self, item: Connected) -> None:
        self._open.discard(item.agent)
        try:
            await item.sandbox.destroy()
        finally:
            await item.agent.aclose()

    async def _ready_or_dead(self, made: Connected) -> None:
        """A sandbox that dies while it starts is known to have failed at once, not at the end of the timeout."""
        ready = asyncio.create_task(made.agent.wait_ready(self._settings.start_timeout))
        dead = asyncio.create_task(made.sandbox.wait_dead())
        try:
            await asyncio.wait((ready, dead), return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and ready.exception() is not None:
                # The agent's silence is often the first sign of a death, of which the backend knows more.
                await asyncio.wait((dead,), timeout=WHY_SECONDS)
            if dead.done():
                raise StartFailed(f"the sandbox died while it started: {dead.result()}")
            await ready
        finally:
            await _cancel(ready, dead)


async def _cancel(*tasks: asyncio.Task[None] | asyncio.Task[str]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen: nothing is logged for an error that no longer matters
