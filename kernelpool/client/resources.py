"""Pools, sessions, files and runtimes as the gateway describes them, read from its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kernelpool.models import FileInfo


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """A pool's numbers now, and its limits."""

    name: str
    runtime: str
    language: str
    ready: int
    starting: int
    sessions: int
    max_sessions: int
    default_timeout: float
    max_timeout: float
    max_upload: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    """By the names of docs/settings.md, from a gateway that tells them."""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session that is alive. It ends at `expires_at`, unless it is used before."""

    identifier: str
    created_at: datetime
    last_accessed_at: datetime
    expires_at: datetime
    egress: str = "none"
    """What it may reach: "none", "outside", or "domains"."""
    domains: tuple[str, ...] = ()
    """Which ones, where it is these only."""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the sessions of a pool run on."""

    language: str
    language_version: str
    kernel: str
    kernel_version: str
    packages: Mapping[str, str] = field(repr=False)
    """Name → version."""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


def pool_of(answer: Mapping[str, Any]) -> PoolInfo:
    return PoolInfo(
        name=answer["name"],
        runtime=answer["runtime"],
        language=answer["language"],
        ready=answer["ready"],
        starting=answer["starting"],
        sessions=answer["sessions"],
        max_sessions=answer["maxSessions"],
        default_timeout=answer["defaultTimeoutInSeconds"],
        max_timeout=answer["maxTimeoutInSeconds"],
        max_upload=answer["maxUploadInBytes"],
        settings=answer.get("settings") or {},
        raw=answer,
    )


def pools_of(answer: Mapping[str, Any]) -> list[PoolInfo]:
    return [pool_of(entry) for entry in answer["value"]]


def session_of(answer: Mapping[str, Any]) -> SessionInfo:
    egress = answer.get("egress") or {}
    return SessionInfo(
        identifier=answer["identifier"],
        created_at=datetime.fromisoformat(answer["createdAt"]),
        last_accessed_at=datetime.fromisoformat(answer["lastAccessedAt"]),
        expires_at=datetime.fromisoformat(answer["expiresAt"]),
        egress=egress.get("mode", "none"),
        domains=tuple(egress.get("domains", ())),
        raw=answer,
    )


def sessions_of(answer: Mapping[str, Any]) -> tuple[list[SessionInfo], bool]:
    """A page, and whether there is another. The link itself is not followed: the token goes where the caller said."""
    return [session_of(entry) for entry in answer["sessions"]], "nextLink" in answer


def metadata_of(answer: Mapping[str, Any]) -> Metadata:
    runtime, kernel = answer["runtimes"][0], answer["jupyterKernel"]
    return Metadata(
        language=runtime["name"],
        language_version=runtime["version"],
        kernel=kernel["name"],
        kernel_version=kernel["version"],
        packages={package["name"]: package["version"] for package in answer["preInstalledPackages"]},
        raw=answer,
    )


def file_of(answer: Mapping[str, Any], listed: str = "") -> FileInfo:
    """`listed` is the directory that the answer's `directory` is relative to."""
    parents = [part for part in (listed, answer["directory"]) if part not in ("", ".")]
    return FileInfo(
        path="/".join([*parents, answer["name"]]),
        is_directory=answer["type"] == "directory",
        size=answer["sizeInBytes"],
        modified_at=datetime.fromisoformat(answer["lastModifiedAt"]).timestamp(),
    )
