"""What an image is built from: files of ours and nothing else, as a tar for the engine, and as a digest to know it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import kernelpool
from kernelpool.backends.tree.hostfiles import walk_files
from kernelpool.errors import InvalidRequest
from kernelpool.runtimes import kernels_folder, load_runtimes

_PACKAGE: Final = Path(kernelpool.__file__).parent
_BESIDE: Final = _PACKAGE / "context"
"""In a wheel, what a checkout has beside the package."""
_WITHOUT: Final = frozenset({"__pycache__", "kernels", "context"})

_HOLDER: Final = ("kernelpool/__init__.py", "kernelpool/backends/docker/holder*.py")
_RUNTIME: Final = (
    *("kernelpool/__init__.py", "kernelpool/errors.py", "kernelpool/models.py", "kernelpool/runtimes.py"),
    *("kernelpool/backends/__init__.py", "kernelpool/backends/base.py"),
    *("kernelpool/backends/container.py", "kernelpool/backends/tree"),
    *("kernelpool/egress/__init__.py", "kernelpool/egress/policy.py"),
    *("kernelpool/children.py", "kernelpool/wire.py", "kernelpool/protocol", "kernelpool/agent"),
)
_GATEWAY: Final = ("pyproject.toml", "README.md", "LICENSE", "constraints.txt", "kernelpool", "kernels")


@dataclass(frozen=True, slots=True)
class Target:
    """An image that we can build."""

    name: str
    stage: str
    """Of the Dockerfile."""
    parts: Sequence[str]
    """Files and folders of the build context that it is made of."""
    runtime: str = ""

    def digest(self) -> str:
        """Changes with what the image is made of here, and with nothing else; the base is not of here. Reads files."""
        digest = hashlib.sha256()
        for name, content in _files(("Dockerfile", *self.parts)):
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
        return digest.hexdigest()[:16]

    def context(self) -> bytes:
        """A tar for the engine. What `net` needs is always there: the classic builder makes that stage on its way."""
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w") as tar:
            for name, content in sorted(dict(_files(("Dockerfile", *self.parts, *_HOLDER))).items()):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        return target.getvalue()


def targets() -> dict[str, Target]:
    """By name: one a runtime, `net`, and `gateway`. Reads files."""
    runtimes = [Target(name, "runtime", (*_RUNTIME, f"kernels/{name}"), name) for name in load_runtimes()]
    found = [*runtimes, Target("net", "net", _HOLDER), Target("gateway", "gateway", _GATEWAY)]
    return {target.name: target for target in found}


def find_target(name: str) -> Target:
    """Raises `InvalidRequest`, naming those that there are."""
    known = targets()
    if name not in known:
        raise InvalidRequest(f"there is no image {name!r}, only {', '.join(known)}")
    return known[name]


def _files(parts: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Places in the context, and contents."""
    for part in parts:
        for name, path in _places(part):
            for file in [path] if path.is_file() else walk_files(path, _WITHOUT):
                yield f"{name}/{file.relative_to(path)}".removesuffix("/."), file.read_bytes()


def _places(part: str) -> Sequence[tuple[str, Path]]:
    """Where a part of the context lies: in an installation, or in a checkout."""
    head, _, rest = part.partition("/")
    if head == "kernels":
        return [(part, kernels_folder() / rest)]
    if head != "kernelpool":
        return [(part, (_BESIDE if _BESIDE.is_dir() else _PACKAGE.parent) / part)]
    paths = sorted(_PACKAGE.glob(rest)) if rest else [_PACKAGE]
    return [(f"{head}/{path.relative_to(_PACKAGE)}".removesuffix("/."), path) for path in paths]
