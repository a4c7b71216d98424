"""A pytest plugin by which suites that start a server of their own are run against one that runs already.

It has the fixtures of pytest-jupyter and of jupyter-kernel-client, whose conftests must not be read. Tests that look
into the server's process skip themselves, tests that ask no server anything are left out.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Awaitable, Iterator
from fnmatch import fnmatchcase
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from urllib.parse import urlencode, urlsplit

import pytest
import requests
from _pytest.unittest import TestCaseFunction
from jupyter_server.utils import url_path_join
from tornado.escape import url_escape
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.websocket import WebSocketClientConnection, websocket_connect
from websocket import WebSocketApp

URL, TOKEN = os.environ["SUITE_URL"], os.environ["SUITE_TOKEN"]
SECONDS = 60
# What the kernel's machine is called; tests take it for theirs.
platform.node = lambda: os.environ.get("SUITE_NODE", "")
# A client that closes its connection may sleep on in a select for so long, by default ten, whatever the server does.
WebSocketApp.run_forever = partialmethod(WebSocketApp.run_forever, ping_timeout=0.5)  # type: ignore[method-assign,assignment]
LEFT_OUT = os.environ["SUITE_LEFT_OUT"].split()
ASKS = {"jp_fetch", "jp_ws_fetch", "jupyter_server"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    run = [item for item in items if _asks(item) and not _is_left_out(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in run])
    items[:] = run
    for item in run:
        # Theirs are for a kernel that has the machine for itself.
        item.add_marker(pytest.mark.timeout(SECONDS), append=False)


def _asks(item: pytest.Item) -> bool:
    """A server anything. Of a TestCase nobody can know."""
    return isinstance(item, TestCaseFunction) or bool(ASKS & set(getattr(item, "fixturenames", ())))


def _is_left_out(item: pytest.Item) -> bool:
    name = item.nodeid.partition("[")[0]
    return any(fnmatchcase(name, f"*::{pattern}") for pattern in LEFT_OUT)


@pytest.fixture(autouse=True)
def no_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test finds a server that was just started."""
    yield
    if not ASKS & set(request.fixturenames):
        return
    headers = {"Authorization": f"token {TOKEN}"}
    for kernel in requests.get(f"{URL}/api/kernels", headers=headers, timeout=SECONDS).json():
        requests.delete(f"{URL}/api/kernels/{kernel['id']}", headers=headers, timeout=SECONDS)


class Elsewhere:
    """An object of a process that is not this one."""

    def __init__(self, **known: Any) -> None:
        vars(self).update(known)

    def __getattr__(self, name: str) -> NoReturn:
        pytest.skip(f"looks into the server's process: {name}")

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        pytest.skip(f"changes the server's process: {name}")


@pytest.fixture
def jp_serverapp() -> Elsewhere:
    """What tests ask only to know how long to wait is answered."""
    kernels = Elsewhere(use_pending_kernels=False, get_kernel=lambda id: SimpleNamespace())
    return Elsewhere(kernel_manager=kernels)


@pytest.fixture
def jp_web_app() -> Elsewhere:
    return Elsewhere()


@pytest.fixture
def jp_configurable_serverapp() -> NoReturn:
    pytest.skip("starts a server of its own")


@pytest.fixture
def jp_kernelspecs() -> None:
    """What would be installed here is not the server's."""


@pytest.fixture
def jp_root_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "root_dir"
    folder.mkdir()
    return folder


@pytest.fixture
def jp_data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def jp_argv() -> list[str]:
    return []


@pytest.fixture
def jp_base_url() -> str:
    return urlsplit(URL).path or "/"


@pytest.fixture
def jp_http_port() -> int:
    return urlsplit(URL).port or 80


@pytest.fixture
def jp_auth_header() -> dict[str, str]:
    return {"Authorization": f"token {TOKEN}"}


def _request(scheme: str, base: str, parts: tuple[str, ...], rest: dict[str, Any]) -> HTTPRequest:
    headers = {"Authorization": f"token {TOKEN}", **(rest.pop("headers", None) or {})}
    path = url_path_join(base, url_escape(url_path_join(*parts), plus=False))
    query = urlencode(rest.pop("params", None) or {})
    url = urlsplit(URL)._replace(scheme=scheme, path=path, query=query).geturl()
    return HTTPRequest(url, headers=headers, **{"request_timeout": SECONDS, **rest})


@pytest.fixture
def jp_fetch(jp_base_url: str) -> Any:
    def fetch(*parts: str, **rest: Any) -> Awaitable[HTTPResponse]:
        return AsyncHTTPClient().fetch(_request("http", jp_base_url, parts, rest))

    return fetch


@pytest.fixture
def jp_ws_fetch(jp_base_url: str) -> Any:
    def fetch(*parts: str, **rest: Any) -> Awaitable[WebSocketClientConnection]:
        return websocket_connect(_request("ws", jp_base_url, parts, rest))

    return fetch


@pytest.fixture
def jupyter_server() -> tuple[str, str]:
    """jupyter-kernel-client's: a port and a token."""
    return str(urlsplit(URL).port), TOKEN
