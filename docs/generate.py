"""Writes settings.md, errors.md and metrics.md from the code: `python docs/generate.py`. A test holds them together."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kernelpool import errors
from kernelpool.auth.settings import OidcSettings
from kernelpool.backends.docker.settings import DockerSettings
from kernelpool.config import Settings
from kernelpool.errors import KernelpoolError
from kernelpool.pool.container import ContainerSettings, ProbeSettings, RegistrySettings
from kernelpool.pool.settings import LimitSettings, McpSettings, PoolSettings
from kernelpool.quotas import QuotaSettings
from kernelpool.telemetry.metrics import CollectorRegistry, Metrics

FOLDER = Path(__file__).parent
SIZES = {"max_body", "memory", "workspace", "tmp", "output_bytes", "history_bytes", "max_upload"}


PROBE_KINDS = {"http_get", "tcp_socket"}


def settings_page() -> str:
    return "\n".join(
        [
            "# Settings",
            "",
            "In `kernelpool.toml`, or as environment variables: `KERNELPOOL_PORT`, `KERNELPOOL_POOLS__PYTHON__READY`,",
            "`KERNELPOOL_POOLS__PYTHON__LIMITS__MEMORY`. Flags win over the environment, which wins over the file.",
            "Sizes are numbers of bytes, or text such as `512Mi` or `1Gi`. Times are seconds.",
            "",
            *_table("The gateway", Settings, skip={"pools", "tenants", "oidc", "docker"}),
            *_table("`[pools.<name>]`", PoolSettings, skip={"name", "limits", "container", "mcp"}),
            *_table("`[pools.<name>.limits]`", LimitSettings),
            *_table("`[pools.<name>.mcp]`", McpSettings),
            *_table("`[pools.<name>.container]`", ContainerSettings, skip={"probes", "registry"}),
            *_table("`[pools.<name>.container.registry]`", RegistrySettings),
            *_table("`[pools.<name>.container.probes.startup]` and `.liveness`", ProbeSettings, skip=PROBE_KINDS),
            '`http_get = { path = "/health", http_headers = [{ name = "X", value = "y" }] }` or `tcp_socket = {}`.',
            "",
            *_table("`[docker]`", DockerSettings),
            *_table("`[oidc.<name>]`", OidcSettings),
            *_table('`[tenants.<name>]`, and `[tenants."*"]` for those who are not named', QuotaSettings),
        ]
    )


def errors_page() -> str:
    rows = [
        f"| `{error.code}` | {error.status} | {error.remedy.replace('|', chr(92) + '|')} |"
        for error in sorted(_named(KernelpoolError), key=lambda error: (error.status, error.code))
    ]
    return "\n".join(
        [
            "# Errors",
            "",
            'An error is `{"error": {"code", "message", "traceId", "remedy"}}` with the header `x-ms-error-code`;',
            "the message names the thing and the limit. Two exceptions, as ACA has them: a full pool answers the flat",
            '`{"code", "message"}`, and a body with wrong fields `application/problem+json` with an entry a field.',
            "Code of yours that raises is no error of the gateway: it is an execution that failed, with status 200.",
            "",
            "| code | HTTP | what to do |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def metrics_page() -> str:
    lines = Metrics(CollectorRegistry()).render([]).decode().splitlines()
    described = [line.split(" ", 3)[2:] for line in lines if line.startswith(("# HELP ", "# TYPE "))]
    pairs = zip(described[::2], described[1::2], strict=True)
    rows = sorted(f"| `{name}` | {kind} | {text} |" for (name, text), (_, kind) in pairs)
    return "\n".join(
        [
            "# Metrics",
            "",
            "`GET /metrics`. Labels are `pool`, words from fixed sets, and for a live session its guid, which log",
            "lines and the audit log call `session`. A session's usage is what its agent says, inside the sandbox.",
            "",
            "| metric | kind | |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _table(title: str, model: type[BaseModel], skip: Collection[str] = ()) -> list[str]:
    rows = [
        f"| `{name}` | {_default(name, field)} | {_sentence(field)} |"
        for name, field in model.model_fields.items()
        if name not in skip
    ]
    return [f"## {title}", "", "| setting | default | |", "|---|---|---|", *rows, ""]


def _default(name: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.default_factory() if field.default_factory else field.default  # type: ignore[misc,call-arg]
    if name == "state_dir":
        return "`/var/lib/kernelpool` as root, else `~/.local/state/kernelpool`"
    if value is None or value in ((), {}):
        return ""
    if isinstance(value, tuple):
        return f"`{' '.join(value)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if name in SIZES:
        return f"`{value >> 30}Gi`" if value % (1 << 30) == 0 else f"`{value >> 20}Mi`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _sentence(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _named(error: type[KernelpoolError]) -> Iterator[type[KernelpoolError]]:
    """Classes with a code of their own; those without are only branches of the tree."""
    if "code" in vars(error):
        yield error
    for child in error.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _named(child)


if __name__ == "__main__":
    (FOLDER / "settings.md").write_text(settings_page())
    (FOLDER / "errors.md").write_text(errors_page())
    (FOLDER / "metrics.md").write_text(metrics_page())
