"""What an operator says of an OpenID Connect issuer: whose tokens count, and what a token's claims mean here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from kernelpool.auth.principal import DEFAULT_TENANT, Role

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Asymmetric ones only: with a shared secret, whoever can check a token can make one."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED: Final = frozenset({"key", "token", DEFAULT_TENANT})
"""What principals of other kinds, and the tenant of the operator, are called."""


def is_secure(url: str) -> bool:
    """https, or plain http that does not leave the machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)))


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _split(value: object) -> object:
    """Environment variables have no lists: there, words with spaces between them."""
    return value.split() if isinstance(value, str) else value


def _check_url(value: str) -> str:
    if not is_secure(value):
        raise ValueError("must be an https URL (http only on loopback)")
    return value


def _check_name(value: str) -> str:
    if not _NAME.fullmatch(value) or value.lower() in _RESERVED:
        reserved = ", ".join(sorted(_RESERVED))
        raise ValueError(f"{value!r} is no name for an issuer: letters, digits and . _ - but not {reserved}")
    return value


Words = Annotated[tuple[str, ...], BeforeValidator(_split)]
Url = Annotated[str, AfterValidator(_check_url)]
IssuerName = Annotated[str, AfterValidator(_check_name)]


class OidcSettings(BaseModel):
    """One issuer. It can speak only for tenants of its own: those are called `<name>` or `<name>:<claim>`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    issuer: Url
    """Whose tokens count: their `iss`, to the letter. https, but on loopback."""
    audience: Annotated[Words, Field(min_length=1)]
    """A token must be meant for one of these: its `aud`. Azure's clients ask for `https://dynamicsessions.io`, older
    ones for `https://acasessions.io`."""
    jwks_uri: Url | None = None
    """Where the issuer's keys are. Without it, `<issuer>/.well-known/openid-configuration` is asked."""
    algorithms: Annotated[tuple[Algorithm, ...], BeforeValidator(_split), Field(min_length=1)] = ("RS256", "ES256")
    """Signatures that count."""
    roles_claim: str = Field("roles", min_length=1)
    """The claim that says what a caller may do: a text, a list of texts or, when it is called `scope` or `scp`,
    words."""
    roles: Annotated[Mapping[Role, Words], Field(min_length=1)]
    """Which values of that claim give which of our roles, as in `{ executor = ["Sessions.Execute"] }`. A token with
    none of them may do nothing."""
    pools: Annotated[Words, Field(min_length=1)] | None = None
    """Pools that its tokens can give access to. Without it, all."""
    pools_claim: str | None = Field(None, min_length=1)
    """The claim that names the pools of a caller; a token without it may enter none. Without this setting, all of
    `pools`."""
    tenant_claim: str | None = Field(None, min_length=1)
    """The claim that names the tenant, such as `tid`; a token without it is refused. Without this setting, all of an
    issuer's callers are one tenant."""
    name_claim: str = Field("sub", min_length=1)
    """The claim that names a caller in logs."""
    clock_skew: float = Field(60.0, ge=0, le=600, allow_inf_nan=False)
    """Seconds that the issuer's clock may differ from ours."""
    keys_ttl: float = Field(3600.0, gt=0, allow_inf_nan=False)
    """Seconds after which the issuer is asked for its keys anew: so long may one that it has withdrawn still count."""
    keys_interval: float = Field(10.0, gt=0, allow_inf_nan=False)
    """Least seconds between two questions, however many tokens name keys that nobody knows."""
    keys_stale: float = Field(86400.0, gt=0, allow_inf_nan=False)
    """Seconds that known keys are used while the issuer does not answer."""


def _check_issuers(value: dict[str, OidcSettings]) -> dict[str, OidcSettings]:
    if len({settings.issuer for settings in value.values()}) < len(value):
        raise ValueError("two tables have the same issuer")
    return value


OidcTable = Annotated[dict[IssuerName, OidcSettings], AfterValidator(_check_issuers)]
"""Issuers by the names that they have here."""
