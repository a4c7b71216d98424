"""The agent's program as sandboxes see it, /opt/kernelpool: a few files, keyed by what is in them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import kernelpool
from kernelpool.backends.tree.hostfiles import walk_files
from kernelpool.runtimes import Runtime

SEEN_AS = "/opt/kernelpool"

PARTS = ("__init__.py", "errors.py", "models.py", "children.py", "wire.py", "protocol", "agent")
"""Of the package: what the agent and kernels of ours may import. Nothing that knows the gateway."""

_WITHOUT = frozenset({"__pycache__", "py.typed"})

# Started by path under `-I`, so the interpreter has put no directory of ours in sys.path that it was not told of.
_MAIN = '''\
"""python -I /opt/kernelpool: the agent."""

import sys
from pathlib import Path

sys.path[:0] = [here] if (here := str(Path(__file__).resolve().parent)) not in sys.path else []

from kernelpool.agent.main import main

raise SystemExit(main())
'''


def program_files(runtime: Runtime, package: Path | None = None) -> Iterator[tuple[str, bytes]]:
    """Each file's place below /opt/kernelpool and its content."""
    package = package or Path(kernelpool.__file__).parent
    yield "__main__.py", _MAIN.encode()
    for part in PARTS:
        path = package / part
        for file in [path] if path.is_file() else walk_files(path, _WITHOUT):
            yield f"kernelpool/{file.relative_to(package)}", file.read_bytes()
    for file in walk_files(runtime.folder, _WITHOUT):
        yield f"kernels/{runtime.name}/{file.relative_to(runtime.folder)}", file.read_bytes()


def program_key(runtime: Runtime, package: Path | None = None) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for name, content in program_files(runtime, package):
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def write_program(runtime: Runtime, target: Path, package: Path | None = None) -> None:
    for name, content in program_files(runtime, package):
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        place.chmod(0o755 if content.startswith(b"#!") else 0o644)
