"""The forward proxy: one door a sandbox, and each knows who comes through it and where he may go.

A name on the list is resolved here, every address is judged, and exactly the judged one is connected to: there is no
second lookup that could say something else. In a tunnel, TLS must ask for the name that the tunnel was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Final, Self

import h11

from kernelpool.egress.addresses import Address, Judge
from kernelpool.egress.client_hello import UNRECOGNIZED_NAME, NotTls, looks_like_tls, server_name
from kernelpool.egress.decisions import Decision, Outcome, Refused
from kernelpool.egress.exchange import MAX_HEAD, Exchange, Streams, read_request
from kernelpool.egress.flow import CHUNK, Flow, FlowLimits
from kernelpool.egress.policy import EgressPolicy, host_name
from kernelpool.egress.resolver import Resolver
from kernelpool.egress.target import Target, target_of

log = logging.getLogger(__name__)

TLS_PORT: Final = 443
_PAUSE: Final = 0.5
_LAST_SECONDS: Final = 2.0
_LAST_READS: Final = 16
_ADDRESSES: Final = 4
"""Of one name that are tried, one after the other."""


@dataclass(frozen=True, slots=True)
class ProxyLimits:
    """Of one sandbox, but for `total`."""

    connections: int = 64
    """At the same time; more wait unaccepted."""
    lookups: int = 4
    """At the same time, those included that nobody waits for any more."""
    lookup: float = 10.0
    """Seconds for the addresses of a name."""
    total: int = 4096
    """Connections of all sandboxes together. One may have no more than are still free, so that none takes them all."""
    head: float = 15.0
    """Seconds for the head of a request, or of TLS."""
    connect: float = 10.0
    """Seconds for one address."""
    flow: FlowLimits = field(default_factory=FlowLimits)


class Proxy:
    """An async context manager. `judge` and `resolver` are what tests put their own in the place of."""

    def __init__(
        self, resolver: Resolver, judge: Judge, tell: Callable[[Decision], None], limits: ProxyLimits | None = None
    ) -> None:
        self.resolver = resolver
        self.judge = judge
        self.tell = tell
        self.limits = limits or ProxyLimits()
        self.visits = 0
        self._doors: dict[str, Door] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sandbox in list(self._doors):
            await self.close(sandbox)

    async def open(self, sandbox: str, policy: EgressPolicy, listener: socket.socket) -> None:
        """Serves what comes in by the listener, which it owns from now on. In the place of an earlier one."""
        await self.close(sandbox)
        listener.setblocking(False)
        self._doors[sandbox] = Door(self, sandbox, policy, listener)

    async def close(self, sandbox: str) -> None:
        """With all connections of it."""
        if (door := self._doors.pop(sandbox, None)) is not None:
            await door.aclose()


async def readable(descriptor: socket.socket) -> None:
    """Waits, and may be cancelled without loss, which `sock_accept` and its like may not."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


