"""The sandbox's kernel: kept alive, connected, warmed up. Messages are routed to the execution that they name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Protocol, Self

import zmq

from kernelpool.agent.channels import Channels
from kernelpool.agent.process import KernelProcess, describe_death, start_kernel
from kernelpool.models import AgentConfig
from kernelpool.protocol.messages import Codec, Message, ProtocolError

log = logging.getLogger(__name__)

START_TIMEOUT = 60.0
KNOCK_INTERVAL = 0.1
REMEMBERED = 1000
"""Executions whose late output still finds its way home."""
MAX_BACKOFF = 10.0
LAST_WORDS = 0.5
"""Seconds at most to read what a kernel that has died had sent before."""


class Receiver(Protocol):
    """What an execution looks like from here."""

    def receive_reply(self, message: Message) -> None: ...

    def receive_iopub(self, message: Message) -> None: ...


class KernelNotReady(Exception):
    """The kernel did not come up; the text says why."""


class Kernel:
    """Supervises one kernel at a time; a new one is started whenever one ends.

    `on_loss(reason)` is called once whenever interpreter state is lost: the kernel that was ready is no more.
    """

    def __init__(self, config: AgentConfig, on_loss: Callable[[str], None]) -> None:
        self._config = config
        self._on_loss = on_loss
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._session = secrets.token_hex(16)
        self._receivers: OrderedDict[str, Receiver] = OrderedDict()
        self._process: KernelProcess | None = None
        self._channels: Channels | None = None
        self._codec: Codec | None = None
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._restart_reason: str | None = None
        self.restarts = 0
        self.failure: str | None = None
        """Why the last attempt to start a kernel failed."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._supervise())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        # A context that is left to the garbage collector with open sockets blocks the loop for ever.
        self._context.destroy(linger=0)

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    async def wait_ready(self) -> None:
        await self._ready.wait()

    def execute(self, code: str, receiver: Receiver, *, silent: bool = False, traceparent: str | None = None) -> str:
        """Sends the code to the kernel. Returns what `forget` wants to know. Raises `KernelNotReady`."""
        content = {
            "code": code,
            "silent": silent,
            "store_history": not silent,
            "user_expressions": {},
            "allow_stdin": False,
            # One failing call must not abort the next, which may be somebody else's.
            "stop_on_error": False,
        }
        # The id is random, so code cannot forge output of an execution that has not begun.
        metadata = {"traceparent": traceparent} if traceparent else None
        return self._request("shell", "execute_request", content, receiver, metadata)

    def forget(self, request: str) -> None:
        """From now on output that still comes of it has no receiver."""
        self._receivers.pop(request, None)

    def interrupt(self) -> None:
        if self._process is None:
            return
        if self._config.interrupt_mode == "message":
            with contextlib.suppress(KernelNotReady):
                self._request("control", "interrupt_request", {}, None)
        else:
            self._process.interrupt()

    async def restart(self, reason: str) -> None:
        """Kills the kernel; the supervisor starts the next one. `reason` is what callers are told."""
        if self._process is not None and self._process.is_alive:
            self._restart_reason = reason
            self.restarts += 1
            await self._process.kill()

    async def _supervise(self) -> None:
        backoff = 0.1
        while True:
            process = None
            try:
                process = start_kernel(self._config)
                await self._bring_up(process)
                self.failure, backoff = None, 0.1
                self._ready.set()
                code = await asyncio.shield(process.died)
                self._ready.clear()
                await self._hear_last_words()
                self._lost(self._restart_reason or describe_death(code))
            except (KernelNotReady, OSError, TimeoutError, zmq.ZMQError) as error:
                self.failure = str(error) or "the kernel did not answer"
                log.warning("kernel did not start", extra={"reason": self.failure})
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, MAX_BACKOFF)
            finally:
                self._ready.clear()
                self._restart_reason = None
                if self._channels is not None:
                    self._channels.close()
                self._channels = self._codec = self._process = None
                if process is not None and process.is_alive:
                    await process.kill()

    async def _bring_up(self, process: KernelProcess) -> None:
        self._process = process
        self._codec = Codec(process.connection.key, self._session)
        self._channels = Channels(
            self._context,
            process.connection.base,
            on_shell=self._on_shell,
            on_iopub=self._on_iopub,
        )
        async with asyncio.timeout(START_TIMEOUT):
            await self._knock(process)
            if self._config.warmup_code:
                warmup = _Once()
                self.execute(self._config.warmup_code, warmup, silent=True)
                await _first(warmup.replied, process.died)
                if warmup.error:
                    log.warning("warm-up failed", extra={"reason": warmup.error})

    async def _knock(self, process: KernelProcess) -> None:
        """Until the kernel has answered on the shell and been heard on IOPub: only then is our subscription in place,
        and no output of the first execution can be missed."""
        once = _Once()
        while not (once.replied.done() and once.heard.done()):
            self._request("shell", "kernel_info_request", {}, once)
            with contextlib.suppress(TimeoutError):
                await _first(asyncio.gather(once.replied, once.heard), process.died, timeout=KNOCK_INTERVAL)

    async def _hear_last_words(self) -> None:
        """What the code printed just before the kernel died, and may be why, is on its way still."""
        if self._channels is not None:
            await asyncio.wait([self._channels.iopub.gone, self._channels.shell.gone], timeout=LAST_WORDS)

    def _request(
        self,
        channel: str,
        msg_type: str,
        content: dict[str, Any],
        receiver: Receiver | None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        if self._codec is None or self._channels is None:
            raise KernelNotReady(self.failure or "the kernel is restarting")
        msg_id = secrets.token_hex(16)
        if receiver is not None:
            self._receivers[msg_id] = receiver
            while len(self._receivers) > REMEMBERED:
                self._receivers.popitem(last=False)
        date = datetime.fromtimestamp(time.time(), UTC).isoformat()
        frames = self._codec.encode(msg_type, content, msg_id=msg_id, date=date, metadata=metadata)
        try:
            (self._channels.shell if channel == "shell" else self._channels.control).send(frames)
        except zmq.Again:
            raise KernelNotReady("the kernel does not read its requests") from None
        return msg_id

    def _on_shell(self, frames: list[bytes]) -> None:
        if (message := self._decode(frames)) and (receiver := self._receivers.get(message.parent_id)):
            receiver.receive_reply(message)

    def _on_iopub(self, frames: list[bytes]) -> None:
        if (message := self._decode(frames)) and (receiver := self._receivers.get(message.parent_id)):
            receiver.receive_iopub(message)

    def _decode(self, frames: list[bytes]) -> Message | None:
        if self._codec is None:
            return None
        try:
            return self._codec.decode(frames)
        except ProtocolError as error:
            log.warning("message dropped", extra={"reason": str(error)})
            return None

    def _lost(self, reason: str) -> None:
        log.warning("kernel lost", extra={"reason": reason})
        self._on_loss(reason)


class _Once:
    """Receives the answers to a request of our own."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.replied: asyncio.Future[None] = loop.create_future()
        self.heard: asyncio.Future[None] = loop.create_future()
        self.error = ""

    def receive_reply(self, message: Message) -> None:
        if message.content.get("status") == "error":
            self.error = str(message.content.get("evalue"))[:200]
        if not self.replied.done():
            self.replied.set_result(None)

    def receive_iopub(self, message: Message) -> None:
        if not self.heard.done():
            self.heard.set_result(None)


async def _first(wanted: asyncio.Future[Any], died: asyncio.Future[int], timeout: float | None = None) -> None:
    """Waits for `wanted`; raises `KernelNotReady` if the kernel dies first, `TimeoutError` after `timeout` seconds."""
    done, _ = await asyncio.wait({wanted, died}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    if wanted in done:
        return
    if died in done:
        raise KernelNotReady(describe_death(died.result()))
    raise TimeoutError
