"""Reads a JSON document of an issuer: a deadline, a size limit, no redirects, no decompression, https."""

from __future__ import annotations

import json
from typing import Any, Final

import aiohttp

from kernelpool.auth.settings import is_secure

FETCH_SECONDS: Final = 5.0
MAX_DOCUMENT: Final = 256 << 10


class FetchFailed(Exception):
    """For the log; the text names the URL and what was wrong."""


class Fetcher:
    """An async context manager around one HTTP client for all issuers."""

    def __init__(self) -> None:
        self._http: aiohttp.ClientSession

    async def __aenter__(self) -> Fetcher:
        self._http = aiohttp.ClientSession(
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "kernelpool"},
            timeout=aiohttp.ClientTimeout(total=FETCH_SECONDS),
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._http.close()

    async def json_object(self, url: str) -> dict[str, Any]:
        """Raises `FetchFailed`."""
        if not is_secure(url):
            raise FetchFailed(f"{url[:200]}: not an https URL")
        try:
            document = json.loads(await self._read(url))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError) as error:
            raise FetchFailed(f"{url[:200]}: {type(error).__name__}") from error
        if not isinstance(document, dict):
            raise FetchFailed(f"{url[:200]}: not a JSON object")
        return document

    async def _read(self, url: str) -> bytes:
        async with self._http.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise FetchFailed(f"{url[:200]}: status {response.status}")
            data = bytearray()
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > MAX_DOCUMENT:
                    raise FetchFailed(f"{url[:200]}: more than {MAX_DOCUMENT} bytes")
            return bytes(data)
