"""Hosts, origins and proxies: a page in somebody's browser gets nowhere, and only trusted proxies are believed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from tornado.httputil import HTTPServerRequest
from tornado.websocket import WebSocketHandler

from kernelpool.api.edge import EdgePolicy, allowed_hosts
from kernelpool.api.listener import Crowd
from kernelpool.network import LOOPBACK_HOSTS
from tests.api.conftest import TOKEN, Api, api_of

APP = "https://app.example.com"
ROUTES = [
    "/",
    "/nothing",
    "/pools",
    "/pools/python",
    "/pools/python/executions",
    "/pools/python/.management/getSession",
]


@pytest.fixture
async def open_api(tmp_path: Path) -> AsyncIterator[Api]:
    """With hosts, an origin, and this machine as a trusted proxy."""
    policy = EdgePolicy(allowed_hosts("0.0.0.0", ("sessions.example.com", "*.pool.test")), (APP,))
    trusted = [ip_network("127.0.0.0/8"), ip_network("10.0.0.0/8")]
    async with api_of(tmp_path, edge=policy, server={"trusted": trusted}) as served:
        yield served


def status_of(answer: bytes) -> int:
    return int(answer.split()[1])


async def ask(api: Api, headers: str, *, method: str = "GET", path: str = "/healthz", version: str = "1.1") -> bytes:
    head = f"{method} {path} HTTP/{version}\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n{headers}\r\n\r\n"
    return await api.raw(head.encode("latin-1"))


# --- hosts


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
async def test_a_name_that_was_rebound_to_us_is_421_on_every_route(api: Api, path: str, method: str) -> None:
    answer = await ask(api, "Host: evil.test", method=method, path=path)

    assert status_of(answer) == 421
    assert b"x-ms-error-code: misdirectedrequest" in answer.lower()
    assert method == "HEAD" or b'"traceId"' in answer


async def test_without_a_token_it_is_421_too(api: Api) -> None:
    assert status_of(await api.raw(b"GET /pools HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n")) == 421


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:99", "localhost.", "127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080"]
)
async def test_this_machine_is_known_by_its_usual_names_on_any_port(api: Api, host: str) -> None:
    assert status_of(await ask(api, f"Host: {host}", path="/pools")) == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("sessions.example.com", 200),
        ("SESSIONS.example.com.:443", 200),
        ("a.pool.test", 200),
        ("a.b.pool.test", 200),
        ("pool.test", 421),
        ("evilpool.test", 421),
        ("sessions.example.com.evil.test", 421),
        ("localhost.evil.test", 421),
        ("10.0.0.1", 421),
        ("[::2]", 421),
        ("", 400),
        ("localhost:99999", 400),
        ("localhost:", 400),
        ("localhost:80:80", 400),
        ("local host", 400),
        ("localhost/evil", 400),
        ("localhost,localhost", 400),
        ("user@localhost", 400),
        ("[localhost]", 400),
        ("[::1", 400),
        ("loc\xe4lhost", 400),
    ],
)
async def test_a_host_is_allowed_by_name_or_refused(open_api: Api, host: str, status: int) -> None:
    assert status_of(await ask(open_api, f"Host: {host}", path="/pools")) == status


async def test_probes_are_answered_by_any_address_and_by_old_clients(api: Api) -> None:
    for path in ("/healthz", "/readyz"):
        assert status_of(await ask(api, "Host: 10.1.2.3:8080", path=path)) == 200
        assert status_of(await ask(api, "X: y", path=path, version="1.0")) == 200


async def test_an_old_client_without_host_gets_nothing_else(api: Api) -> None:
    assert status_of(await ask(api, "X: y", path="/pools", version="1.0")) == 400


@pytest.mark.parametrize(
    ("listening", "more"), [("127.0.0.1", ()), ("0.0.0.0", ()), ("::", ()), ("192.0.2.7", ("192.0.2.7",))]
)
def test_the_address_that_is_listened_on_is_allowed_unless_it_is_all(listening: str, more: tuple[str, ...]) -> None:
    assert allowed_hosts(listening, ()) == (*LOOPBACK_HOSTS, *more)


# --- origins


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("X: y", 200),
        ("Origin: http://localhost", 200),
        ("Origin: HTTP://LOCALHOST:80", 200),
        (f"Origin: {APP}", 200),
        (f"Origin: {APP}\r\nSec-Fetch-Site: cross-site", 200),
        ("Sec-Fetch-Site: same-origin", 200),
        ("Sec-Fetch-Site: none", 200),
        ("Sec-Fetch-Site: cross-site", 403),
        ("Origin: null", 403),
        ("Origin: ", 403),
        ("Origin: https://localhost", 403),
        ("Origin: http://localhost:8080", 403),
        ("Origin: http://127.0.0.1", 403),
        ("Origin: https://evil.test", 403),
        ("Origin: https://app.example.com.evil.test", 403),
        ("Origin: https://app.example.com:444", 403),
        ("Origin: http://app.example.com", 403),
        ("Origin: file://", 403),
        (f"Origin: {APP} {APP}", 403),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_only_pages_that_may_change_something(open_api: Api, headers: str, status: int, method: str) -> None:
    path = "/pools/python/nothing"  # let through, it is not found
    answer = await ask(open_api, f"Host: localhost\r\n{headers}", method=method, path=path)

    assert status_of(answer) == (404 if status == 200 else status)
    assert (b"OriginNotAllowed" in answer) == (status == 403)


async def test_a_form_of_another_site_does_not_stop_a_session(api: Api) -> None:
    await api.run("1")

    for headers in ({"Origin": "https://evil.test"}, {"Sec-Fetch-Site": "cross-site"}):
        assert (await api.json("POST", "/.management/stopSession", 403, headers=headers))["error"]["traceId"]
        assert (await api.json("DELETE", "/session", 403, headers=headers))["error"]["traceId"]
    await api.json("GET", "/session")


class Echo(WebSocketHandler):
    """As the Jupyter surface will have it: it forgets to check anything."""

    def check_origin(self, origin: str) -> bool:
        return True


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("X: y", 101),
        ("Origin: http://localhost", 101),
        (f"Origin: {APP}", 101),
        ("Origin: null", 403),
        ("Origin: https://evil.test", 403),
        ("Sec-Fetch-Site: cross-site", 403),
    ],
)
async def test_a_websocket_of_another_site_is_refused_whatever_its_handler_forgets(
    open_api: Api, headers: str, status: int
) -> None:
    application = open_api.server.request_callback
    application.add_handlers(".*", [("/echo", Echo)])  # type: ignore[union-attr]
    upgrade = "Connection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YQ=="
    request = f"GET /echo HTTP/1.1\r\nHost: localhost\r\n{upgrade}\r\n{headers}\r\n\r\n"

    assert status_of(await open_api.raw(request.encode(), until_closed=False)) == status


# --- cross-origin answers


async def test_a_page_that_may_is_told_what_it_may(open_api: Api) -> None:
    url = f"http://127.0.0.1:{open_api.port}/pools/python/executions"
    asking = {
        "Origin": APP,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }

    async with open_api.http.options(url, headers=asking) as response:  # browsers send no token here
        assert (response.status, await response.read()) == (204, b"")
        assert response.headers["Access-Control-Allow-Origin"] == APP
        assert "POST" in response.headers["Access-Control-Allow-Methods"]
        assert response.headers["Access-Control-Allow-Headers"] == "authorization,content-type"
        assert "Origin" in response.headers["Vary"]
        assert "Access-Control-Allow-Credentials" not in response.headers


@pytest.mark.parametrize("status", [200, 401, 404])
async def test_an_answer_to_such_a_page_can_be_read_by_it_whatever_it_is(open_api: Api, status: int) -> None:
    headers = {"Origin": APP, **({"Authorization": "Bearer wrong"} if status == 401 else {})}
    path = "/nothing" if status == 404 else "/executions"

    async with open_api.request("POST", path, json={"code": "1"}, headers=headers) as response:
        assert response.status == status
        assert response.headers["Access-Control-Allow-Origin"] == APP
        assert "operation-location" in response.headers["Access-Control-Expose-Headers"]
        assert response.headers["Vary"] == "Origin"


async def test_other_pages_are_told_nothing(open_api: Api) -> None:
    url = f"http://127.0.0.1:{open_api.port}/pools/python/executions"
    asking = {"Origin": "https://evil.test", "Access-Control-Request-Method": "POST"}

    async with open_api.http.options(url, headers=asking) as preflight:
        assert preflight.status == 403
        assert "Access-Control-Allow-Origin" not in preflight.headers
    async with open_api.request("GET", "/listSessions", headers={"Origin": "https://evil.test"}) as response:
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_every_answer_keeps_browsers_from_guessing_and_telling(api: Api) -> None:
    for path in ("/healthz", "/pools", "/nothing"):
        async with api.http.get(f"http://127.0.0.1:{api.port}{path}") as response:
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Referrer-Policy"] == "no-referrer"
            assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert "Strict-Transport-Security" not in response.headers


# --- proxies


async def location(api: Api, headers: dict[str, str]) -> str:
    async with api.request("POST", "/executions", json={"code": "1"}, headers=headers) as response:
        assert response.status == 200, await response.text()
        base: str = response.headers["Operation-Location"].split("/pools")[0]
        return base


async def test_a_trusted_proxy_says_what_its_client_asked_for(open_api: Api) -> None:
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "sessions.example.com", "Origin": APP}

    assert await location(open_api, headers) == "https://sessions.example.com"


async def test_the_page_behind_a_tls_proxy_is_of_the_same_origin(open_api: Api) -> None:
    headers = {"Host": "sessions.example.com", "Origin": "https://sessions.example.com"}

    assert await location(open_api, {**headers, "X-Forwarded-Proto": "https"}) == "https://sessions.example.com"
    async with open_api.request("POST", "/executions", json={"code": "1"}, headers=headers) as response:
        assert response.status == 403


async def test_the_host_that_a_proxy_forwards_must_be_allowed(open_api: Api) -> None:
    async with open_api.request("GET", "/listSessions", headers={"X-Forwarded-Host": "evil.test"}) as response:
        assert response.status == 421


async def test_of_what_a_chain_of_proxies_says_the_last_word_counts(open_api: Api) -> None:
    headers = {"X-Forwarded-Proto": "https, http", "X-Forwarded-Host": "evil.test, a.pool.test"}

    assert await location(open_api, headers) == "http://a.pool.test"


async def test_anybody_else_is_not_believed(api: Api) -> None:
    headers = {
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "evil.test",
        "X-Forwarded-For": "192.0.2.1",
        "Forwarded": "for=192.0.2.1;proto=https;host=evil.test",
        "Host": "127.0.0.1",
    }

    assert await location(api, headers) == "http://127.0.0.1"


class Seen:
    """Requests as handlers get them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[HTTPServerRequest] = []
        check = EdgePolicy.check

        def watch(policy: EdgePolicy, request: HTTPServerRequest) -> None:
            self.requests.append(request)
            check(policy, request)

        monkeypatch.setattr(EdgePolicy, "check", watch)


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1, 10.1.1.1", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1:4711, 10.1.1.1:80", "192.0.2.1"),
        ("6.6.6.6, [2001:db8::1]:443", "2001:db8::1"),
        ("6.6.6.6, unknown, 10.1.1.1", "10.1.1.1"),
        ("10.2.2.2, 10.1.1.1", "10.2.2.2"),
        ("::ffff:10.1.1.1", "10.1.1.1"),
        ("", "127.0.0.1"),
    ],
)
async def test_the_client_is_the_right_most_who_is_no_proxy_of_ours(
    open_api: Api, monkeypatch: pytest.MonkeyPatch, forwarded: str, client: str
) -> None:
    seen = Seen(monkeypatch)
    first = f"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {forwarded}\r\n\r\n"
    second = "GET /pools HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    await open_api.raw((first + second).encode())

    assert [request.remote_ip for request in seen.requests] == [client, "127.0.0.1"]
    assert "X-Forwarded-For" not in seen.requests[0].headers


