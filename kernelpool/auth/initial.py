"""The initial token: one for everything, made at the first start or set by the operator. Only its SHA-256 is held."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from kernelpool.auth.principal import Principal, Role

TOKEN_FILE = "token.sha256"  # noqa: S105 - a file name
INITIAL = Principal("token", roles=frozenset(Role))
"""Who sends it: all roles, all pools, the tenant `default`."""


def digest_of(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


def load_or_make_token(state_dir: Path) -> tuple[bytes, str | None]:
    """The digest in the state directory; when there is none, that of a new token, which is returned this once."""
    file = state_dir / TOKEN_FILE
    if file.exists():
        digest = bytes.fromhex(file.read_text().strip())
        if len(digest) != hashlib.sha256().digest_size:
            raise ValueError(f"{file.name} does not hold a SHA-256")
        return digest, None
    token = secrets.token_hex(32)
    digest = digest_of(token)
    # Written under another name first: a crash half-way must not leave a file that locks everybody out.
    scratch = file.with_suffix(".new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(digest.hex() + "\n")
    scratch.replace(file)
    return digest, token
