"""From a bearer token to a principal: the initial token, an API key, or an issuer's token, by the look of it."""

from __future__ import annotations

import hmac

from kernelpool.auth.initial import INITIAL, digest_of
from kernelpool.auth.keyring import KeyRing
from kernelpool.auth.oidc import Issuers, looks_like_jws
from kernelpool.auth.pool_keys import PoolKeys, looks_like_pool_key
from kernelpool.auth.principal import Principal
from kernelpool.errors import InvalidToken


class Authenticator:
    """Of the initial token only the SHA-256 is held. Without a ring or issuers nobody is let in by theirs."""

    def __init__(
        self,
        initial: bytes,
        keys: KeyRing | None = None,
        issuers: Issuers | None = None,
        pool_keys: PoolKeys | None = None,
    ) -> None:
        self._initial = initial
        self._keys = keys
        self._issuers = issuers
        self.pool_keys = pool_keys or PoolKeys()

    async def authenticate(self, token: str, pool: str | None = None) -> Principal:
        """`pool` is the one whose MCP key counts here. Raises `InvalidToken`, always with the same words."""
        # First, for the operator may have chosen one that looks like something else.
        if hmac.compare_digest(digest_of(token), self._initial):
            return INITIAL
        if self._keys is not None and self._keys.claims(token):
            return self._keys.principal(token)
        if pool is not None and looks_like_pool_key(token):
            return self.pool_keys.principal(pool, token)
        if self._issuers is not None and looks_like_jws(token):
            return await self._issuers.principal(token)
        raise InvalidToken
