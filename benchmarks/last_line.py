"""`python -m benchmarks.last_line`: shell commands by the thousand, each of whose output must come back whole.

Azure's Shell pools lose the last line of 1.6 to 4 in a hundred. What is run here ends in the ways in which such lines
get lost: right after a write, after a large one, from a pipeline, from a child, without a line end, in a terminal.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.__main__ import STATE, _in_threads
from benchmarks.rest import Client, Gateway, new_identifier, running_gateway

SESSIONS = 4
RUNS = 10_000

Case = tuple[str, str, bool]
"""A command, what it must write, and whether in a terminal."""

CASES: tuple[Callable[[int], Case], ...] = (
    lambda n: (f"echo last-{n}", f"last-{n}\n", False),
    lambda n: (f"printf last-{n}", f"last-{n}", False),
    lambda n: (f"head -c {n % 200_000} /dev/zero | tr '\\0' x; echo; echo last-{n}", _long(n), False),
    lambda n: (f"echo first; bash -c 'echo last-{n}'", f"first\nlast-{n}\n", False),
    lambda n: (f"seq {n % 500}; (sleep 0.01; echo last-{n})", _counted(n), False),
    lambda n: (f"echo last-{n} | cat | cat", f"last-{n}\n", False),
    lambda n: (f"exec printf '%s\\n' last-{n}", f"last-{n}\n", False),
    lambda n: (f"echo first; echo last-{n}", f"first\nlast-{n}\n", True),
)


def _long(number: int) -> str:
    return "x" * (number % 200_000) + f"\nlast-{number}\n"


def _counted(number: int) -> str:
    return "".join(f"{each}\n" for each in range(1, number % 500 + 1)) + f"last-{number}\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.last_line", description=__doc__)
    parser.add_argument("--state", type=Path, default=STATE, help="where runtime trees are kept")
    parser.add_argument("--runs", type=int, default=RUNS)
    options = parser.parse_args()
    lost: list[tuple[str, str]] = []
    with running_gateway(options.state, ready=SESSIONS) as gateway:
        gateway.wait_ready(SESSIONS)
        began = time.perf_counter()
        each = options.runs // SESSIONS
        _in_threads([partial(_run, gateway, range(k * each, (k + 1) * each), lost) for k in range(SESSIONS)])
        seconds = time.perf_counter() - began
    for command, got in lost[:10]:
        print(f"lost: {command!r} gave {got[-60:]!r}")
    print(
        f"{len(lost)} of {each * SESSIONS} outputs were not whole ({each * SESSIONS / seconds:.0f} commands a second)"
    )
    return 1 if lost else 0


def _run(gateway: Gateway, numbers: range, lost: list[tuple[str, str]]) -> None:
    client, identifier = gateway.client(), new_identifier()
    for number in numbers:
        command, expected, pty = CASES[number % len(CASES)](number)
        if (got := _output(client, identifier, command, pty)) != expected:
            lost.append((command, got))
    client.close()


def _output(client: Client, identifier: str, command: str, pty: bool) -> str:
    return client.shell(identifier, command, **({"pty": True} if pty else {}))


if __name__ == "__main__":
    sys.exit(main())
