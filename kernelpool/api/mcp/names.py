"""Names that nobody can guess and we need not remember: of MCP sessions, and of the code sessions behind them.

An MCP session is a name and our proof that we gave it to this caller for this pool, so it outlives the gateway, as the
code session behind it does. Who has none has one code session by each credential.
"""

from __future__ import annotations

import hmac
import re
import uuid

from kernelpool.auth.pool_keys import PoolKeys
from kernelpool.auth.principal import Principal

_SESSION = re.compile(r"([0-9a-f]{32})-([0-9a-f]{64})", re.ASCII)


class Names:
    """Of one caller, in one pool."""

    def __init__(self, keys: PoolKeys, principal: Principal, pool: str) -> None:
        self._keys = keys
        self._words = (pool, principal.tenant, principal.name)

    def new_session(self) -> str:
        id = uuid.uuid4().hex
        return f"{id}-{self._proof(id)}"

    def has(self, session: str) -> bool:
        """Whether this caller was given it."""
        match = _SESSION.fullmatch(session)
        return match is not None and hmac.compare_digest(match[2], self._proof(match[1]))

    def identifier(self, session: str | None) -> str:
        """Of the code session that is meant when the caller names none."""
        if session is not None:
            return f"mcp-{session.partition('-')[0]}"
        return f"mcp-{self._keys.digest('identifier', *self._words)[:32]}"

    def _proof(self, id: str) -> str:
        return self._keys.digest("session", *self._words, id)
