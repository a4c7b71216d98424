"""Where the Docker Engine is, and what it shares with the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_HOST: Final = "unix:///var/run/docker.sock"


class DockerSettings(BaseModel):
    """Without anything said, the engine of this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    host: str = DEFAULT_HOST
    """The engine's address, `unix://` or `tcp://`, on another machine too. Without it, what `DOCKER_HOST` says."""
    tls_verify: bool = False
    """Speak TLS to a `tcp://` engine and check its certificate, as `DOCKER_TLS_VERIFY` does."""
    cert_path: Path | None = None
    """Directory with `ca.pem`, `cert.pem` and `key.pem`, as in `DOCKER_CERT_PATH`."""
    run_dir: Path | None = None
    """Directory for the sockets of agents, by default `docker/run` in the state directory. The engine must know it by
    the same path: with the gateway in a container, mount it there at the path that it has on the host. An engine at a
    `tcp://` address shares it only if it is named; otherwise sandboxes are reached through the engine."""
    base_image: str = Field("", max_length=512)
    """Image with Python that images of runtimes are built from, by default the official slim one."""
    start_concurrency: int = Field(4, ge=1, le=64)
    """Containers that the engine is asked to make at the same time, over all pools."""
    start_timeout: float = Field(45.0, gt=0, le=600)
    """Seconds for the engine to make a container and for the agent in it to listen."""
    call_timeout: int = Field(30, ge=1, le=600)
    """Seconds that the engine may take to answer one call."""
