"""Kernel: a session as Jupyter clients see it, named by its guid.

Unlike a `Session` it is no hold: a list that is polled and a tab that is left open keep no session alive. What is sent
does, and so does code that runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress

from kernelpool.agents import Channels
from kernelpool.errors import KernelpoolError
from kernelpool.journal import JupyterSession
from kernelpool.life import LiveSession, SessionInfo
from kernelpool.models import KernelState
from kernelpool.session import Admission, Calls, or_lost
from kernelpool.sessions import Sessions
from kernelpool.telemetry.audit import Action
from kernelpool.telemetry.watch import Watch

LOOK_SECONDS = 2.0
"""In which agents say how their kernels are, all of a list together."""
LOOK_AT_ONCE = 16
CONNECT_SECONDS = 15.0


class Kernel:
    """Any method that asks the sandbox may raise `SandboxLost`: the session is over then."""

    def __init__(self, live: LiveSession, sessions: Sessions, calls: Calls, admission: Admission, watch: Watch) -> None:
        self._live = live
        self._agent = live.agent
        self._sessions = sessions
        self._calls = calls
        self._admission = admission
        self.watch = watch

    def __repr__(self) -> str:
        return f"<Kernel {self._live!r}>"

    @property
    def info(self) -> SessionInfo:
        return self._sessions.describe(self._live)

    @property
    def ended(self) -> str | None:
        """Why, once it has."""
        return self._live.ended

    @property
    def jupyter_sessions(self) -> tuple[JupyterSession, ...]:
        return self._live.record.jupyter

    async def keep(self, jupyter_sessions: tuple[JupyterSession, ...]) -> None:
        await self._sessions.keep(self._live, jupyter_sessions)

    async def state(self) -> KernelState:
        """As its agent says, without any patience."""
        return await self._agent.kernel()

    async def interrupt(self) -> None:
        with self._live.hold(), self.watch.acting(Action.KERNEL_INTERRUPT):
            async with or_lost(self._sessions, self._live, self._live.settings.longest_stop):
                await self._agent.interrupt()

    async def restart(self) -> None:
        """Returns when the fresh kernel is ready."""
        with self._live.hold(), self.watch.acting(Action.KERNEL_RESTART):
            async with or_lost(self._sessions, self._live, self._live.settings.longest_stop):
                await self._agent.restart()

    @asynccontextmanager
    async def connect(self, session_id: str, last_msg_id: str | None) -> AsyncIterator[Channels]:
        """As `Agent.channels`. Raises `GatewayDraining`, too."""
        self._calls.admit()
        async with AsyncExitStack() as stack:
            async with or_lost(self._sessions, self._live, CONNECT_SECONDS):
                channels = await stack.enter_async_context(self._agent.channels(session_id, last_msg_id))
            stack.enter_context(self._live.connection())
            yield channels

    def or_lost(self) -> AbstractAsyncContextManager[None]:
        """Around whatever is done with channels: why they broke off is what its errors say then."""
        return or_lost(self._sessions, self._live)

    def touch(self) -> None:
        """A client has sent something."""
        with self._live.hold():
            pass

    def admit(self) -> None:
        """One more execution. Raises `GatewayDraining`, `QuotaExceeded`."""
        self._calls.admit()
        self._admission.execution()


async def states(kernels: Iterable[Kernel]) -> dict[str, KernelState]:
    """By guid. One that does not answer in time is not in there; whether it is lost is for the heartbeat to say."""
    found: dict[str, KernelState] = {}
    gate = asyncio.Semaphore(LOOK_AT_ONCE)

    async def ask(kernel: Kernel) -> None:
        async with gate:
            with suppress(KernelpoolError):
                found[kernel.info.guid] = await kernel.state()

    with suppress(TimeoutError):
        async with asyncio.timeout(LOOK_SECONDS), asyncio.TaskGroup() as group:
            for kernel in kernels:
                group.create_task(ask(kernel))
    return found
