"""The sandbox's kernel: kept alive, connected, warmed up. Messages are routed to the execution that they name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Collection
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

import zmq

from kernelpool.agent.channels import Channels
from kernelpool.agent.process import KernelProcess, describe_death, start_kernel
from kernelpool.models import AgentConfig
from kernelpool.protocol.framing import WireMessage, read_head
from kernelpool.protocol.messages import MAX_HEADER, Codec, Message, ProtocolError

log = logging.getLogger(__name__)

START_TIMEOUT = 60.0
KNOCK_INTERVAL = 0.1
REMEMBERED = 1000
"""Executions whose late output still finds its way home."""
MAX_BACKOFF = 10.0
SUBSHELLS_ON_CONTROL = "kernelpool: subshells on control"
"""A feature of our Python kernel: requests to subshells go to control, for it reads the shell only when not busy."""
MAX_HELD = 64 << 20
"""Bytes of messages that wait for a kernel to come up."""
LAST_WORDS = 2.0
"""Seconds at most to read what a kernel that has died had sent before."""


class Receiver(Protocol):
    """What an execution looks like from here."""

    def receive_reply(self, message: Message) -> None: ...

    def receive_iopub(self, message: Message) -> None: ...


class Listener(Protocol):
    """Who hears how the kernel fares."""

    def ready(self) -> None:
        """A kernel has come up."""

    def heard(self, channel: str, message: Message) -> None:
        """A kernel that has come up said something."""

    def lost(self, reason: str) -> None:
        """Interpreter state is lost: the kernel that was ready is no more. Once for each."""

    def failed(self, reason: str) -> None:
        """No kernel comes up. It is tried again."""


class KernelNotReady(Exception):
    """The kernel did not come up; the text says why."""


class Kernel:
    """Supervises one kernel at a time; a new one is started whenever one ends."""

    def __init__(self, config: AgentConfig, listener: Listener) -> None:
        self._config = config
        self._listener = listener
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._session = secrets.token_hex(16)
        self._receivers: OrderedDict[str, Receiver] = OrderedDict()
        self._process: KernelProcess | None = None
        self._channels: Channels | None = None
        self._codec: Codec | None = None
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._restart_reason: str | None = None
        self._is_up = False  # what it says is told
        self._held: dict[str, WireMessage] = {}
        self.restarts = 0
        self.losses = 0
        """Kernels that were ready and ended."""
        self.info: dict[str, Any] | None = None
        """What the kernel said of itself when it was last asked."""
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

    def has(self, feature: str) -> bool:
        """Whether it names it among its supported features."""
        features = (self.info or {}).get("supported_features")
        return isinstance(features, list) and feature in features

    @property
    def held(self) -> Collection[str]:
        """Ids of clients' messages that wait for the next kernel."""
        return self._held

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

    def forward(self, message: WireMessage, receiver: Receiver | None = None) -> str:
        """Hands a client's message on as it is, when the kernel is ready. Returns what `forget` wants to know. Raises
        `KernelNotReady` when it does not read, or too much waits for it."""
        msg_id = read_head(message.header).msg_id
        if receiver is not None:
            if msg_id in self._receivers:
                raise KernelNotReady("a message with this msg_id is on its way already")
            self._remember(msg_id, receiver)
        if self._is_up and self.is_ready:  # not while it is about to be killed
            self._forward(message)
        elif sum(held.size for held in self._held.values()) + message.size > MAX_HELD:
            raise KernelNotReady("the kernel is restarting, and too much waits for it")
        else:
            self._held[msg_id] = message
        return msg_id

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
        self.restart_soon(reason)
        if self._process is not None:
            await self._process.kill()

    def restart_soon(self, reason: str) -> None:
        """As `restart`, but without waiting for its end."""
        if self._process is not None and self._process.is_alive:
            self._restart_reason = reason
            self.restarts += 1
            self._ready.clear()
            self._process.kill_soon()

    async def _supervise(self) -> None:
        backoff = 0.1
        while True:
            process = None
            try:
                process = start_kernel(self._config)
                await self._bring_up(process)
                self.failure, backoff = None, 0.1
                self._come_up()
                code = await asyncio.shield(process.died)
                self._ready.clear()
                await self._hear_last_words()
                self._lost(self._restart_reason or describe_death(code))
            except (KernelNotReady, OSError, TimeoutError, zmq.ZMQError) as error:
                self.failure = str(error) or "the kernel did not answer"
                log.warning("kernel did not start", extra={"reason": self.failure})
                self._held.clear()
                self._listener.failed(self.failure)
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, MAX_BACKOFF)
            finally:
                self._ready.clear()
                self._is_up = False
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
            on_stdin=partial(self._on_other, "stdin"),
            on_control=partial(self._on_other, "control"),
        )
        async with asyncio.timeout(START_TIMEOUT):
            await self._knock(process)
            await _first(self._channels.stdin.connected, process.died)  # or nobody would be asked for the first input
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

        if once.info is not None:
            self.info = once.info

    def _come_up(self) -> None:
        self._ready.set()
        self._is_up = True
        self._listener.ready()
        held, self._held = self._held, {}
        for message in held.values():
            with contextlib.suppress(KernelNotReady):
                self._forward(message)

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
            self._remember(msg_id, receiver)
        date = datetime.fromtimestamp(time.time(), UTC).isoformat()
        frames = self._codec.encode(msg_type, content, msg_id=msg_id, date=date, metadata=metadata)
        self._send(channel, frames)
        return msg_id

    def _remember(self, msg_id: str, receiver: Receiver) -> None:
        self._receivers[msg_id] = receiver
        while len(self._receivers) > REMEMBERED:
            self._receivers.popitem(last=False)

    def _forward(self, message: WireMessage) -> None:
        if self._codec is None:
            raise KernelNotReady("the kernel is restarting")
        parts = (message.header, message.parent_header, message.metadata, message.content)
        self._send(message.channel, self._codec.sign(parts, message.buffers))

    def _send(self, channel: str, frames: list[bytes]) -> None:
        if self._channels is None:
            raise KernelNotReady("the kernel is restarting")
        try:
            self._channels.send(channel, frames)
        except zmq.Again:
            raise KernelNotReady("the kernel does not read its requests") from None

    def _on_shell(self, frames: list[bytes]) -> None:
        if message := self._decode(frames):
            # First who is told, then who may end by it and say more.
            self._tell("shell", message)
            if receiver := self._receivers.get(message.parent_id):
                receiver.receive_reply(message)

    def _on_iopub(self, frames: list[bytes]) -> None:
        if message := self._decode(frames):
            receiver = self._receivers.get(message.parent_id)
            # It was knocked at more often than once: that it answers the rest of it, too, is of nobody's interest.
            if not isinstance(receiver, _Once):
                self._tell("iopub", message)
            if receiver is not None:
                receiver.receive_iopub(message)

    def _on_other(self, channel: str, frames: list[bytes]) -> None:
        if message := self._decode(frames):
            self._tell(channel, message)

    def _tell(self, channel: str, message: Message) -> None:
        if self._is_up:
            self._listener.heard(channel, message)

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
        self._is_up = False
        self.losses += 1
        self._listener.lost(reason)


class _Once:
    """Receives the answers to a request of our own."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.replied: asyncio.Future[None] = loop.create_future()
        self.heard: asyncio.Future[None] = loop.create_future()
        self.error = ""
        self.info: dict[str, Any] | None = None

    def receive_reply(self, message: Message) -> None:
        if message.msg_type == "kernel_info_reply" and len(message.parts[3]) < MAX_HEADER:
            self.info = message.content
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
