"""The image of a runtime: found by what it is made from, built when it is not there; or the one that somebody names."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from docker import APIClient
from docker.errors import APIError
from pydantic import TypeAdapter, ValidationError

from kernelpool import __version__
from kernelpool.backends.base import RuntimeMetadata, Say
from kernelpool.backends.bwrap_argv import ENVIRONMENT, PROGRAM, PYTHON, SANDBOX_UID
from kernelpool.backends.docker.build import Plan, Progress, build, own_name
from kernelpool.backends.docker.context import Target, find_target
from kernelpool.backends.docker.engine import Engine, EngineError
from kernelpool.backends.docker.image import Image
from kernelpool.backends.docker.pull import pull
from kernelpool.backends.tree.npm import LOCK, NODE_MODULES
from kernelpool.backends.tree.packages import Contents, metadata_of
from kernelpool.errors import BackendUnavailable, PrepareFailed
from kernelpool.runtimes import Runtime

LOOK: Final = "io.kernelpool.look"
"""Label of the containers that tell what an image holds."""
_LEFT_SECONDS: Final = 300
VERSION: Final = "org.opencontainers.image.version"

_LOOK: Final = """\
import importlib.metadata, json, os, platform, sys
packages = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
complete = all(map(os.path.exists, sys.argv[2:]))
lock = json.load(open(sys.argv[1]))["packages"] if os.path.exists(sys.argv[1]) else {}
npm = {place[13:]: facts.get("version", "") for place, facts in lock.items() if place.count("node_modules/") == 1}
contents = {"python": platform.python_version(), "packages": packages, "npm": npm}
print(json.dumps({"contents": contents, "complete": complete}))
"""


@dataclass(frozen=True, slots=True)
class _Seen:
    contents: Contents
    complete: bool


_SEEN = TypeAdapter(_Seen)


async def find_or_build(engine: Engine, runtime: Runtime, say: Say) -> Image:
    """The image that the runtime names is used as it is, and fetched when the engine has it not. Raises
    `PrepareFailed`."""
    try:
        id = await (_named(engine, runtime.image, say) if runtime.image else _ours(engine, runtime, say))
        return Image(id, await describe(engine, id, runtime))
    except (EngineError, BackendUnavailable) as error:
        raise PrepareFailed(f"the image {runtime.image or 'of ' + runtime.name} cannot be used: {error}") from error


async def find(engine: Engine, target: Target) -> str | None:
    """The id of the image that was last made from what is here now, on whatever base."""
    name = ":".join(await asyncio.to_thread(own_name, target))
    try:
        return str((await _inspect(engine, name))["Id"])
    except EngineError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return None


async def _ours(engine: Engine, runtime: Runtime, say: Say) -> str:
    target = await asyncio.to_thread(find_target, runtime.name)
    if (id := await find(engine, target)) is not None:
        return id
    say(f"building the image of the {runtime.name} runtime, once; `kernelpool images build` does it ahead")
    return await build(engine, Plan(target, base=engine.base_image), partial(_tell, say))


def _tell(say: Say, progress: Progress) -> None:
    if progress.text:
        say(progress.text)


async def _named(engine: Engine, name: str, say: Say) -> str:
    """Its id; what it names may change while sandboxes live."""
    try:
        found = await _inspect(engine, name)
    except EngineError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        say(f"fetching the image {name}")
        await pull(engine, name)
        found = await _inspect(engine, name)
    version = (found["Config"].get("Labels") or {}).get(VERSION, __version__)
    if version != __version__:
        say(f"the image {name} was made for kernelpool {version}, and this is {__version__}: build it again")
    return str(found["Id"])


async def _inspect(engine: Engine, name: str) -> dict[str, Any]:
    found: dict[str, Any] = await engine.call(lambda client: client.inspect_image(name))
    return found


async def describe(engine: Engine, id: str, runtime: Runtime) -> RuntimeMetadata:
    """What an image holds, asked of a container of it that has no network, no rights, and an end: labels would tell of
    the image that it was built from. Raises `PrepareFailed` when no agent could run in it."""
    await engine.call(_remove_left)
    made = await engine.call(lambda client: client.create_container_from_config(_container(id, runtime)))
    try:
        output = await engine.call(partial(_run, made["Id"]))
    finally:
        await engine.call(lambda client: client.remove_container(made["Id"], force=True))
    try:
        seen = _SEEN.validate_json(output)
    except ValidationError:
        seen = _Seen(Contents("", {}, {}), complete=False)
    if not seen.complete:
        raise PrepareFailed(
            f"the image {id} is none of the {runtime.name} runtime: it needs {PYTHON}, and in {PROGRAM} the agent and "
            "the runtime, as an image has that is built FROM ours"
        )
    return metadata_of(runtime, seen.contents, time.time())


def _container(id: str, runtime: Runtime) -> dict[str, Any]:
    return {
        "Image": id,
        "User": f"{SANDBOX_UID}:{SANDBOX_UID}",
        "Env": [f"{name}={value}" for name, value in ENVIRONMENT.items()],
        "Entrypoint": [PYTHON, "-I", "-c", _LOOK, f"{NODE_MODULES}/{LOCK}", *_needed(runtime)],
        "Cmd": None,
        "Labels": {LOOK: "1"},
        "Healthcheck": {"Test": ["NONE"]},
        "NetworkDisabled": True,
        "HostConfig": {
            "NetworkMode": "none",
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "Memory": 256 << 20,
            "MemorySwap": 256 << 20,
            "PidsLimit": 32,
            # Whatever the engine's default is, this can be read back, and cannot fill the disk.
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}},
        },
    }


def _needed(runtime: Runtime) -> tuple[str, ...]:
    return f"{PROGRAM}/__main__.py", f"{PROGRAM}/kernels/{runtime.name}"


def _run(container: str, client: APIClient) -> bytes:
    client.start(container)
    client.wait(container)  # as long as any call may take
    output: bytes = client.logs(container, stdout=True, stderr=False)
    return output


def _remove_left(client: APIClient) -> None:
    """Those of a gateway that was killed meanwhile."""
    for left in client.containers(all=True, filters={"label": LOOK, "status": ["created", "exited"]}):
        if left["Created"] < time.time() - _LEFT_SECONDS:
            with contextlib.suppress(APIError):  # another gateway was quicker
                client.remove_container(left["Id"], force=True)
