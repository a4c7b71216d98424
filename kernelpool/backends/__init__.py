"""What makes sandboxes. One file a backend, one line here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from kernelpool.backends.base import Backend

BACKENDS: Final[Mapping[str, str]] = {
    "bubblewrap": "kernelpool.backends.bubblewrap:BubblewrapBackend",
    "docker": "kernelpool.backends.docker.backend:DockerBackend",
}
"""Name → where its class is; imported when it is used."""


def load_backend(name: str) -> type[Backend]:
    """Raises `KeyError` for a name that is not in `BACKENDS`."""
    module, _, attribute = BACKENDS[name].partition(":")
    found: Any = getattr(import_module(module), attribute)
    return found  # type: ignore[no-any-return]
