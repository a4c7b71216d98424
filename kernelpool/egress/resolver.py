"""What names stand for, as this host resolves them: in threads, so many at a time, and not for ever."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from kernelpool.egress.addresses import Address

_THREADS: Final = 16
_SECONDS: Final = 10.0


class Resolver(Protocol):
    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        """The best first; empty when there is none. Raises `OSError`, `TimeoutError`."""


class SystemResolver:
    """Its threads cannot be stopped; the system's resolver gives up by itself."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "resolve")

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        async with asyncio.timeout(_SECONDS):
            # As bytes, for which Python loads no codec: the files of that may be out of reach by now.
            found = await asyncio.get_running_loop().run_in_executor(self._threads, _lookup, host.encode(), port)
            return list(found)


def _lookup(host: bytes, port: int) -> dict[Address, None]:
    """Each once, in the system's order."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return {ipaddress.ip_address(where[0]): None for *_, where in found}
