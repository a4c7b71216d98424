"""Principal: who asks, of which tenant, and what they may do in which pools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from kernelpool.errors import Forbidden


class Role(StrEnum):
    """What a principal may do. Executor and admin may also see what a viewer sees; neither includes the other: who
    manages pools need not be able to read what runs in them."""

    VIEWER = "viewer"
    """See pools, metadata, and which sessions the own tenant has."""
    EXECUTOR = "executor"
    """Use sessions: executions, files, their end."""
    ADMIN = "admin"
    """Make, change and remove pools."""


_GIVEN_BY: Final[Mapping[Role, frozenset[Role]]] = {
    Role.VIEWER: frozenset(Role),
    Role.EXECUTOR: frozenset({Role.EXECUTOR}),
    Role.ADMIN: frozenset({Role.ADMIN}),
}

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. Identifiers belong to a tenant: two tenants may use the same one for sessions of their own."""

    name: str
    """For logs and messages: `token`, `key:<name>` or `<issuer>:<subject>`."""
    tenant: str = DEFAULT_TENANT
    roles: frozenset[Role] = frozenset()
    pools: frozenset[str] | None = None
    """By name; None for all."""

    def require(self, role: Role, pool: str | None = None) -> None:
        """Raises `Forbidden` that says what is missing. No pool is looked up here: the words are the same whether or
        not it exists."""
        if not self.roles & _GIVEN_BY[role]:
            raise Forbidden(f"{self.name} has not the role '{role}'.")
        if pool is not None and not self.may_enter(pool):
            raise Forbidden(f"{self.name} has no access to pool '{pool}'.")

    def may_enter(self, pool: str) -> bool:
        return self.pools is None or pool in self.pools
