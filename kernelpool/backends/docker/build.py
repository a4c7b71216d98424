"""Builds an image on an engine, step by step as it is told, and says in a sentence why it failed."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from docker import APIClient

from kernelpool import __version__
from kernelpool.backends.docker.context import Target
from kernelpool.backends.docker.engine import Engine, EngineError, told
from kernelpool.backends.tree.image import SAID
from kernelpool.errors import PrepareFailed

IMAGE: Final = "io.kernelpool.image"
"""Label: which of our images it is."""
INPUTS: Final = "io.kernelpool.inputs"
"""Label: the digest of what it was made from."""

SILENCE: Final = 900.0
"""Seconds without a word of the builder. It has none while it puts a large layer away."""
_TAIL: Final = 15
_STEP: Final = re.compile(r"Step (\d+)/(\d+) : (.*)")
_NOT_TEXT: Final = re.compile(r"\x1b\[[0-9;]*m|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def own_name(target: Target) -> tuple[str, str]:
    """Repository and tag that an image of ours has, whatever else it is called. Its labels do not tell it from what
    somebody has built from it, which has them too."""
    return f"kernelpool-{target.name}", f"inputs-{target.digest()}"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a build is: the builder's step, and what is done in it."""

    step: int = 0
    steps: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be built, and how."""

    target: Target
    tag: str = ""
    """By default, kernelpool-<target>:<version>."""
    base: str = ""
    """Image to start from, instead of the Dockerfile's."""
    network: str = ""
    """Of the engine, from which packages can be fetched; its default bridge when nothing is said."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    fresh: bool = False
    """Without what the builder remembers of earlier builds."""

    @property
    def name(self) -> str:
        return self.tag or f"kernelpool-{self.target.name}:{__version__}"


async def build(engine: Engine, plan: Plan, heard: Callable[[Progress], None]) -> str:
    """Returns the image's id. Raises `PrepareFailed`; a cancelled build ends with the builder's next word."""
    loop = asyncio.get_running_loop()
    stop = threading.Event()

    def tell(progress: Progress) -> None:
        loop.call_soon_threadsafe(heard, progress)

    work = asyncio.ensure_future(asyncio.to_thread(_build, engine, plan, tell, stop))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([work])
        work.exception()  # looked at: that it was given up is known
        raise
    except EngineError as error:
        raise PrepareFailed(f"the engine does not build the image {plan.name}: {error}") from error


def _build(engine: Engine, plan: Plan, tell: Callable[[Progress], None], stop: threading.Event) -> str:
    with told():
        client = engine.connect()
        try:
            id = Watch(plan, tell, stop).follow(_start(client, plan))
            client.tag(id, *own_name(plan.target))
            return id
        finally:
            client.close()


def _start(client: APIClient, plan: Plan) -> Iterator[dict[str, Any]]:
    target = plan.target
    arguments = {"VERSION": __version__, "RUNTIME": target.runtime or "python", **plan.arguments}
    lines: Iterator[dict[str, Any]] = client.build(
        fileobj=target.context(),  # type: ignore[arg-type]
        custom_context=True,
        target=target.stage,
        tag=plan.name,
        buildargs=arguments | ({"BASE": plan.base} if plan.base else {}),
        labels={IMAGE: target.name, INPUTS: target.digest()},
        network_mode=plan.network or None,
        nocache=plan.fresh,
        rm=True,
        forcerm=True,
        decode=True,
        timeout=SILENCE,  # type: ignore[arg-type]
    )
    return lines


class Watch:
    """Reads what the builder says."""

    def __init__(self, plan: Plan, tell: Callable[[Progress], None], stop: threading.Event) -> None:
        self._plan = plan
        self._tell = tell
        self._stop = stop
        # The mutable state: what was heard so far.
        self._progress = Progress()
        self._instruction = ""
        self._tail: deque[str] = deque(maxlen=_TAIL)

    def follow(self, lines: Iterator[dict[str, Any]]) -> str:
        id = ""
        for line in lines:
            if self._stop.is_set():
                raise PrepareFailed("the build was given up")  # the connection ends with it, and so the build
            if "error" in line:
                raise PrepareFailed(self._failure(_text(line["error"])))
            id = (line.get("aux") or {}).get("ID", id)
            for text in _text(line.get("stream", "")).splitlines():
                self._hear(text)
        if not id:
            raise PrepareFailed(f"the image {self._plan.name} was not built, and the engine does not say why")
        return id

    def _hear(self, text: str) -> None:
        if step := _STEP.fullmatch(text):
            self._instruction = step[3]
            self._tail.clear()
            self._progress = Progress(int(step[1]), int(step[2]))
        elif text.startswith(SAID):
            self._progress = Progress(self._progress.step, self._progress.steps, text.removeprefix(SAID))
        else:
            self._tail.append(text)
            return
        self._tell(self._progress)

    def _failure(self, error: str) -> str:
        if self._instruction.upper().startswith("FROM "):
            return (
                f"the image {self._plan.name} cannot be built: the engine does not have what it is built from, "
                f"{self._plan.base or 'the base image'}, and cannot fetch it ({error}). "
                "`kernelpool images build --base` names another"
            )
        return "\n".join([f"the image {self._plan.name} could not be built: {error}", *self._tail])


def _text(text: object) -> str:
    return _NOT_TEXT.sub("", str(text)).strip()
