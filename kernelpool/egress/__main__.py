"""The proxy's own process: `python -m kernelpool.egress`, with the gateway at the other end of its stdin.

Stdin is a socket of whole messages. Orders come in, a listener with each that opens a door; decisions go out. It ends
with its gateway. It gives up root and the means to get any right back before it reads the first order.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import resource
import signal
import socket
import sys
import threading
from typing import Any, Final

from kernelpool.egress.addresses import judge
from kernelpool.egress.decisions import MAX_MESSAGE, Decision
from kernelpool.egress.ledger import Ledger
from kernelpool.egress.policy import EgressPolicy
from kernelpool.egress.proxy import Proxy, ProxyLimits, readable
from kernelpool.egress.resolver import STACK, SystemResolver

_NOBODY: Final = 65534
_FILES: Final = 16384
_MEMORY: Final = 1 << 30
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38


def main() -> int:
    logging.basicConfig(level=logging.WARNING)
    gateway = socket.socket(fileno=os.dup(0))
    limits = confine()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.stack_size(STACK)
    asyncio.run(serve(gateway, limits))
    return 0


def confine() -> ProxyLimits:
    """What follows reads what strangers send."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _FILES if most == resource.RLIM_INFINITY else min(_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    os.chdir("/")
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
    return ProxyLimits(total=min(ProxyLimits().total, files // 4))


async def serve(gateway: socket.socket, limits: ProxyLimits) -> None:
    """Until the gateway is gone."""
    gateway.setblocking(False)

    def send(decision: Decision) -> bool:
        # Never waits: a gateway that does not read must not hold up what it lets through.
        with contextlib.suppress(OSError):
            return gateway.send(decision.to_json()) > 0
        return False

    ledger = Ledger(send)
    async with Proxy(SystemResolver(), judge, ledger.tell, limits) as proxy:
        while (order := await _receive(gateway)) is not None:
            values, files = order
            if "open" in values:
                policy = EgressPolicy.of(values["domains"])
                await proxy.open(values["open"], policy, socket.socket(fileno=files[0]))
            else:
                await proxy.close(values["close"])
                ledger.forget(values["close"])


async def _receive(gateway: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next order; None at the end."""
    await readable(gateway)
    try:
        data, files, _, _ = socket.recv_fds(gateway, MAX_MESSAGE, 1)
    except ConnectionError:
        return None
    return (json.loads(data), list(files)) if data else None


if __name__ == "__main__":
    sys.exit(main())
