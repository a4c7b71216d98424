"""Says in what two images differ, layer by layer: `python deploy/compare_images.py IMAGE IMAGE`, after two builds.

Exit code 0 when every file of every layer is the same: its content, type, mode, owner and time.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import docker


@dataclass(frozen=True, slots=True)
class Entry:
    kind: bytes
    mode: int
    owner: tuple[int, int]
    time: float
    link: str
    content: str


def layers(client: docker.APIClient, image: str) -> Iterator[dict[str, Entry]]:
    # An image is too much for a /tmp in memory.
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        for chunk in client.get_image(image):
            file.write(chunk)
        file.seek(0)
        with tarfile.open(fileobj=file) as tar:
            [manifest] = json.load(_open(tar, "manifest.json"))
            for layer in manifest["Layers"]:
                with tarfile.open(fileobj=_open(tar, layer)) as inner:
                    yield {member.name: _entry(inner, member) for member in inner}


def _open(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    found = tar.extractfile(name)
    assert found is not None, name
    return found


def _entry(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    content = hashlib.sha256(_open(tar, member.name).read()).hexdigest() if member.isfile() else ""
    owner = (member.uid, member.gid)
    return Entry(member.type, member.mode, owner, member.mtime, member.linkname, content)


def differences(one: dict[str, Entry], other: dict[str, Entry]) -> Iterator[str]:
    for name in sorted({*one, *other}):
        left, right = one.get(name), other.get(name)
        if left is None or right is None:
            yield f"{name}: only in the {'second' if left is None else 'first'}"
        elif left != right:
            what = [field for field in Entry.__dataclass_fields__ if getattr(left, field) != getattr(right, field)]
            yield f"{name}: {', '.join(what)}"


def main() -> int:
    client = docker.APIClient(version="auto", timeout=600)
    pairs = zip(*(list(layers(client, image)) for image in sys.argv[1:3]), strict=True)
    total = 0
    for number, (one, other) in enumerate(pairs, 1):
        found = list(differences(one, other))
        print(f"layer {number}: {len(one)} files, {len(found)} differ")
        for line in found[:20]:
            print(f"  {line}")
        total += len(found)
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
