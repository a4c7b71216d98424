"""Accepting connections: no more than may be, at once or from one client, and without spinning when files run out."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from kernelpool.api.refusals import refusal
from kernelpool.errors import TooManyConnections
from kernelpool.network import Network, client_key, is_within, parse_address

log = logging.getLogger(__name__)

AT_ONCE = 64
"""Connections accepted before the event loop does something else."""
RETRY_SECONDS = 0.2
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_MANY_FILES = 1 << 20


def raise_file_limit() -> int:
    """Lets the process open as many files as it may, and returns how many that are. Few systems start it so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MANY_FILES if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _MANY_FILES if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return soft
    return wanted


class Crowd:
    """Who is connected. Trusted proxies speak for many, so only the limit for all counts for them."""

    def __init__(self, most: int, most_of_one: int, trusted: Sequence[Network] = ()) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._trusted = trusted
        self._connected: Counter[str] = Counter()
        self._total = 0

    def __len__(self) -> int:
        return self._total

    def add(self, peer: str) -> None:
        """Raises `TooManyConnections`."""
        key = client_key(peer)
        if self._total >= self._most:
            raise TooManyConnections(f"the gateway has {self._most} connections, which is its limit")
        if self._connected[key] >= self._most_of_one and not is_within(parse_address(peer), self._trusted):
            raise TooManyConnections(f"{key} has {self._most_of_one} connections, which is the limit for one client")
        self._total += 1
        self._connected[key] += 1

    def discard(self, peer: str) -> None:
        key = client_key(peer)
        self._total -= 1
        self._connected[key] -= 1
        if not self._connected[key]:
            del self._connected[key]


class Listener:
    """Accepts on one socket, and hands on whom the crowd takes."""

    def __init__(
        self, listening: socket.socket, crowd: Crowd, welcome: Callable[[socket.socket, Any], None], *, speaks_tls: bool
    ) -> None:
        self._socket = listening
        self._crowd = crowd
        self._welcome = welcome
        self._speaks_tls = speaks_tls
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(listening, self._accept)

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, address = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._rest(error)
                return
            connection.setblocking(False)
            self._admit(connection, address)

    def _rest(self, error: OSError) -> None:
        """The connection stays in the kernel's line, and would wake us again at once."""
        if error.errno not in _SHORTAGES:
            raise error
        log.error("no connection can be accepted", extra={"why": error.strerror, "connections": len(self._crowd)})
        self._loop.remove_reader(self._socket)
        self._pause = self._loop.call_later(RETRY_SECONDS, self._loop.add_reader, self._socket, self._accept)

    def _admit(self, connection: socket.socket, address: Any) -> None:
        peer = address[0] if isinstance(address, tuple) else ""
        try:
            self._crowd.add(peer)
        except TooManyConnections as error:
            log.info("connection refused", extra={"client": peer, "why": error.message})
            if not self._speaks_tls:
                with contextlib.suppress(OSError):
                    connection.send(refusal(error))
            connection.close()
            return
        try:
            self._welcome(connection, address)
        except OSError as error:  # it has gone already
            log.info("connection lost", extra={"client": peer, "why": str(error)})
            connection.close()
            self._crowd.discard(peer)
