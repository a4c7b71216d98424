"""A Docker Engine, spoken to off the event loop: bounded threads, a limit for every call, two kinds of failure."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import requests
import urllib3
from docker import APIClient
from docker.errors import APIError, DockerException, TLSParameterError
from docker.tls import TLSConfig

from kernelpool.backends.docker.settings import DockerSettings
from kernelpool.backends.docker.streams import Refused, Stream, open_stream
from kernelpool.errors import BackendUnavailable, StartFailed
from kernelpool.tasks import finish

log = logging.getLogger(__name__)
T = TypeVar("T")

_THREADS: Final = 8
"""Beside those that make containers."""
_UNREACHABLE: Final = (requests.RequestException, urllib3.exceptions.HTTPError, DockerException, OSError)


class EngineError(Exception):
    """The engine has answered, and refused. `str()` of it may name paths of the host."""

    def __init__(self, status: int, explanation: str) -> None:
        super().__init__(explanation)
        self.status = status


class Engine:
    """An async context manager. `call` is all there is; what is asked is said by whoever asks."""

    def __init__(self, settings: DockerSettings) -> None:
        self._settings = settings
        self._client: APIClient | None = None
        count = settings.start_concurrency + _THREADS
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="docker")

    def __repr__(self) -> str:
        return f"<Engine {self._settings.host}>"

    @property
    def base_image(self) -> str:
        """Of images that are built on it; "" is the Dockerfile's."""
        return self._settings.base_image

    async def __aenter__(self) -> Self:
        """Raises `StartFailed` when no engine answers."""
        try:
            self._client = await self._in_thread(self.connect)
        except BackendUnavailable as error:
            self._threads.shutdown(wait=False)
            failure = StartFailed(f"no Docker Engine answers at {self._settings.host}; start it, or set docker.host")
            failure.add_note(str(error.__cause__))
            raise failure from error
        except BaseException:
            self._threads.shutdown(wait=False)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Every call has a limit, and so has this.
        await finish(asyncio.to_thread(self._threads.shutdown))
        if self._client is not None:
            self._client.close()
            self._client = None

    async def call(self, function: Callable[[Any], T]) -> T:
        """`function` of an `APIClient`, in a thread. A cancelled caller leaves only when it has ended, so that what it
        did is known.

        Raises `BackendUnavailable` when the engine is away or does not answer in time, `EngineError` when it refuses.
        """
        if self._client is None:
            raise RuntimeError("the engine is not entered")
        return await self._in_thread(partial(function, self._client))

    async def stream(self, path: str, body: Mapping[str, Any] | None = None) -> Stream:
        """What `POST path` becomes: bytes both ways, of an engine on TCP. Raises as `call` does; whoever gets it closes
        it."""
        if self._client is None:
            raise RuntimeError("the engine is not entered")
        url = f"{self._client.base_url}/v{self._client.api_version}{path}"
        try:
            async with asyncio.timeout(self._settings.call_timeout):
                tls = await self._in_thread(partial(_context, self._settings)) if url.startswith("https:") else None
                return await open_stream(url, tls, body)
        except Refused as error:
            raise EngineError(error.status, error.said) from error
        except (OSError, TimeoutError, EOFError, ValueError) as error:
            raise BackendUnavailable("the Docker Engine does not answer") from error

    async def _in_thread(self, function: Callable[[], T]) -> T:
        work = asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(self._threads, _told, function))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            with contextlib.suppress(BackendUnavailable, EngineError):
                await finish(work)
            raise

    def connect(self, silence: float | None = None) -> APIClient:
        """A client of its own, for what takes as long as it takes. `silence` is for calls to which the `docker` package
        gives no limit: seconds between two pieces of the answer. Blocks for one call."""
        settings = self._settings
        client = _Client(
            settings.host,
            version="auto",
            timeout=settings.call_timeout,
            tls=_tls(settings) or False,
            max_pool_size=settings.start_concurrency + _THREADS,
        )
        client.silence = silence
        return client


class _Client(APIClient):
    silence: float | None = None

    @property
    def trust_env(self) -> bool:
        """The environment's proxies and authorities are for the outside. Asked in the constructor already, which makes
        a call."""
        return False

    @trust_env.setter
    def trust_env(self, value: bool) -> None:
        pass

    def post(self, url: Any, data: Any = None, json: Any = None, **rest: Any) -> requests.Response:
        if rest.get("timeout", 0) is None:
            rest["timeout"] = self.silence
        return super().post(url, data, json, **rest)


def _tls(settings: DockerSettings) -> TLSConfig | None:
    if not settings.tls_verify and settings.cert_path is None:
        return None
    folder = settings.cert_path
    try:
        return TLSConfig(
            client_cert=(str(folder / "cert.pem"), str(folder / "key.pem")) if folder else None,
            ca_cert=str(folder / "ca.pem") if folder else None,
            verify=settings.tls_verify,
        )
    except TLSParameterError as error:
        raise StartFailed(f"docker.cert_path: {error}") from error


def _context(settings: DockerSettings) -> ssl.SSLContext:
    """As the `docker` package makes it of the same settings."""
    folder = settings.cert_path
    context = ssl.create_default_context(cafile=str(folder / "ca.pem") if folder else None)
    if folder:
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    if not settings.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _told(function: Callable[[], T]) -> T:
    with told():
        return function()


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What the `docker` package raises, in the two words that matter."""
    try:
        yield
    except APIError as error:
        raise EngineError(error.status_code or 500, str(error.explanation or error)) from error
    except _UNREACHABLE as error:
        raise BackendUnavailable("the Docker Engine does not answer") from error


def runtimes(info: Mapping[str, Any]) -> list[str]:
    """Names of the OCI runtimes that an engine has."""
    return sorted(name for name in info.get("Runtimes") or {} if not name.startswith("io.containerd."))


def runtime_of(info: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    """How the engine runs it; None is its default."""
    found: Mapping[str, Any] = (info.get("Runtimes") or {}).get(name or info.get("DefaultRuntime"), {})
    return found


def is_gvisor(info: Mapping[str, Any], name: str | None) -> bool:
    """By the program's name: the engine tells no more of it."""
    runtime = runtime_of(info, name)
    called = (name or info.get("DefaultRuntime"), runtime.get("path"), runtime.get("runtimeType"))
    return any("runsc" in str(word) for word in called)
