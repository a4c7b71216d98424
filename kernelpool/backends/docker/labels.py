"""What a Docker object of ours says of itself: whose it is, and of which sandbox."""

from __future__ import annotations

from typing import Final

from kernelpool.backends.base import SandboxSpec

GATEWAY: Final = "io.kernelpool.gateway"
"""The state directory's tag: two gateways on one engine do not touch each other's."""
SANDBOX: Final = "io.kernelpool.sandbox"
POOL: Final = "io.kernelpool.pool"
FINGERPRINT: Final = "io.kernelpool.fingerprint"


HOLDER_SUFFIX: Final = "-net"


def labels(tag: str, spec: SandboxSpec) -> dict[str, str]:
    return {GATEWAY: tag, SANDBOX: spec.id, POOL: spec.pool, FINGERPRINT: spec.fingerprint}


def holder_name(tag: str, id: str) -> str:
    """Of the container that holds a sandbox's network namespace, where that is not its own."""
    return f"{container_name(tag, id)}{HOLDER_SUFFIX}"


def network_name(tag: str) -> str:
    """Of the bridge that sandboxes with the outside network are on."""
    return f"kernelpool-{tag}"


def container_name(tag: str, id: str) -> str:
    """By this name a container is removed whether or not its making was heard of."""
    return f"kernelpool-{tag}-{id}"
