"""Kernels, kernelspecs and sessions as JSON, in the words that Jupyter has for them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from kernelpool.api.resources import timestamp
from kernelpool.errors import NotFound, PoolNotFound
from kernelpool.gateway import PoolInfo, SessionInfo
from kernelpool.journal import JupyterSession
from kernelpool.models import KernelState

Json = dict[str, Any]


def kernel(info: SessionInfo, state: KernelState | None) -> Json:
    """`identifier` is ours: by it the same session is used over REST."""
    return {
        "id": info.guid,
        "name": info.pool,
        "last_activity": timestamp(state.last_activity if state else info.last_accessed_at),
        "execution_state": state.execution_state.value if state else "unknown",
        "connections": state.connections if state else 0,
        "identifier": info.identifier,
    }


def session(opened: JupyterSession, kernel: Json) -> Json:
    """`notebook` is for clients from before there was anything else."""
    return {
        "id": opened.id,
        "path": opened.path,
        "name": opened.name,
        "type": opened.type,
        "kernel": kernel,
        "notebook": {"path": opened.path, "name": opened.name},
    }


def kernelspec(pool: PoolInfo, logos: Collection[str], base: str) -> Json:
    """`argv` is empty: it is nobody's but the sandbox's. JupyterLab offers its debugger where `metadata` says so."""
    return {
        "name": pool.name,
        "spec": {
            "argv": [],
            "env": {},
            "display_name": f"{pool.display_name} ({pool.name})",
            "language": pool.language,
            "interrupt_mode": "message",
            "metadata": {"debugger": pool.has_debugger, "kernelpool": {"pool": pool.name, "runtime": pool.runtime}},
        },
        "resources": {logo.rpartition(".")[0]: f"{base}/kernelspecs/{pool.name}/{logo}" for logo in sorted(logos)},
    }


def default_spec(pools: Sequence[PoolInfo]) -> PoolInfo:
    """The first Python pool, or the first. Raises `NotFound` when there is none."""
    if not pools:
        raise NotFound("There is no pool with kernels here.")
    return next((pool for pool in pools if pool.language.lower() == "python"), pools[0])


def find_spec(pools: Sequence[PoolInfo], name: str) -> PoolInfo:
    """By the name of a kernelspec, which is a pool's; what notebooks from elsewhere name after a language, such as
    `python3`, is the first pool of that language. Raises `PoolNotFound`."""
    if not name:
        return default_spec(pools)
    exactly = [pool for pool in pools if pool.name == name]
    by_language = [pool for pool in pools if pool.language.lower() == name.lower().rstrip("0123456789.")]
    if not (found := exactly or by_language):
        there = ", ".join(pool.name for pool in pools)[:200]
        raise PoolNotFound(f"There is no kernelspec '{name[:64]}'; there are: {there or 'none'}.")
    return found[0]
