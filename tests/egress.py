"""What the tests of the egress proxy share: a resolver and a judge of their own, an outside world, and raw requests."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trustme

from kernelpool.egress.addresses import Address
from kernelpool.egress.addresses import judge as real_judge
from kernelpool.egress.decisions import Decision
from kernelpool.egress.doors import listen_in
from kernelpool.egress.policy import EgressPolicy
from kernelpool.egress.proxy import Proxy, ProxyLimits

LOOPBACK = ipaddress.IPv4Address("127.0.0.1")


class Names:
    """A resolver: each name has its answers, one after the other; the last one stays."""

    def __init__(self, **answers: Sequence[str]) -> None:
        self._answers = {name.replace("_", "."): list(found) for name, found in answers.items()}
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        self.asked.append(host)
        found = self._answers.get(host, [])
        if not found:
            raise OSError("not found")
        text = found.pop(0) if len(found) > 1 else found[0]
        return [ipaddress.ip_address(word) for word in text.split()]


def loopback_is_public(address: Address) -> str | None:
    """The outside world of the tests is on loopback; for all else the real judge judges."""
    return None if address == LOOPBACK else real_judge(address)


class Door:
    """A sandbox's way into a proxy, as code in the sandbox would use it."""

    def __init__(self, path: Path, told: list[Decision]) -> None:
        self.path = path
        self.told = told

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self.path))

    async def ask(self, data: bytes, *, end: bool = False) -> bytes:
        """All that comes back."""
        reader, writer = await self.connect()
        try:
            writer.write(data)
            if end:
                writer.write_eof()
            async with asyncio.timeout(20):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    @property
    def outcomes(self) -> list[str]:
        return [decision.outcome.value for decision in self.told if not decision.over]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)


@asynccontextmanager
async def door_of(
    *domains: str,
    names: Names | None = None,
    judge: Callable[[Address], str | None] = loopback_is_public,
    limits: ProxyLimits | None = None,
) -> AsyncIterator[Door]:
    told: list[Decision] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "egress.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(64)
        async with Proxy(names or Names(), judge, told.append, limits) as proxy:
            await proxy.open("box", EgressPolicy.of(domains), listener)
            yield Door(path, told)


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


class Outside:
    """A server in the outside world: keeps what it was sent, and answers."""

    def __init__(self, answer: bytes, tls: ssl.SSLContext | None, *, after_end: bool = False) -> None:
        """`after_end`: it answers when all has been said to it, and not before."""
        self._after_end = after_end
        self.port = 0
        self.heard: list[bytes] = []
        self.connections = 0
        self._answer = answer
        self._tls = tls

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[Outside]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heard.append(head)
            if self._after_end:
                self.heard[-1] += await reader.read()
            writer.write(self._answer)
            await writer.drain()
            writer.write_eof() if writer.can_write_eof() else None
            while more := await reader.read(65536):
                self.heard[-1] += more
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()


def outside(
    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", tls: ssl.SSLContext | None = None
) -> Outside:
    return Outside(answer, tls)


def certificates(*names: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


class InProcess:
    """A `DoorKeeper` whose proxy is in the test's own process, with the test's resolver and judge."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.opened: dict[str, EgressPolicy] = {}

    async def open(self, sandbox: str, pool: str, policy: EgressPolicy, folder: Path, owner: int | None) -> None:
        self.opened[sandbox] = policy
        await self._proxy.open(sandbox, policy, await asyncio.to_thread(listen_in, folder, owner))

    async def close(self, sandbox: str) -> None:
        await self._proxy.close(sandbox)
