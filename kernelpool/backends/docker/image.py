"""What a runtime is to a container engine: an image."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kernelpool.backends.base import RuntimeMetadata, Say
from kernelpool.backends.docker.engine import Engine
from kernelpool.runtimes import Runtime


@dataclass(frozen=True, slots=True)
class Image:
    """Complete: /opt/venv with a runtime's packages, /opt/kernelpool with the agent's program and the runtime."""

    id: str
    """Its digest as the engine has it, `sha256:…`: what a name points to may change while sandboxes live."""
    metadata: RuntimeMetadata


PrepareImage = Callable[[Engine, Runtime, Say], Awaitable[Image]]
"""Finds the image of a runtime or makes it, which may take minutes. Raises `PrepareFailed`."""
