"""Files, sessions and runtimes as JSON, in the words that ACA has for them."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from kernelpool.backends.base import RuntimeMetadata
from kernelpool.gateway import SessionInfo
from kernelpool.models import FileInfo, WorkspacePath

_TYPES = mimetypes.MimeTypes()
"""Only the types that Python knows by itself: the same answers on every machine."""

_KERNEL_URLS = {"ipykernel": "https://github.com/ipython/ipykernel"}


def content_type(name: str) -> str:
    """By the name alone: what is in the file is the session's business."""
    guess, encoding = _TYPES.guess_type(name, strict=False)
    if guess is None or encoding is not None:
        return "application/octet-stream"
    textual = guess.startswith("text/") or guess in ("application/json", "application/javascript")
    return f"{guess}; charset=utf-8" if textual else guess


def timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def legacy_file(file: FileInfo, listed: WorkspacePath) -> dict[str, Any]:
    name = _relative(file.path, listed)
    return {"properties": {"filename": name, "size": file.size, "lastModifiedTime": timestamp(file.modified_at)}}


def legacy_listing(files: Sequence[FileInfo], listed: WorkspacePath) -> dict[str, Any]:
    """Files only: the old shape has no way to say that an entry is a directory."""
    return {"value": [legacy_file(file, listed) for file in files if not file.is_directory]}


def modern_file(file: FileInfo, listed: WorkspacePath) -> dict[str, Any]:
    """`directory` is relative to the listed path, "." for that path itself."""
    entry = {
        "name": file.name,
        "type": "directory" if file.is_directory else "file",
        "sizeInBytes": 0 if file.is_directory else file.size,
        "lastModifiedAt": timestamp(file.modified_at),
        "directory": _relative(file.path, listed).rpartition("/")[0] or ".",
    }
    return entry if file.is_directory else {**entry, "contentType": content_type(file.name)}


def modern_listing(files: Sequence[FileInfo], listed: WorkspacePath) -> dict[str, Any]:
    return {"value": [modern_file(file, listed) for file in files]}


def session(info: SessionInfo) -> dict[str, Any]:
    """`expireAt` is what built-in pools say, `expiresAt` what custom containers say: clients read either.
    `egress` is ours."""
    expires = timestamp(info.expires_at)
    return {
        "identifier": info.identifier,
        "etag": info.etag,
        "createdAt": timestamp(info.created_at),
        "lastAccessedAt": timestamp(info.last_accessed_at),
        "expireAt": expires,
        "expiresAt": expires,
        "egress": info.egress.describe(),
    }


def metadata(runtime: RuntimeMetadata) -> dict[str, Any]:
    created = timestamp(runtime.created_at)
    return {
        "runtimes": [{"name": runtime.language, "version": runtime.language_version}],
        "preInstalledPackages": [{"name": package.name, "version": package.version} for package in runtime.packages],
        "createdAt": created,
        "lastUpdatedAt": created,
        "jupyterKernel": {
            "name": runtime.kernel_name,
            "version": runtime.kernel_version,
            "projectUrl": _KERNEL_URLS.get(runtime.kernel_name, ""),
            "description": f"Jupyter kernel for {runtime.language}",
        },
    }


def _relative(path: str, listed: WorkspacePath) -> str:
    return path.removeprefix(listed.text + "/") if listed.text else path
