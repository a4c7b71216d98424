"""Who asks: from the headers of a request to a `Principal`. One bearer token today; the protocol leaves room."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from kernelpool.errors import Unauthorized
from kernelpool.gateway import Principal

TOKEN_FILE = "token.sha256"  # noqa: S105 - a file name
_FAILURE = "The request has no valid bearer token."


class Authenticator(Protocol):
    """Turns credentials into a principal. API keys and OIDC are further implementations."""

    async def authenticate(self, authorization: Sequence[str]) -> Principal:
        """`authorization` holds every header of that name. Raises `Unauthorized`, always with the same words: what
        was wrong with a credential helps only who should not have it."""


class TokenAuthenticator:
    """One token, of which only the SHA-256 is held."""

    def __init__(self, digest: bytes) -> None:
        self._digest = digest

    async def authenticate(self, authorization: Sequence[str]) -> Principal:
        # Two headers: which one did the proxy in front of us look at? Neither counts.
        scheme, _, token = authorization[0].partition(" ") if len(authorization) == 1 else ("", "", "")
        matches = hmac.compare_digest(digest_of(token.strip()), self._digest)
        if scheme.lower() != "bearer" or not matches:
            raise Unauthorized(_FAILURE)
        return Principal("token")


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
    token = secrets.token_urlsafe(32)
    digest = digest_of(token)
    # Written under another name first: a crash half-way must not leave a file that locks everybody out.
    scratch = file.with_suffix(".new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(digest.hex() + "\n")
    scratch.replace(file)
    return digest, token
