"""What a custom container is to a backend: an image, how to run it, and how to tell whether it is well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

APP_SOCKET = "app.sock"
"""Where a sandbox's container is reached: each connection is one to its target port."""
KNOCK_SOCKET = "knock.sock"
"""Beside it: whoever connects reads one byte if something listens on the target port, and nothing if not."""


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """A GET that must be answered with a status from 200 to 399."""

    path: str = "/"
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Probe:
    """How often to look whether a container is well, and how patiently. Seconds and counts."""

    http: HttpCheck | None = None
    """None: it is enough that the target port takes connections."""
    initial_delay: float = 0.0
    period: float = 10.0
    timeout: float = 1.0
    failure_threshold: int = 3


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """What runs in a sandbox in the place of agent and kernel. It is hostile from its first instruction."""

    image: str
    target_port: int
    command: tuple[str, ...] = ()
    """In the place of the image's entry point; empty: the image's own."""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Values of secrets included: they are never logged, nor put where they outlive the container."""
    user: str | None = None
    """`user`, `uid` or `uid:gid`; None: the image's own."""
    writable_root: bool = False
    startup: Probe | None = None
    liveness: Probe | None = None
    silence: float = 240.0
    """Seconds that it may say nothing while an answer is due."""


@dataclass(frozen=True, slots=True)
class Registry:
    """Where an image comes from, and as whom."""

    server: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
