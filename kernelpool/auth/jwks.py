"""The keys of one issuer: fetched by a task of their own, so that no request but one with a new key waits for them.

A key is known by its id *and* an algorithm that the operator allows: which key and which algorithm check a
token is decided by our table, never by the token.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from jwt import PyJWK
from jwt.exceptions import PyJWTError

from kernelpool.auth.fetch import FETCH_SECONDS, Fetcher, FetchFailed
from kernelpool.auth.settings import Algorithm, OidcSettings
from kernelpool.tasks import Tasks

log = logging.getLogger(__name__)

DISCOVERY: Final = "/.well-known/openid-configuration"
MAX_KEYS: Final = 100
MAX_CLAIM: Final = 256
WAIT_SECONDS: Final = 2 * FETCH_SECONDS + 1

_KINDS: Final[Mapping[str, tuple[str, str | None]]] = {
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
"""Algorithm → type and curve of its keys; all others are RSA's."""

Keys = Mapping[tuple[str, str], PyJWK]
"""By id and algorithm."""


class IssuerKeys:
    """An async context manager. It never fails to start: an issuer that is down at night is no reason to be, too."""

    def __init__(self, name: str, settings: OidcSettings, fetcher: Fetcher) -> None:
        self._name = name
        self._settings = settings
        self._fetcher = fetcher
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks(f"issuer {name}")
        # The mutable state: the keys, when they were fetched, that somebody wants them anew, and that the issuer has
        # just been asked.
        self._keys: Keys = {}
        self._fetched_at = 0.0
        self._wanted = asyncio.Event()
        self._answered = asyncio.Event()

    def __repr__(self) -> str:
        return f"<IssuerKeys {self._name!r} [{len(self._keys)} keys]>"

    async def __aenter__(self) -> Self:
        self._tasks.spawn(self._keep_current(), "keys")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.aclose()

    async def find(self, id: str, algorithm: str) -> PyJWK | None:
        """An id that nobody knows makes the issuer be asked again, unless it has just been."""
        key = self._known.get((id, algorithm))
        if key is None and algorithm in self._settings.algorithms:
            self._wanted.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(WAIT_SECONDS):
                    await self._answered.wait()
            key = self._known.get((id, algorithm))
        return key

    @property
    def _known(self) -> Keys:
        is_stale = self._loop.time() - self._fetched_at > self._settings.keys_stale
        return {} if is_stale else self._keys

    async def _keep_current(self) -> None:
        while True:
            try:
                is_fetched = await self._fetch()
            except Exception:  # or no key would ever be learned again
                log.exception("keys of an issuer cannot be read", extra={"issuer": self._name})
                is_fetched = False
            self._answered.set()
            await asyncio.sleep(self._settings.keys_interval)
            self._answered.clear()
            self._wanted.clear()
            if is_fetched:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.keys_ttl - self._settings.keys_interval):
                        await self._wanted.wait()

    async def _fetch(self) -> bool:
        try:
            document = await self._fetcher.json_object(await self._find_uri())
        except FetchFailed as error:
            log.warning("keys of an issuer cannot be fetched", extra={"issuer": self._name, "error": str(error)})
            return False
        keys = parse_keys(document, self._settings.algorithms)
        if not keys:
            log.warning("an issuer has no key that can be used", extra={"issuer": self._name})
            return False
        if keys.keys() != self._keys.keys():
            log.info("keys of an issuer", extra={"issuer": self._name, "keys": sorted({id for id, _ in keys})})
        self._keys, self._fetched_at = keys, self._loop.time()
        return True

    async def _find_uri(self) -> str:
        if self._settings.jwks_uri is not None:
            return self._settings.jwks_uri
        url = self._settings.issuer.rstrip("/") + DISCOVERY
        document = await self._fetcher.json_object(url)
        # OpenID Connect Discovery, 4.3: or a host that serves one issuer could name the keys of another.
        if document.get("issuer") != self._settings.issuer:
            raise FetchFailed(f"{url}: it is the document of another issuer, {str(document.get('issuer'))[:200]!r}")
        uri = document.get("jwks_uri")
        if not isinstance(uri, str):
            raise FetchFailed(f"{url}: it names no jwks_uri")
        return uri


def parse_keys(document: Mapping[str, Any], algorithms: Sequence[Algorithm]) -> Keys:
    """One that is malformed, weak, secret or of no use to us is left out. Of two with the same id the first counts."""
    found: dict[tuple[str, str], PyJWK] = {}
    entries = document.get("keys")
    for entry in entries[:MAX_KEYS] if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or not _is_for_signatures(entry):
            continue
        for algorithm in _fitting(entry, algorithms):
            with suppress(PyJWTError, ValueError, TypeError, KeyError, OverflowError):
                key = PyJWK(entry, algorithm)
                if key.Algorithm.check_key_length(key.key) is None:
                    found.setdefault((entry["kid"], algorithm), key)
    return found


def _is_for_signatures(entry: Mapping[str, Any]) -> bool:
    id = entry.get("kid")
    is_named = isinstance(id, str) and 0 < len(id) <= MAX_CLAIM
    # A private part in public is anybody's key.
    return is_named and entry.get("use", "sig") == "sig" and "d" not in entry


def _fitting(entry: Mapping[str, Any], algorithms: Iterable[Algorithm]) -> Iterable[Algorithm]:
    for algorithm in algorithms:
        type, curve = _KINDS.get(algorithm, ("RSA", None))
        is_of_kind = entry.get("kty") == type and (curve is None or entry.get("crv") == curve)
        if is_of_kind and entry.get("alg", algorithm) == algorithm:
            yield algorithm
