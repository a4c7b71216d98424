"""`python -m benchmarks.backends`: many sessions at once on each backend of this machine, one after the other.

Every answer is checked for its session's own state. Memory is what the machine has less of, all of it: kernels, agents,
what the engine runs beside each container, page tables.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.__main__ import MB, STATE
from benchmarks.memory import available
from benchmarks.rest import Client, Gateway, new_identifier, running_gateway

SESSIONS = 50
ROUNDS = 4
CALLERS = 4

BACKENDS: dict[str, dict[str, Any]] = {
    "bubblewrap": {"backend": "bubblewrap"},
    "Docker, runc": {"backend": "docker"},
    "Docker, runsc (gVisor)": {"backend": "docker", "oci_runtime": "runsc"},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backends", description=__doc__)
    parser.add_argument("--state", type=Path, default=STATE, help="where runtime trees are kept")
    parser.add_argument("--sessions", type=int, default=SESSIONS, help="at the same time")
    parser.add_argument("backends", nargs="*", default=list(BACKENDS), help=f"some of: {', '.join(BACKENDS)}")
    options = parser.parse_args()
    print(
        f"| {options.sessions} sessions at once | ready per second | MB a session | `1+1` in turn p50 ms | p99 ms | "
        "gone in s |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for name in options.backends:
        print(f"| {name} | {' | '.join(measure(options.state, options.sessions, BACKENDS[name]))} |", flush=True)


def measure(state: Path, sessions: int, settings: dict[str, Any]) -> Iterator[str]:
    limits = {"memory": "512Mi", "pids": 128, "workspace": "64Mi"}
    before = available()
    with running_gateway(state, ready=sessions, max_sessions=sessions, limits=limits, **settings) as gateway:
        yield f"{_refill(gateway, sessions):.2f}"
        identifiers = [new_identifier() for _ in range(sessions)]
        with ThreadPoolExecutor(CALLERS) as callers:
            list(callers.map(lambda identifier: gateway.client().execute(identifier, "n = 0"), identifiers))
        yield f"{(before - available()) / sessions / MB:.0f}"
        times = sorted(_rounds(gateway.client(), identifiers))
        yield f"{statistics.median(times):.1f}"
        yield f"{times[int(len(times) * 0.99)]:.1f}"
        ends = time.perf_counter()
    yield f"{time.perf_counter() - ends:.1f}"


def _refill(gateway: Gateway, sessions: int) -> float:
    """Sandboxes that get ready in a second, from the first to the last of a pool that fills up."""
    gateway.wait_ready(1)
    first, began = gateway.ready(), time.perf_counter()
    gateway.wait_ready(sessions)
    return (sessions - first) / (time.perf_counter() - began)


def _rounds(client: Client, identifiers: list[str]) -> Iterator[float]:
    for number in range(1, ROUNDS + 1):
        for identifier in identifiers:
            began = time.perf_counter()
            if (got := client.execute(identifier, "n += 1; n")) != number:
                raise AssertionError(f"state of {identifier}: {got} instead of {number}")
            yield (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()
