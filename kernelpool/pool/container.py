"""ContainerSettings: what an operator says of a pool whose sandboxes run an image of his own.

The names are those of Azure's `customContainerTemplate`, as Python writes names. Values of secrets go in and never come
out again: whoever asks reads a mask, logs and `repr` show it too, and the file that keeps the pool is for its owner
only.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    SerializationInfo,
    field_serializer,
    model_validator,
)

from kernelpool.backends.container import ContainerSpec, HttpCheck, Probe, Registry

REVEAL: Final = {"secrets": "revealed"}
"""The context in which settings are dumped with the values of secrets: to keep or to merge them, never to show them."""
CONTAINER: Final = "container"
"""The name that the runtime of custom containers has."""
MASK: Final = "**********"
"""What is shown in the place of a value."""
RESERVED_PORTS = frozenset({3128})
"""Taken on the sandbox's own loopback address: by the way to the proxy of its egress."""

_DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_Line = Annotated[str, Field(max_length=32_768, pattern=r"^[^\x00]*$")]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,254}$")]
# JSON has no tuples: where settings are read strictly, a list is as good.
_Listed = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
_Lines = Annotated[tuple[_Line, ...], _Listed]
_SecretName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$")]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)


class SecretRef(_Table):
    """A value that is kept among the secrets."""

    secret_ref: _SecretName
    """Name of the secret."""


class RegistrySettings(_Table):
    """Where the image is fetched from, when not everybody may fetch it."""

    server: str = Field(max_length=255, pattern=r"^[A-Za-z0-9.-]+(:[0-9]{1,5})?$")
    """Host of the registry, as the image's name begins with it: `registry.example.com`."""
    username: str | None = Field(None, max_length=255)
    """Name to log in with."""
    password_secret_ref: _SecretName | None = None
    """Name of the secret that holds the password."""

    def serves(self, image: str) -> bool:
        """Whether an image of that name is fetched from there: another registry must not get the password."""
        first, slash, _ = image.partition("/")
        is_host = bool(slash) and ("." in first or ":" in first or first == "localhost")
        return first == self.server if is_host else self.server in _DOCKER_HUB


class HttpHeader(_Table):
    name: str = Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,255}$")
    """Name of the header."""
    value: str = Field(max_length=4096, pattern=r"^[\t\x20-\x7e]*$")
    """Its value."""


class HttpGet(_Table):
    """A GET that is to be answered with a status from 200 to 399."""

    path: str = Field("/", max_length=2048, pattern=r"^/[\x21-\x7e]*$")
    """Path and query to ask for."""
    port: int | None = Field(None, ge=1, le=65535)
    """The `target_port`, which is the only one that is reached; it may be left out."""
    scheme: Literal["http"] = "http"
    """Only http: the connection never leaves the machine."""
    http_headers: Annotated[tuple[HttpHeader, ...], _Listed] = Field((), max_length=20)
    """Headers to send."""


class TcpSocket(_Table):
    """A connection that is to be accepted."""

    port: int | None = Field(None, ge=1, le=65535)
    """The `target_port`, which is the only one that is reached; it may be left out."""


class ProbeSettings(_Table):
    """How to see whether the container is well; ranges and defaults as in Azure."""

    http_get: HttpGet | None = None
    """Ask over HTTP: path, http_headers."""
    tcp_socket: TcpSocket | None = None
    """Only connect."""
    failure_threshold: int = Field(3, ge=1, le=10)
    """Failures in a row after which it is not well."""
    initial_delay_seconds: float = Field(0, ge=0, le=60)
    """Seconds from the container's start to the first look."""
    period_seconds: float = Field(10, ge=1, le=240)
    """Seconds from one look to the next."""
    success_threshold: Literal[1] = 1
    """One good look is enough."""
    timeout_seconds: float = Field(1, ge=1, le=240)
    """Seconds that an answer may take."""

    @model_validator(mode="after")
    def _asks_in_one_way(self) -> Self:
        if (self.http_get is None) == (self.tcp_socket is None):
            raise ValueError("say either http_get or tcp_socket")
        return self

    @property
    def port(self) -> int | None:
        asked = self.http_get or self.tcp_socket
        return asked.port if asked else None

    def to_probe(self) -> Probe:
        http = None
        if self.http_get is not None:
            headers = tuple((header.name, header.value) for header in self.http_get.http_headers)
            http = HttpCheck(self.http_get.path, headers)
        return Probe(
            http, self.initial_delay_seconds, self.period_seconds, self.timeout_seconds, self.failure_threshold
        )


