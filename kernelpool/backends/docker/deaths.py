"""Why a sandbox is dead, as its containers tell when they are looked at."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

from kernelpool.backends.docker.engine import Engine, EngineError
from kernelpool.backends.docker.folders import Record
from kernelpool.backends.docker.labels import container_name, holder_name
from kernelpool.errors import BackendUnavailable

log = logging.getLogger(__name__)

_ALIVE: Final = ("running", "created", "restarting")


async def why_dead(engine: Engine, tag: str, record: Record, is_starting: Callable[[], bool]) -> str | None:
    """None: it lives, or is about to. Raises `BackendUnavailable`."""
    state = await _state(engine, container_name(tag, record.id))
    if state["Status"] in _ALIVE if state is not None else is_starting():
        if not record.has_holder:
            return None
        held = await _state(engine, holder_name(tag, record.id))
        is_held = held["Status"] in _ALIVE if held is not None else is_starting()
        return None if is_held else "its network's holder ended"
    if state is None:
        return None if is_starting() else "its container was removed"
    if state.get("OOMKilled"):
        return "out of memory"
    if not record.is_custom:
        return "its agent ended"
    await _tell_last_words(engine, tag, record.id)
    return f"the container exited with status {state.get('ExitCode')}"


async def _state(engine: Engine, name: str) -> Mapping[str, Any] | None:
    """None when there is no such container."""
    try:
        facts = await engine.call(lambda client: client.inspect_container(name))
    except EngineError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise BackendUnavailable("the Docker Engine does not tell of a sandbox") from error
        return None
    state: Mapping[str, Any] = facts["State"]
    return state


async def _tell_last_words(engine: Engine, tag: str, id: str) -> None:
    """Of a custom container, to the operator: it is removed with its log."""
    name = container_name(tag, id)
    with contextlib.suppress(EngineError, BackendUnavailable):
        said = await engine.call(lambda client: client.logs(name, tail=20))
        log.info("custom container ended", extra={"sandbox": id, "said": said[-2000:].decode(errors="replace")})