class Door:
    """Where one sandbox comes in."""

    def __init__(self, proxy: Proxy, sandbox: str, policy: EgressPolicy, listener: socket.socket) -> None:
        self._proxy = proxy
        self._sandbox = sandbox
        self._policy = policy
        self._listener = listener
        self._slots = asyncio.Semaphore(proxy.limits.connections)
        self._lookups = asyncio.Semaphore(proxy.limits.lookups)
        self._visits: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept(), name=f"egress of {sandbox}")

    async def aclose(self) -> None:
        tasks = {self._accepting, *self._visits}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._listener.close()

    async def _accept(self) -> None:
        while True:
            async with self._slots:  # there is one; who takes it, takes it below
                await readable(self._listener)
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:  # no descriptor is free
                log.warning("egress: nothing can be accepted: %s", error)
                await asyncio.sleep(_PAUSE)
                continue
            await self._slots.acquire()  # at once: nobody else takes any
            self._proxy.visits += 1
            is_welcome = len(self._visits) < self._proxy.limits.total - self._proxy.visits
            visit = asyncio.create_task(self._visit(connection, is_welcome=is_welcome))
            self._visits.add(visit)
            visit.add_done_callback(partial(self._left, connection))

    def _left(self, connection: socket.socket, visit: asyncio.Task[None]) -> None:
        """A visit that was cancelled before it began has closed nothing."""
        connection.close()
        self._visits.discard(visit)
        self._proxy.visits -= 1
        self._slots.release()
        if not visit.cancelled() and (error := visit.exception()) is not None:
            log.error("egress: a connection failed", extra={"sandbox": self._sandbox}, exc_info=error)

    async def _visit(self, connection: socket.socket, *, is_welcome: bool) -> None:
        async with AsyncExitStack() as stack:
            inside = await _streams(stack, connection)
            try:
                if not is_welcome:
                    raise Refused(503, Outcome.BUSY, "the proxy has too many connections; try again later")
                await self._serve(stack, inside)
            except Refused as refused:
                self._tell(refused.outcome, refused.host, refused.port, why=refused.why)
                with contextlib.suppress(OSError, TimeoutError):
                    await _say(refusal(refused), *inside)
            except (OSError, TimeoutError):
                pass  # it left

    async def _serve(self, stack: AsyncExitStack, inside: Streams) -> None:
        ours = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        try:
            async with asyncio.timeout(self._proxy.limits.head):
                request = await read_request(ours, inside[0])
        except h11.RemoteProtocolError:
            raise Refused(400, Outcome.BAD_REQUEST, "this is no request that HTTP/1.1 allows") from None
        except TimeoutError:
            raise Refused(408, Outcome.BAD_REQUEST, "the request did not come in time") from None
        if request is None:
            return
        target = target_of(request)
        outside, address = await self._connect(stack, target)
        flow = Flow(self._proxy.limits.flow)
        self._tell(Outcome.ALLOWED, target.host, target.port, address=str(address))
        try:
            if target.path is None:
                await Tunnel(flow, self._proxy.limits.head).run(target, ours.trailing_data[0], inside, outside)
            else:
                await Exchange(ours, inside, outside, flow).run(request, target)
        except (OSError, TimeoutError):
            pass  # one side broke off, or was too slow: it is over, as is told below
        except Refused as refused:
            self._tell(refused.outcome, target.host, target.port, address=str(address), why=refused.why)
        except h11.ProtocolError as error:
            self._tell(Outcome.FAILED, target.host, target.port, address=str(address), why=str(error)[:200])
        finally:
            done = Decision(
                self._sandbox, Outcome.ALLOWED, target.host, target.port, str(address), "", True, flow.sent,
                flow.received, round(flow.seconds, 3),
            )  # fmt: skip
            self._proxy.tell(done)

    async def _connect(self, stack: AsyncExitStack, target: Target) -> tuple[Streams, Address]:
        """Raises `Refused`."""
        host, port = target.host, target.port
        if not self._policy.allows(host, port):
            why = f"{host[:100]} at port {port} is not among the domains that this session may reach"
            raise Refused(403, Outcome.REFUSED_NAME, why, host, port)
        try:
            found = await self._look_up(host, port)
        except (OSError, TimeoutError):
            found = ()
        if not found:
            raise Refused(502, Outcome.FAILED, f"{host[:100]} is not found", host, port)
        faults = {address: self._proxy.judge(address) for address in found}
        public = [address for address, fault in faults.items() if fault is None]
        if not public:
            address, fault = next(iter(faults.items()))
            why = f"{host[:100]} stands for {address}, which {fault}"
            raise Refused(403, Outcome.REFUSED_ADDRESS, why, host, port)
        for address in public[:_ADDRESSES]:
            with contextlib.suppress(OSError, TimeoutError):
                return await self._dial(stack, address, port), address
        raise Refused(502, Outcome.FAILED, f"{host[:100]} at port {port} cannot be reached", host, port)

    async def _look_up(self, host: str, port: int) -> Sequence[Address]:
        """Whoever does not wait any more still holds the place until the lookup is over: a thread cannot be stopped,
        and who asks his own slow servers would take them all. Raises `OSError`, `TimeoutError`."""
        async with asyncio.timeout(self._proxy.limits.lookup):
            await self._lookups.acquire()
            looking = asyncio.ensure_future(self._proxy.resolver.resolve(host, port))
            looking.add_done_callback(self._looked_up)
            return await asyncio.shield(looking)

    def _looked_up(self, looking: asyncio.Future[Sequence[Address]]) -> None:
        self._lookups.release()
        if not looking.cancelled():
            looking.exception()  # seen: nobody may be waiting for it any more

    async def _dial(self, stack: AsyncExitStack, address: Address, port: int) -> Streams:
        """To the very address that was judged."""
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(self._proxy.limits.connect):
                await asyncio.get_running_loop().sock_connect(connection, (str(address), port))
        except BaseException:
            connection.close()
            raise
        stack.callback(connection.close)
        return await _streams(stack, connection)

    def _tell(self, outcome: Outcome, host: str, port: int, *, address: str = "", why: str = "") -> None:
        self._proxy.tell(Decision(self._sandbox, outcome, host[:253], port, address, why[:300]))


