"""TLS by certificate files, which may be renewed while the gateway runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from kernelpool.errors import StartFailed

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0


class Certificates:
    """The context for new connections. Those that are open keep what they began with."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self._context: ssl.SSLContext | None = None
        self._seen: object = None
        self._wanted = asyncio.Event()

    def __call__(self) -> ssl.SSLContext:
        assert self._context is not None  # `watched` has loaded it
        return self._context

    def reload(self) -> None:
        """Reads the files again, soon, whether they look changed or not."""
        self._seen = None
        self._wanted.set()

    @contextlib.asynccontextmanager
    async def watched(self, every: float = LOOK_SECONDS) -> AsyncIterator[None]:
        """Raises `StartFailed` when the files cannot be used; later on that only is a line in the log."""
        try:
            self._seen, self._context = await asyncio.to_thread(self._state), await asyncio.to_thread(self._load)
        except (OSError, ValueError) as error:
            raise StartFailed(f"TLS with {self._certificate} and {self._key}: {_reason(error)}") from error
        watching = asyncio.create_task(self._watch(every))
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait((watching,))

    async def _watch(self, every: float) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), every)
            self._wanted.clear()
            try:
                await self._look()
            except (OSError, ValueError) as error:
                log.error("certificate not reloaded", extra={"file": str(self._certificate), "why": _reason(error)})

    async def _look(self) -> None:
        state = await asyncio.to_thread(self._state)
        if state == self._seen:
            return
        # Noted first: files that are broken are complained of once, and tried again when they change.
        self._seen = state
        self._context = await asyncio.to_thread(self._load)
        log.info("certificate reloaded", extra={"file": str(self._certificate)})

    def _state(self) -> object:
        """Changes with the files, also when they are links that lead elsewhere now."""
        stats = [path.stat() for path in (self._certificate, self._key)]
        return [(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats]

    def _load(self) -> ssl.SSLContext:
        """Always a new one: one that was half changed would be of no use."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._certificate, self._key, password=_no_password)
        return context


def _no_password() -> str:
    """OpenSSL would ask on the terminal."""
    raise ValueError("the key is encrypted; decrypt it, and let only the gateway read it")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "not a certificate and its key, in PEM"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