class ProbesSettings(_Table):
    startup: ProbeSettings | None = None
    """Until it is passed a sandbox is not ready. Without one, the target port has to take connections."""
    liveness: ProbeSettings | None = None
    """Once it is failed a ready sandbox is replaced, and a session ends: its next request gets a fresh one."""


class ContainerSettings(_Table):
    """An image in the place of a runtime: requests are forwarded to its target port."""

    image: str = Field(min_length=1, max_length=512, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]*$")
    """Image to run, such as `registry.example.com/team/app:1.4`."""
    target_port: int = Field(ge=1, le=65535)
    """Port that its HTTP server listens on, on any address or only on 127.0.0.1."""
    command: _Lines = Field((), max_length=128)
    """Replaces the image's entry point."""
    args: _Lines = Field((), max_length=512)
    """Replaces the image's command: the arguments of the entry point."""
    env: dict[_Name, _Line | SecretRef] = Field(default_factory=dict, max_length=256)
    """Environment variables: text, or `{ secret_ref = "name" }`. The code in the container can read them all."""
    secrets: dict[_SecretName, SecretStr] = Field(default_factory=dict, max_length=64)
    """Values that are kept and not shown again, for env and registry."""
    registry: RegistrySettings | None = None
    """Registry to log in to: server, username, password_secret_ref."""
    probes: ProbesSettings = ProbesSettings()
    """When it is ready, and when it is not well any more: startup, liveness."""
    user: str | None = Field(None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?$")
    """User to run as, such as `1000:1000`; without one, the image's own, root too. Root has no capability there."""
    writable_root: bool = False
    """Let it write everywhere in its image's files, not only in /tmp and /mnt/data. What it writes there lies on the
    host's disk, and most storage drivers set no limit to it: one session can fill that disk."""
    lifecycle: Literal["timed", "on_container_exit"] = "timed"
    """`timed`: a session ends after the pool's cooldown, which each request starts anew. `on_container_exit`: when its
    main process exits. Both end at max_alive."""
    silence: float = Field(240.0, ge=1, le=86400, allow_inf_nan=False)
    """Seconds that the container may say nothing while an answer is due; between pieces of a long one as well."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.target_port in RESERVED_PORTS:
            raise ValueError(f"target_port {self.target_port} is taken inside of sandboxes; let it listen on another")
        if self.registry is not None and not self.registry.serves(self.image):
            raise ValueError(
                f"the image is not from the registry {self.registry.server!r}, which alone gets the password"
            )
        for name, probe in (("startup", self.probes.startup), ("liveness", self.probes.liveness)):
            if probe and probe.port not in (None, self.target_port):
                raise ValueError(
                    f"probes.{name} asks port {probe.port}; only target_port {self.target_port} is reached"
                )
        for name, secret in self.secrets.items():
            if secret.get_secret_value() in ("", MASK):
                raise ValueError(f"secrets.{name} has no value, or the mask that stands for one; send the value itself")
        for name in self._references():
            if name not in self.secrets:
                raise ValueError(f"there is no secret {name!r} among secrets")
        return self

    @field_serializer("secrets")
    def _dump_secrets(self, secrets: dict[str, SecretStr], info: SerializationInfo) -> dict[str, str]:
        if info.context == REVEAL:
            return {name: secret.get_secret_value() for name, secret in secrets.items()}
        return dict.fromkeys(secrets, MASK)

    def to_spec(self) -> ContainerSpec:
        env = {
            name: self._secret(value.secret_ref) if isinstance(value, SecretRef) else value
            for name, value in self.env.items()
        }
        return ContainerSpec(
            image=self.image,
            target_port=self.target_port,
            command=self.command,
            args=self.args,
            env=env,
            user=self.user,
            writable_root=self.writable_root,
            startup=self.probes.startup.to_probe() if self.probes.startup else None,
            liveness=self.probes.liveness.to_probe() if self.probes.liveness else None,
            silence=self.silence,
        )

    def to_registry(self) -> Registry | None:
        if self.registry is None:
            return None
        reference = self.registry.password_secret_ref
        return Registry(self.registry.server, self.registry.username, reference and self._secret(reference))

    def _secret(self, name: str) -> str:
        return self.secrets[name].get_secret_value()

    def _references(self) -> list[str]:
        names = [value.secret_ref for value in self.env.values() if isinstance(value, SecretRef)]
        if self.registry and self.registry.password_secret_ref:
            names.append(self.registry.password_secret_ref)
        return names