# --- crowds


async def test_one_client_too_many_is_told_so_and_nobody_else_is_hurt(tmp_path: Path) -> None:
    async with api_of(tmp_path, server={"crowd": Crowd(100, 2)}) as api:
        await api.run("1")  # this client keeps its connection
        _, other = await asyncio.open_connection("127.0.0.1", api.port)

        refused = await api.raw(b"")
        await api.run("1")
        elsewhere = await asyncio.open_connection("127.0.0.1", api.port, local_addr=("127.0.0.2", 0))
        elsewhere[1].write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        served = await elsewhere[0].read()
        other.close()
        elsewhere[1].close()

    assert re.match(rb"HTTP/1.1 503 .*retry-after: 1.*TooManyConnections", refused, re.DOTALL | re.IGNORECASE)
    assert b" 200 " in served


async def test_a_trusted_proxy_may_bring_many_but_not_more_than_all(tmp_path: Path) -> None:
    trusted = [ip_network("127.0.0.1")]
    async with api_of(tmp_path, server={"crowd": Crowd(3, 1, trusted), "trusted": trusted}) as api:
        connections = [await asyncio.open_connection("127.0.0.1", api.port) for _ in range(3)]

        assert b" 503 " in await api.raw(b"")
        connections[0][1].close()
        await connections[0][1].wait_closed()
        async with asyncio.timeout(30):
            while b" 200 " not in await api.raw(
                b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            ):
                await asyncio.sleep(0.01)
        for _, writer in connections:
            writer.close()
