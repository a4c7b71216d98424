"""The rooms of ARCHITECTURE.md: imports go one way, and what is dangerous stays where it belongs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kernelpool"

# A room may import itself and what stands above it.
ROOMS = [
    "errors",
    "models",
    "client",
    "runtimes",
    "tasks",
    "children",
    "sentences",
    "telemetry",
    "egress",
    "protocol",
    "wire",
    "agent",
    "backends",
    "agents",
    "pool",
    "quotas",
    "network",
    "auth",
    "config",
    "journal",
    "life",
    "sessions",
    "heartbeat",
    "liveness",
    "recovery",
    "session",
    "notebooks",
    "kernel",
    "survey",
    "gateway",
    "sources",
    "management",
    "scratch",
    "api",
    "server",
    "cli",
    "__main__",
]

# Only these rooms may import these packages.
RESERVED = {
    "zmq": {"agent", "wire"},
    "tornado.web": {"agent", "api"},
    "tornado": {"agent", "api", "server"},
    "aiohttp": {"agents", "auth"},
    "h11": {"agents", "egress"},
    "jwt": {"auth"},
    "subprocess": {"agent", "backends", "egress"},
    "click": {"cli"},
    "rich": {"cli"},
    "httpx": {"client"},
    "idna": {"egress"},
    "mcp": {"api", "cli"},
    "mcp_types": {"api", "cli"},
    "starlette": set[str](),
    "jupyter_client": set[str](),
    "nbformat": {"notebooks"},
    "ipykernel": set[str](),
    "opentelemetry": {"telemetry"},
    "prometheus_client": {"telemetry"},
}

# The agent runs in the sandbox, where only these are.
IN_THE_SANDBOX = {"agent", "children", "wire", "protocol", "models", "errors"}

FILES = sorted(PACKAGE.rglob("*.py"))
# Parsed before any test runs: CPython 3.11 fails to when the garbage of other tests is collected meanwhile.
TREES = {file: ast.parse(file.read_text()) for file in FILES}


def room_of(module: str) -> str:
    """`kernelpool.api.base` → `api`; the package itself → "" ."""
    return module.removeprefix("kernelpool").lstrip(".").partition(".")[0]


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file: Path) -> Iterator[str]:
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(file: Path) -> set[str]:
    """The rooms that a file imports."""
    found = {room_of(name) for name in imports_of(file) if name.partition(".")[0] == "kernelpool"}
    return found & set(ROOMS)


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_go_one_way(file: Path) -> None:
    room = room_of(module_of(file))
    if not room:
        assert not ours(file)
        return

    above = set(ROOMS[: ROOMS.index(room) + 1])

    assert ours(file) <= above, f"{room} imports {ours(file) - above}"


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_packages_stay_in_their_rooms(file: Path) -> None:
    room = room_of(module_of(file))
    for name in imports_of(file):
        for package, rooms in RESERVED.items():
            if name == package or name.startswith(f"{package}."):
                assert room in rooms, f"{package} belongs to {rooms}"


@pytest.mark.parametrize("file", [f for f in FILES if room_of(module_of(f)) in IN_THE_SANDBOX], ids=module_of)
def test_what_runs_in_the_sandbox_imports_only_what_is_there(file: Path) -> None:
    assert ours(file) <= IN_THE_SANDBOX
    assert not [name for name in imports_of(file) if name.partition(".")[0] in ("pydantic", "aiohttp", "click")]


@pytest.mark.parametrize("file", [f for f in FILES if room_of(module_of(f)) == "protocol"], ids=module_of)
def test_the_protocol_does_no_io_and_reads_no_clock(file: Path) -> None:
    forbidden = {"asyncio", "socket", "zmq", "time", "datetime", "os", "threading", "logging"}

    assert not [name for name in imports_of(file) if name.partition(".")[0] in forbidden]


def test_every_room_is_named() -> None:
    assert {room_of(module_of(file)) for file in FILES} - {""} == set(ROOMS)


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_file_says_in_its_first_line_what_it_is_for(file: Path) -> None:
    assert file.read_text().startswith('"""'), file
    docstring = ast.get_docstring(TREES[file])

    assert docstring
    assert len(docstring.splitlines()[0]) > 15


def test_make_runs_every_test() -> None:
    """It names the folders, to run them side by side."""
    root = Path(__file__).parent
    folders = {path.relative_to(root).parent.as_posix() for path in root.rglob("test_*.py")} - {"."}

    assert set(re.findall(r"tests/(\w+)(?!\w|\*)", (root.parent / "Makefile").read_text())) == folders
