"""`make bench`: measures side by side in one run, checks every answer, prints a table of medians and ratios.

Absolute figures are those of the machine and of the minute; the ratios are what can be compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.crowd import slow_crowd
from benchmarks.jupyter import jupyter
from benchmarks.kernels import OURS, STOCK, running_kernel
from benchmarks.memory import Peak, cpu_seconds, processes_named, pss
from benchmarks.peers import KERNEL_GATEWAY, running_peer
from benchmarks.rest import Client, Gateway, new_identifier, running_gateway

STATE = Path(f"/var/tmp/kernelpool-bench-{os.getuid()}")
READY = 3
OTHERS = {"node": {"runtime": "node", "ready": 1, "max_sessions": 2}}
ROUNDS = 10
CALLS = 20
CROWD = 1000
CROWD_CALLS = 250
MB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--state", type=Path, default=STATE, help="where runtime trees and peers are kept")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the file of the transfer rows")
    options = parser.parse_args()
    options.state.mkdir(parents=True, exist_ok=True)
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    limits = {"workspace": "2Gi", "memory": "3Gi"}
    with running_gateway(options.state, OTHERS, ready=READY, limits=limits) as gateway:
        gateway.wait_warm(READY)
        latency(gateway, options.state)
        jupyter(gateway, options.state)
        throughput(gateway)
        memory(gateway)
        crowd(gateway)
        files(gateway, int(options.gigabytes * (1 << 30)))


# --- latency


class Row:
    """One way to run `1+1`-like code, with its times in milliseconds."""

    def __init__(self, name: str, call: Callable[[int], object]) -> None:
        self.name = name
        self._call = call
        self.times: list[float] = []

    def measure(self, number: int) -> None:
        began = time.perf_counter()
        got = self._call(number)
        self.times.append((time.perf_counter() - began) * 1000)
        if str(got) != str(number + 1):
            raise AssertionError(f"{self.name}: {number}+1 was {got!r}")

    @property
    def p50(self) -> float:
        return statistics.median(self.times)

    @property
    def p99(self) -> float:
        return sorted(self.times)[int(len(self.times) * 0.99)]


def latency(gateway: Gateway, state: Path) -> None:
    with ExitStack() as stack:
        ours = stack.enter_context(running_kernel(OURS))
        stock = stack.enter_context(running_kernel(STOCK))
        server = stack.enter_context(running_peer(state, KERNEL_GATEWAY))
        peer = stack.enter_context(server.connected(server.create()))
        peer.execute("1")
        client, warm = gateway.client(), new_identifier()
        client.execute(warm, "state = 0")
        node = gateway.client("node")
        node.execute(warm, "state = 0")
        gateway.wait_warm(READY)

        def rest(number: int) -> object:
            # State is checked too: each answer needs what the last call left.
            return client.execute(warm, f"state = {number}; state + 1")

        rows = [
            Row("a  our kernel, straight over ZMQ", lambda n: ours.execute(f"state = {n}; state + 1")),
            Row("b  stock ipykernel, straight over ZMQ", lambda n: stock.execute(f"state = {n}; state + 1")),
            Row("c  kernelpool, POST /executions, warm session", rest),
            Row("n  the same, of a Node.js session", lambda n: node.execute(warm, f"state = {n}; state + 1")),
            Row("e  jupyter-kernel-gateway, WebSocket", lambda n: peer.execute(f"state = {n}; state + 1")),
            Row(
                "s  kernelpool, a shell command, warm session",
                lambda n: client.shell(warm, f"echo $(({n} + 1))").strip(),
            ),
            *(_tool_row(client, warm, version) for version in ("2025-11-25", "2026-07-28")),
        ]
        for _ in range(ROUNDS):
            for row in rows:
                for number in range(CALLS):
                    row.measure(number)
        first = Row(
            "d  kernelpool, first call of a new identifier", lambda n: client.execute(new_identifier(), f"{n}+1")
        )
        again = Row("c' warm, measured beside d", lambda n: client.execute(warm, f"{n}+1"))
        for number in range(CALLS):
            gateway.wait_warm(READY)
            first.measure(number)
            gateway.wait_warm(READY)
            again.measure(number)
    a, b, c, n, e, shell, *tools = rows
    print("| `1+1` | p50 ms | p99 ms |\n|---|---|---|")
    for row in (a, b, c, n, first, again, e, shell, *tools):
        print(f"| {row.name} | {row.p50:.1f} | {row.p99:.1f} |")
    print(
        f"\nc/a {c.p50 / a.p50:.2f} (target: 2) · c-b {c.p50 - b.p50:+.1f} ms (3) · c/e {c.p50 / e.p50:.2f} (0.2) · "
        f"d/c' {first.p50 / again.p50:.2f} (2)\n"
    )


def _tool_row(client: Client, identifier: str, version: str) -> Row:
    name = f"m  kernelpool, MCP tools/call in {version}, warm session"
    return Row(name, lambda n: client.tool(identifier, f"state = {n}; state + 1", version))


# --- throughput


def throughput(gateway: Gateway) -> None:
    print("| sessions at once | calls per second | gateway CPU ms per call |\n|---|---|---|")
    for sessions in (1, 8, 32):
        identifiers = [new_identifier() for _ in range(sessions)]
        for identifier in identifiers:
            gateway.client().execute(identifier, "n = 0")
        gateway.wait_warm(READY)
        calls = max(20, 400 // sessions)
        before, began = cpu_seconds(gateway.pid), time.perf_counter()
        _in_threads([partial(_count, gateway, identifier, calls) for identifier in identifiers])
        seconds, cpu = time.perf_counter() - began, cpu_seconds(gateway.pid) - before
        total = calls * sessions
        print(f"| {sessions} | {total / seconds:.0f} | {1000 * cpu / total:.2f} |")
        for identifier in identifiers:
            gateway.client().request("DELETE", "/session", identifier)
    print()


def _count(gateway: Gateway, identifier: str, calls: int) -> None:
    client = gateway.client()
    for number in range(1, calls + 1):
        if (got := client.execute(identifier, "n += 1; n")) != number:
            raise AssertionError(f"state of {identifier}: {got} instead of {number}")
    client.close()


def _in_threads(works: list[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# --- memory


def memory(gateway: Gateway) -> None:
    gateway.wait_warm(READY)
    sandboxes = gateway.sandbox_pids()
    each = statistics.median(pss(pids) for pids in sandboxes)
    print(f"PSS of an idle session, data stack loaded (median of {len(sandboxes)}): {each / MB:.0f} MB\n")


# --- a crowd beside


def crowd(gateway: Gateway) -> None:
    """Turn by turn, so that what else the machine does hits both."""
    client, identifier = gateway.client(), new_identifier()
    client.execute(identifier, "state = 0")
    alone = Row("alone", lambda n: client.execute(identifier, f"{n} + 1"))
    beside = Row(f"beside {CROWD} slow connections", lambda n: client.execute(identifier, f"{n} + 1"))
    for _ in range(4):
        for number in range(CROWD_CALLS):
            alone.measure(number)
        with slow_crowd(gateway.port, CROWD):
            for number in range(CROWD_CALLS):
                beside.measure(number)
    print("| a warm session | p50 ms | p99 ms |\n|---|---|---|")
    for row in (alone, beside):
        print(f"| {row.name} | {row.p50:.1f} | {row.p99:.1f} |")
    print(f"\np99 beside the crowd / alone: {beside.p99 / alone.p99:.2f}\n")


# --- files


def files(gateway: Gateway, size: int) -> None:
    client, identifier = gateway.client(), new_identifier()
    print("| file | upload MB/s | download MB/s | gateway grows by MB | agent grows by MB |\n|---|---|---|---|---|")
    for bytes_ in (size // 16, size):
        client.execute(identifier, "1")
        gateway.wait_warm(READY)
        agent = _agent_of(client, identifier, gateway)
        with Peak(gateway.pid) as ours, Peak(agent) as theirs:
            began = time.perf_counter()
            _upload(client, identifier, bytes_)
            uploaded = time.perf_counter()
            received = client.stream("GET", "/files/big.bin/content", identifier)
            downloaded = time.perf_counter()
        if received != bytes_:
            raise AssertionError(f"{received} of {bytes_} bytes came back")
        up, down = bytes_ / MB / (uploaded - began), bytes_ / MB / (downloaded - uploaded)
        print(f"| {bytes_ / MB:.0f} MB | {up:.0f} | {down:.0f} | {ours.growth / MB:.0f} | {theirs.growth / MB:.0f} |")


def _agent_of(client: Client, identifier: str, gateway: Gateway) -> int:
    """The host's pid of the session's agent."""
    client.execute(identifier, "1")
    pids = gateway.sandbox_pids(client.sandbox)[0]
    return next(processes_named(pids, "--listen\0fd:"))


def _upload(client: Client, identifier: str, size: int) -> None:
    boundary = "benchmark"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="big.bin"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    tail = f"\r\n--{boundary}--\r\n".encode()

    def parts() -> object:
        yield head
        chunk, left = os.urandom(MB), size
        while left > 0:
            yield chunk[: min(MB, left)]
            left -= MB
        yield tail

    headers = {
        "Content-Type": f"multipart/form-data; boundary={boundary}",
        "Content-Length": str(len(head) + size + len(tail)),
    }
    client.request("POST", "/files", identifier, parts(), **headers)


if __name__ == "__main__":
    main()
