"""PoolKeys: one key a pool and tenant for MCP clients, derived and never stored; and names that only we can make up.

ACA shows a pool's key whenever it is asked for, so a hash of it would not do, and whoever reads keys out of a file has
them. Here `<state>/mcp.json` holds one secret of the gateway, and how often each pool's key was renewed; a key is
`kpm_<tenant>_<HMAC>`, made anew for each look. It is good on the pool's MCP server and nowhere else.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import re
import secrets
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kernelpool.auth.principal import Principal, Role
from kernelpool.errors import BackendUnavailable, InvalidToken, StartFailed

FILE: Final = "mcp.json"
_KEY = re.compile(r"kpm_((?:[0-9a-f]{2}){1,1024})_([0-9a-f]{64})", re.ASCII)
_MAX_BYTES = 1 << 20


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid")

    secret: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    renewals: dict[str, int] = Field(default_factory=dict)
    """By the pool's name."""


class PoolKeys:
    """Without a file it lasts as long as the process."""

    def __init__(self, stored: _Stored | None = None, file: Path | None = None) -> None:
        self._stored = stored or _Stored(secret=secrets.token_hex(32))
        self._file = file
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<PoolKeys [{len(self._stored.renewals)} renewed]>"

    @classmethod
    def load(cls, state: Path) -> Self:
        """Blocks. Makes the secret when there is none. Raises `StartFailed`."""
        file = state / FILE
        try:
            if file.exists():
                if file.stat().st_size > _MAX_BYTES:
                    raise ValueError("too large")
                return cls(_Stored.model_validate_json(file.read_bytes()), file)
            stored = _Stored(secret=secrets.token_hex(32))
            _write(file, stored)
        except (OSError, ValueError) as error:  # pydantic's ValidationError is a ValueError
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise StartFailed(f"the secret of MCP keys in {file} cannot be used: {why}; mend or remove it") from error
        return cls(stored, file)

    def key(self, pool: str, tenant: str) -> str:
        """The same until it is renewed."""
        renewals = str(self._stored.renewals.get(pool, 0))
        return f"kpm_{tenant.encode().hex()}_{self.digest('key', pool, renewals, tenant)}"

    def principal(self, pool: str, key: str) -> Principal:
        """Whom the key of this pool stands for. Raises `InvalidToken`, whatever is wrong with it."""
        match = _KEY.fullmatch(key)
        try:
            tenant = bytes.fromhex(match[1] if match else "").decode()
        except ValueError:
            raise InvalidToken from None
        if not tenant or not hmac.compare_digest(key, self.key(pool, tenant)):
            raise InvalidToken
        return Principal(f"mcp-key:{pool}", tenant, frozenset({Role.EXECUTOR}), frozenset({pool}))

    async def renew(self, pool: str) -> None:
        """From now on no key that the pool had is good. Raises `BackendUnavailable` when that cannot be kept."""
        async with self._lock:
            renewals = {**self._stored.renewals, pool: self._stored.renewals.get(pool, 0) + 1}
            stored = self._stored.model_copy(update={"renewals": renewals})
            if self._file is not None:
                try:
                    await asyncio.to_thread(_write, self._file, stored)
                except OSError as error:
                    raise BackendUnavailable(f"the gateway's state cannot be written: {error.strerror}") from error
            self._stored = stored

    def digest(self, *words: str) -> str:
        """What nobody else can make of these words, in 64 hexadecimal digits."""
        text = json.dumps(words).encode()
        return hmac.new(bytes.fromhex(self._stored.secret), text, hashlib.sha256).hexdigest()


def looks_like_pool_key(token: str) -> bool:
    return token.startswith("kpm_")


def _write(file: Path, stored: _Stored) -> None:
    """As a whole, and to last: a key that was renewed must not come back with the power."""
    scratch = file.with_suffix(".new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as stream:
        stream.write(stored.model_dump_json().encode())
        stream.flush()
        os.fsync(stream.fileno())
    scratch.replace(file)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
