"""The Jupyter surface beside jupyter-kernel-gateway and jupyter_server: a cell, a new kernel, ten megabytes of output.

One client and one framing for all three, turn by turn. Where the others drop output by default, that is turned off.
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.peers import JUPYTER_SERVER, KERNEL_GATEWAY, JupyterKernel, JupyterServer, running_peer
from benchmarks.rest import Gateway

ROUNDS = 10
CALLS = 20
CREATIONS = 8
LARGE = 7
OUTPUT = 10_000_000
READY = 3


def jupyter(gateway: Gateway, state: Path) -> None:
    """Prints a table, checks every answer."""
    with ExitStack() as stack:
        servers = {
            "kernelpool": JupyterServer(gateway.port),
            "jupyter-kernel-gateway": stack.enter_context(running_peer(state, KERNEL_GATEWAY)),
            "jupyter_server": stack.enter_context(running_peer(state, JUPYTER_SERVER)),
        }
        kernels = {name: stack.enter_context(server.connected(server.create())) for name, server in servers.items()}
        cells = _cells(kernels)
        created = _creations(servers, gateway)
        large = _large(kernels)
    print("| over Jupyter's WebSocket, p50 ms | `1+1` | new kernel, until `1+1` | 10 MB of output |\n|---|---|---|---|")
    for name in servers:
        print(f"| {name} | {cells[name]:.1f} | {created[name]:.0f} | {large[name]:.0f} |")
    print()


def _cells(kernels: dict[str, JupyterKernel]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in kernels}
    for kernel in kernels.values():
        kernel.execute("1")
    for _ in range(ROUNDS):
        for name, kernel in kernels.items():
            for number in range(CALLS):
                times[name].append(_timed(kernel, f"state = {number}; state + 1", str(number + 1)))
    return _medians(times)


def _creations(servers: dict[str, JupyterServer], gateway: Gateway) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(CREATIONS):
        for name, server in servers.items():
            gateway.wait_warm(READY)  # and quiet, whose turn it ever is
            began = time.perf_counter()
            id = server.create()
            with server.connected(id) as kernel:
                _timed(kernel, "1 + 1", "2")
                times[name].append((time.perf_counter() - began) * 1000)
            server.delete(id)
    return _medians(times)


def _large(kernels: dict[str, JupyterKernel]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in kernels}
    code = f"for _ in range(10): print('x' * {OUTPUT // 10 - 1}, flush=True)"
    for _ in range(LARGE):
        for name, kernel in kernels.items():
            times[name].append(_timed(kernel, code, str(OUTPUT)))
    return _medians(times)


def _timed(kernel: JupyterKernel, code: str, expected: str) -> float:
    began = time.perf_counter()
    if (got := kernel.execute(code)) != expected:
        raise AssertionError(f"{kernel}: {code!r} was {got[:100]!r}")
    return (time.perf_counter() - began) * 1000


def _medians(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(each) for name, each in times.items()}
