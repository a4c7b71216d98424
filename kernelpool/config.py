"""Settings of a gateway: file, environment and flags, in rising precedence. Read once, by the command line.

The file is TOML, by default `kernelpool.toml` in the working directory:

    port = 8080

    [pools.python]
    ready = 4
    limits = { memory = "2Gi" }

The environment says the same with `KERNELPOOL_PORT=8080` and `KERNELPOOL_POOLS__PYTHON__READY=4`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from kernelpool.auth.settings import OidcTable
from kernelpool.backends.docker.settings import DockerSettings
from kernelpool.errors import InvalidRequest
from kernelpool.network import HostPatterns, Networks, Origins
from kernelpool.pool.settings import PoolSettings, Seconds, Size
from kernelpool.quotas import QuotaSettings
from kernelpool.sentences import sentences

FILE_NAME = "kernelpool.toml"
PREFIX = "KERNELPOOL_"
CONFIG_VARIABLE = PREFIX + "CONFIG"
"""Names the file, as --config does."""
NO_SETTINGS = {CONFIG_VARIABLE, PREFIX + "URL", PREFIX + "PROFILE"}
"""Variables for the command line: the last two name a gateway to talk to. KERNELPOOL_TOKEN is for both sides."""


def default_state_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """What survives a restart: `/var/lib/kernelpool` as root, else where the XDG specification says."""
    if os.geteuid() == 0:
        return Path("/var/lib/kernelpool")
    base = environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "kernelpool"


def _default_pools() -> dict[str, PoolSettings]:
    return {"python": PoolSettings(name="python")}


class Settings(BaseModel):
    """Everything that an operator can say."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs TLS: ours, or that of a proxy in front."""
    port: int = Field(8080, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    state_dir: Path = Field(default_factory=default_state_dir)
    """Directory for what must survive a restart: sessions, sandboxes, runtime trees, the token's hash."""
    token: SecretStr | None = Field(None, min_length=16)
    """Bearer token that may do everything. Without one, the first start makes one, and prints it once."""
    allow_insecure: bool = False
    """Serve although the doctor says that sandboxes do not isolate here."""
    stop_sessions: bool = False
    """Destroy all sessions at the end, instead of leaving them to the next start."""
    drain_seconds: float = Field(30.0, ge=0, allow_inf_nan=False)
    """Seconds that callers who wait for an answer are given when the gateway is asked to stop."""
    max_body: Size = 16 << 20
    """Size of a JSON body, code included."""
    idle_timeout: Seconds = 60.0
    """Seconds that a connection may take until the next request's headers are complete."""
    body_timeout: Seconds = 3600.0
    """Seconds that a client may take to send a body."""
    max_pools: int = Field(64, ge=1)
    """Pools that may exist, those of the settings included."""
    allowed_hosts: HostPatterns = ()
    """Names that callers may reach the gateway by, besides localhost and `host`: `sessions.example.com`,
    `*.example.com`, or `*` for any. The Host header says which one a caller used; others are refused with 421."""
    allowed_origins: Origins = ()
    """Origins of web pages whose scripts may use the gateway, such as `https://app.example.com`."""
    trusted_proxies: Networks = ()
    """Addresses or networks of reverse proxies. Only what comes from them is believed in X-Forwarded-For, -Proto and
    -Host."""
    tls_certificate: Path | None = None
    """PEM file with the certificate chain; with `tls_key` the gateway speaks TLS itself. Read again when it changes,
    and on SIGHUP."""
    tls_key: Path | None = None
    """PEM file with the certificate's key, not encrypted."""
    max_connections: int = Field(4096, ge=1)
    """Connections at the same time; beyond it new ones are answered with 503."""
    max_connections_per_client: int = Field(1024, ge=1)
    """Connections of one address at the same time (with IPv6: of one /64); trusted proxies are exempt."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged, as JSON lines on stderr."""
    metrics_public: bool = False
    """Let anybody read `/metrics`; else Prometheus needs a token, as every caller."""
    otlp_endpoint: str | None = Field(None, pattern=r"^https?://")
    """URL that traces are posted to by OTLP/HTTP, such as `http://collector:4318/v1/traces`. Without one the standard
    `OTEL_` variables decide. Needs the extra `otel`."""
    audit_log: Path | None = None
    """File that each execution, transfer, deletion and refusal is appended to: who, what, when, how it ended. Without
    one nothing is kept."""
    audit_code: bool = False
    """Also append the code that was executed."""
    pools: dict[str, PoolSettings] = Field(default_factory=_default_pools, min_length=1)
    """Pools by name, as `[pools.<name>]`; see there."""
    tenants: dict[str, QuotaSettings] = Field(default_factory=dict)
    """What tenants may use, as `[tenants.<name>]`; see there. `[tenants."*"]` is for those who are not named."""
    docker: DockerSettings = DockerSettings()
    """The Docker Engine, as `[docker]`; see there."""
    oidc: OidcTable = Field(default_factory=dict)
    """OpenID Connect issuers by name, as `[oidc.<name>]`; see there."""

    @property
    def backends(self) -> Mapping[str, object]:
        """Settings of backends, by name."""
        return {"docker": self.docker}

    @model_validator(mode="before")
    @classmethod
    def _name_pools(cls, values: Any) -> Any:
        """The key is the pool's name."""
        if not isinstance(values, dict) or not isinstance(pools := values.get("pools"), dict):
            return values
        named = {name: {**pool, "name": name} if isinstance(pool, dict) else pool for name, pool in pools.items()}
        return {**values, "pools": named}

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: only one of them is set")
        return self

    @classmethod
    def load(cls, file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Self:
        """`file` must exist when it is given; the default one need not. Flags that are None were not given.
        Raises `InvalidRequest`, naming where and what."""
        values = merge(_read(file), from_environment(environment))
        values = merge(values, {name: value for name, value in flags.items() if value is not None})
        if "host" not in values.get("docker", {}):
            values = merge(values, engine_of(environment))
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InvalidRequest(f"settings: {sentences(error)}") from None


def sentence(name: str) -> str:
    """What a setting says of itself, which its flag says too."""
    return Settings.model_fields[name].description or ""


def _read(file: Path | None) -> dict[str, Any]:
    path = file or Path(FILE_NAME)
    if file is None and not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise InvalidRequest(f"{path}: {error}") from None


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """`KERNELPOOL_A__B=c` → `{"a": {"b": "c"}}`; an empty one counts as not set. Types are pydantic's business."""
    values: dict[str, Any] = {}
    for name, value in sorted(environment.items()):
        if not name.startswith(PREFIX) or name in NO_SETTINGS or not value or _is_service_link(name, value):
            continue
        *parents, last = name.removeprefix(PREFIX).lower().split("__")
        table = values
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise InvalidRequest(f"environment: {name} contradicts another variable")
        table[last] = value
    return values


def engine_of(environment: Mapping[str, str]) -> dict[str, Any]:
    """What Docker's own command line goes by, for those who have not told us of an engine."""
    if not (host := environment.get("DOCKER_HOST")):
        return {}
    found: dict[str, Any] = {"host": host, "tls_verify": bool(environment.get("DOCKER_TLS_VERIFY"))}
    if path := environment.get("DOCKER_CERT_PATH"):
        found["cert_path"] = path
    return {"docker": found}


def _is_service_link(name: str, value: str) -> bool:
    """What Kubernetes tells of a Service that happens to be called kernelpool: KERNELPOOL_PORT=tcp://… and the like."""
    is_address = "__" not in name and value.startswith(("tcp://", "udp://"))
    return name.startswith((f"{PREFIX}SERVICE_", f"{PREFIX}PORT_")) or is_address


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged, everything else is replaced."""
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name)
        merged[name] = merge(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged
