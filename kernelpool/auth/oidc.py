"""Tokens of OpenID Connect issuers: JSON Web Tokens, checked by PyJWT with keys and algorithms that we choose."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, Self

import jwt
from jwt.exceptions import PyJWTError

from kernelpool.auth.fetch import Fetcher
from kernelpool.auth.jwks import MAX_CLAIM, IssuerKeys
from kernelpool.auth.principal import Principal, Role
from kernelpool.auth.settings import OidcSettings
from kernelpool.errors import InvalidToken

log = logging.getLogger(__name__)

MAX_TOKEN: Final = 16 << 10
"""Characters of a token; those of large directories have some thousand."""
_JWS: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_WORDS: Final = frozenset({"scope", "scp"})
"""Claims that are lists of words, RFC 8693. Splitting any other text would let whoever chooses his own name
choose his roles."""


class Refused(Exception):
    """A token that does not count, and why: for the log, in which no part of it is repeated."""


class Issuers:
    """An async context manager over the issuers that the operator trusts."""

    def __init__(self, settings: Mapping[str, OidcSettings]) -> None:
        self._settings = dict(settings)
        self._issuers: dict[str, Issuer] = {}
        self._stack = AsyncExitStack()

    def __repr__(self) -> str:
        return f"<Issuers {', '.join(self._settings) or 'none'}>"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            fetcher = await stack.enter_async_context(Fetcher())
            for name, settings in self._settings.items():
                keys = await stack.enter_async_context(IssuerKeys(name, settings, fetcher))
                self._issuers[settings.issuer] = Issuer(name, settings, keys)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._issuers.clear()
        await self._stack.aclose()

    async def principal(self, token: str) -> Principal:
        """Raises `InvalidToken`, whatever is wrong with it."""
        try:
            header, claims = read_unchecked(token)
            issuer = self._issuers.get(_text(claims, "iss"))
            if issuer is None:
                raise Refused("the issuer is unknown")
            return await issuer.principal(token, header)
        except Refused as refused:
            log.info("token refused", extra={"reason": str(refused)})
            raise InvalidToken from None


class Issuer:
    """One of them: checks a token with its keys, and reads what the claims mean here."""

    def __init__(self, name: str, settings: OidcSettings, keys: IssuerKeys) -> None:
        self._name = name
        self._settings = settings
        self._keys = keys

    async def principal(self, token: str, header: Mapping[str, Any]) -> Principal:
        """Raises `Refused`."""
        algorithm = _text(header, "alg")
        key = await self._keys.find(_text(header, "kid"), algorithm)
        if key is None:
            raise Refused(f"{self._name} has no such key for an algorithm that is allowed")
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                leeway=self._settings.clock_skew,
                options={"require": ["iss", "aud", "exp"]},
            )
        except (PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise Refused(f"{self._name}: {type(error).__name__}") from error
        return self._describe(claims)

    def _describe(self, claims: Mapping[str, Any]) -> Principal:
        settings = self._settings
        tenant = self._name
        if settings.tenant_claim is not None:
            # With the issuer's name in front: none of them can speak for another one's tenants, nor for ours.
            tenant = f"{self._name}:{_text(claims, settings.tenant_claim)}"
        return Principal(
            name=f"{self._name}:{_text(claims, settings.name_claim)}",
            tenant=tenant,
            roles=self._roles(claims),
            pools=self._pools(claims),
        )

    def _roles(self, claims: Mapping[str, Any]) -> frozenset[Role]:
        said = _values(claims, self._settings.roles_claim)
        return frozenset(role for role, values in self._settings.roles.items() if said.intersection(values))

    def _pools(self, claims: Mapping[str, Any]) -> frozenset[str] | None:
        settings = self._settings
        allowed = None if settings.pools is None else frozenset(settings.pools)
        if settings.pools_claim is None:
            return allowed
        said = _values(claims, settings.pools_claim)
        return said if allowed is None else said & allowed


def looks_like_jws(token: str) -> bool:
    return len(token) <= MAX_TOKEN and _JWS.fullmatch(token) is not None


def read_unchecked(token: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Header and claims as somebody wrote them: good for choosing an issuer and a key, and for nothing else.
    Raises `Refused`."""
    if not looks_like_jws(token):
        raise Refused("it is no signed token of an allowed size")
    header, claims = (_decode(part) for part in token.split(".")[:2])
    return header, claims


def _decode(part: str) -> Mapping[str, Any]:
    try:
        value = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, RecursionError):
        raise Refused("it is malformed") from None
    if not isinstance(value, dict):
        raise Refused("it is malformed")
    return value


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_CLAIM or not value.isprintable():
        raise Refused(f"'{name}' is no text of 1 to {MAX_CLAIM} characters")
    return value


def _values(claims: Mapping[str, Any], name: str) -> frozenset[str]:
    value = claims.get(name)
    if isinstance(value, str):
        return frozenset(value.split() if name in _WORDS else (value,))
    return frozenset(item for item in value if isinstance(item, str)) if isinstance(value, list) else frozenset()
