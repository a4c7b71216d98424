"""A real HTTP server on a real socket, in front of a real gateway, in front of sandboxes in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tornado.netutil import bind_sockets

from kernelpool.api import make_application
from kernelpool.api.base import Collaborators
from kernelpool.api.edge import EdgePolicy
from kernelpool.api.http_server import EdgeServer, make_server
from kernelpool.api.mcp.endpoint import Endpoint
from kernelpool.auth.authenticator import Authenticator
from kernelpool.auth.initial import digest_of
from kernelpool.gateway import Gateway, PoolSource, Principal
from kernelpool.journal import Journal
from kernelpool.management import Management
from kernelpool.pool.settings import PoolSettings
from kernelpool.pool.store import PoolStore
from kernelpool.quotas import Quotas
from kernelpool.runtimes import Runtime
from kernelpool.telemetry import SILENT, Telemetry
from kernelpool.telemetry.metrics import Metrics
from tests.contract_of_api import contract
from tests.fakes import METADATA, RUNTIME, FakeBackend, FakeKernel, FakeProcess

TOKEN = "a-token-for-tests-only"
VERSION = "2025-10-02-preview"
LEGACY = "2024-02-02-preview"


class Api:
    """The server under test, and a client that does right whatever a test does not do wrong on purpose."""

    def __init__(
        self, port: int, http: aiohttp.ClientSession, collaborators: Collaborators, backend: FakeBackend
    ) -> None:
        self.port = port
        self.http = http
        self.gateway = collaborators.gateway
        self.works = collaborators.works
        self.authenticator = collaborators.authenticator
        self.sockets = collaborators.sockets
        self.backend = backend
        self.server: EdgeServer
        self.base = f"http://127.0.0.1:{port}/pools/python"

    def request(
        self,
        method: str,
        path: str,
        *,
        identifier: str | None = "abcd-1",
        version: str | None = VERSION,
        headers: dict[str, str] | None = None,
        query: dict[str, str] | None = None,
        **rest: Any,
    ) -> Any:
        if not isinstance(rest.get("data"), aiohttp.FormData):
            # aiohttp would call bytes application/octet-stream; without a name they are taken for JSON.
            rest["skip_auto_headers"] = ("Content-Type",)
        parameters = {"identifier": identifier, "api-version": version, **(query or {})}
        return self.http.request(
            method,
            f"{self.base}{path}",
            params={name: value for name, value in parameters.items() if value is not None},
            headers={"Authorization": f"Bearer {TOKEN}", **(headers or {})},
            **rest,
        )

    async def json(self, method: str, path: str, status: int = 200, **rest: Any) -> Any:
        async with self.request(method, path, **rest) as response:
            assert response.status == status, await response.text()
            return await response.json(content_type=None)

    async def run(self, code: str, **rest: Any) -> Any:
        """By the newest route."""
        body = {"code": code, **rest.pop("body", {})}
        return await self.json("POST", "/executions", json=body, **rest)

    async def process(self, identifier: str = "abcd-1") -> FakeProcess:
        """Of that identifier's sandbox, allocated if need be."""
        async with self.gateway.use(Principal("test"), "python", identifier) as session:
            return self.backend.sandboxes[session.info.sandbox].process

    async def raw(self, request: bytes, *, until_closed: bool = True) -> bytes:
        """What the server answers to these very bytes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            async with asyncio.timeout(20):
                return await reader.read() if until_closed else await reader.readuntil(b"\r\n\r\n")
        finally:
            writer.close()


def multipart(data: bytes, *, name: str, field: str = "file") -> dict[str, Any]:
    """The body as `requests` writes it: the file name as it is."""
    head = f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    body = head.encode() + data + b"\r\n--b--\r\n"
    return {"data": body, "headers": {"Content-Type": "multipart/form-data; boundary=b", "User-Agent": "requests/2"}}


class ShowingKernel(FakeKernel):
    """Shows what it was given before it runs its code."""

    def __init__(self, *outputs: Any) -> None:
        super().__init__()
        self._outputs = outputs

    async def run(self, code: str, put: Any) -> bool:
        for output in self._outputs:
            put(output)
        return await super().run(code, put)


@asynccontextmanager
async def api_of(
    folder: Path,
    authenticator: Authenticator | None = None,
    pools: Sequence[str] = ("python",),
    *,
    telemetry: Telemetry = SILENT,
    metrics: Metrics | None = None,
    edge: EdgePolicy | None = None,
    server: dict[str, Any] | None = None,
    backend: FakeBackend | None = None,
    quotas: Quotas | None = None,
    runtime: Runtime = RUNTIME,
    **settings: Any,
) -> AsyncIterator[Api]:
    """`server` holds parameters of `make_server`; the other settings are the pool's."""
    async with AsyncExitStack() as stack:
        backend = backend or FakeBackend()
        journal = await stack.enter_async_context(Journal(folder))
        each = [PoolSettings(name=name, backend="fake", **{"ready": 1, **settings}) for name in pools]
        sources = [PoolSource(pool, runtime, backend, METADATA) for pool in each]
        gateway = await stack.enter_async_context(
            Gateway(sources, backend.connect, journal, quotas, telemetry=telemetry)
        )

        async def make(settings: PoolSettings) -> PoolSource:
            return PoolSource(settings, runtime, backend, METADATA)

        management = await stack.enter_async_context(
            Management(gateway, make, PoolStore(folder), ["python"], max_pools=3, audit=telemetry.audit)
        )
        collaborators = Collaborators(
            gateway,
            authenticator or Authenticator(digest_of(TOKEN)),
            management,
            max_body=1 << 20,
            telemetry=telemetry,
            edge=edge or EdgePolicy(),
            mcp=await stack.enter_async_context(Endpoint()),
        )
        management.on_deleted = collaborators.authenticator.pool_keys.renew
        parameters = {"max_body": 1 << 20, "idle_timeout": 60, "body_timeout": 60, **(server or {})}
        serving = make_server(make_application(collaborators, lambda: True, metrics), **parameters)
        [listener] = bind_sockets(0, "127.0.0.1")
        serving.add_sockets([listener])
        stack.push_async_callback(serving.close_all_connections)
        stack.callback(serving.stop)
        faults: list[str] = []
        http = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30), trace_configs=[_checking(faults)])
        )
        api = Api(listener.getsockname()[1], http, collaborators, backend)
        api.server = serving
        yield api
        assert faults == []


def _checking(faults: list[str]) -> aiohttp.TraceConfig:
    """Whatever a test asks for, the answer is one that the OpenAPI document describes."""

    async def check(_: object, __: object, end: aiohttp.TraceRequestEndParams) -> None:
        operation = contract().find(end.method, end.url.raw_path)
        if operation is None:
            return
        response = end.response
        if operation.endswith("{tail}") and "x-ms-error-code" not in response.headers:
            return  # a container's, which is free to answer what it likes
        is_json = response.content_type.endswith("json") and "Content-Disposition" not in response.headers
        body = await response.read() if is_json else None
        faults.extend(contract().faults(operation, response.status, response.headers, body))

    config = aiohttp.TraceConfig()
    config.on_request_end.append(check)
    return config


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with api_of(tmp_path, max_upload=1 << 20) as served:
        yield served