class Tunnel:
    """What goes through is not looked into, but for the name at its beginning."""

    def __init__(self, flow: Flow, seconds: float) -> None:
        self._flow = flow
        self._seconds = seconds

    async def run(self, target: Target, early: bytes, inside: Streams, outside: Streams) -> None:
        """Raises `Refused`, and what `Flow.tunnel` raises."""
        inside[1].write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            first = await self._first_words(target, early, inside[0]) if target.port == TLS_PORT else early
        except Refused:
            inside[1].write(UNRECOGNIZED_NAME)
            raise
        self._flow.count(sent=len(first))
        outside[1].write(first)
        await self._flow.tunnel(inside, outside)

    async def _first_words(self, target: Target, data: bytes, reader: asyncio.StreamReader) -> bytes:
        """Until the name in them is known to be the right one."""
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    if data and not looks_like_tls(data):
                        raise NotTls("this is no TLS")
                    name = server_name(data) if data else None
                    if name is not None:
                        break
                    if not (more := await reader.read(CHUNK)):
                        raise NotTls("it ended")
                    data += more
        except (NotTls, TimeoutError) as error:
            why = f"port {TLS_PORT} is for TLS: {error or 'no ClientHello came in time'}"
            raise Refused(403, Outcome.REFUSED_TLS, why) from None
        if _normal(name) != target.host:
            raise Refused(403, Outcome.REFUSED_TLS, f"TLS asks for {name[:100]!r} in a tunnel to {target.host[:100]}")
        return data


def _normal(name: str) -> str:
    try:
        return host_name(name)
    except ValueError:
        return ""


def refusal(refused: Refused) -> bytes:
    """The sentence is also the reason phrase, for that is what most clients show of a tunnel that was refused."""
    text = "".join(char if " " <= char <= "~" else "?" for char in refused.why)
    body = f"{text}\n".encode()
    return (
        f"HTTP/1.1 {refused.status} {text}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    ).encode() + body


async def _say(answer: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """And hears the other side out for a moment: what is closed with something unread takes its answer along."""
    async with asyncio.timeout(_LAST_SECONDS):
        writer.write(answer)
        await writer.drain()
        writer.write_eof()
        for _ in range(_LAST_READS):
            if not await reader.read(CHUNK):
                return


async def _streams(stack: AsyncExitStack, connection: socket.socket) -> Streams:
    """Closed with the stack: at once, once what was written is on its way."""
    if connection.family == socket.AF_UNIX:
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=CHUNK)
    else:
        reader, writer = await asyncio.open_connection(sock=connection, limit=CHUNK)

    stack.push_async_callback(_leave, writer)
    return reader, writer


async def _leave(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        async with asyncio.timeout(5.0):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        writer.transport.abort()
