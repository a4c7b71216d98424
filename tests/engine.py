"""A Docker Engine for tests, and what they build on it. The base is made of Debian packages: no registry is needed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import docker
import docker.errors
import pytest

from kernelpool.backends.docker.build import Plan, build
from kernelpool.backends.docker.context import find_target
from kernelpool.backends.docker.engine import Engine
from kernelpool.backends.docker.images import find
from kernelpool.backends.docker.settings import DEFAULT_HOST, DockerSettings

BUNDLE: Final = Path("/etc/ssl/certs/ca-certificates.crt")
"""This machine's authorities: packages may come through a proxy of its own."""


def _name_of_base() -> str:
    bundle = BUNDLE.read_bytes() if BUNDLE.is_file() else b""
    return f"kernelpool-test-base:bookworm-{hashlib.sha256(bundle).hexdigest()[:8]}"


BASE: Final = _name_of_base()
"""Kept between runs, as are the images built from it: each costs minutes."""
NETWORK: Final = os.environ.get("KPTEST_NETWORK", "")
"""The engine's network that builds use to fetch packages."""

_INCLUDE: Final = "python3,python3-venv,ca-certificates,procps"
_SECONDS: Final = 600


def engine_or_skip() -> docker.APIClient:
    try:
        return docker.APIClient(DEFAULT_HOST, version="auto", timeout=120)
    except docker.errors.DockerException:
        pytest.skip("no Docker Engine answers here: images are NOT TESTED")


@contextlib.contextmanager
def engine_client() -> Iterator[docker.APIClient]:
    client = engine_or_skip()
    with contextlib.closing(client):
        yield client


def base_image(client: docker.APIClient) -> str:
    """Debian with Python."""
    if not client.images(BASE):
        if os.getuid() != 0 or shutil.which("mmdebstrap") is None:
            pytest.skip(f"no mmdebstrap, or not root, and no image {BASE}: images are NOT TESTED")
        _make_base(client)
    return BASE


def _make_base(client: docker.APIClient) -> None:
    argv = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={_INCLUDE}"]
    argv += [f"--dpkgopt=path-exclude=/usr/share/{what}/*" for what in ("doc", "man", "locale")]
    argv += [f"--customize-hook=upload {BUNDLE} {BUNDLE}"] if BUNDLE.is_file() else []
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        subprocess.run([*argv, "bookworm", f"{folder}/base.tar"], check=True, timeout=_SECONDS)
        name, _, tag = BASE.partition(":")
        changes = ["LABEL io.kernelpool.test=base"]
        client.import_image_from_file(f"{folder}/base.tar", repository=name, tag=tag, changes=changes)


def image_of(name: str) -> str:
    """The id of one of our images on that base; built when this version of it is not there yet."""
    with engine_client() as client:
        base = base_image(client)

    target = find_target(name)

    async def get() -> str:
        async with Engine(DockerSettings(host=DEFAULT_HOST)) as engine:
            if (found := await find(engine, target)) is not None:
                is_of_base: bool = await engine.call(lambda client: _is_made_of(client, found, base))
                if is_of_base:
                    return found
            return await build(engine, Plan(target, base=base, network=NETWORK), print)

    return asyncio.run(get())


def _is_made_of(client: docker.APIClient, image: str, base: str) -> bool:
    id = client.inspect_image(base)["Id"]  # type: ignore[no-untyped-call]
    layers = client.history(image)  # type: ignore[no-untyped-call]
    return any(layer["Id"] == id for layer in layers)


def build_from(client: docker.APIClient, dockerfile: str, name: str) -> None:
    """A small image of a test's own; who makes it removes it."""
    source = io.BytesIO(dockerfile.encode())
    for line in client.build(fileobj=source, tag=name, network_mode="none", rm=True, forcerm=True, decode=True):
        assert "error" not in line, line
