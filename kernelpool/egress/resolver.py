"""What names stand for, as this host resolves them: in threads, so many at a time."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from kernelpool.egress.addresses import Address

_THREADS: Final = 64
STACK: Final = 1 << 20
"""Bytes of stack that each of them needs at most; what is usual would be half of the process's memory."""


class Resolver(Protocol):
    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        """The best first; empty when there is none. Raises `OSError`. Takes as long as it takes."""


class SystemResolver:
    """Its threads cannot be stopped; the system's resolver gives up by itself."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "resolve")

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        # As bytes, for which Python loads no codec: the files of that may be out of reach by now.
        return list(await asyncio.get_running_loop().run_in_executor(self._threads, _lookup, host.encode(), port))


def _lookup(host: bytes, port: int) -> dict[Address, None]:
    """Each once, in the system's order."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return {ipaddress.ip_address(where[0]): None for *_, where in found}
