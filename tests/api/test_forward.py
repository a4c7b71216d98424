"""What passes between callers and custom containers, and what does not; containers that do their worst."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import io
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from kernelpool.agents.forward import Forward, forwarded
from kernelpool.backends.base import UnixAddress
from kernelpool.gateway import Principal
from kernelpool.telemetry import SILENT, Telemetry
from kernelpool.telemetry.audit import Action, Entry
from tests.api.conftest import TOKEN, VERSION, Api, api_of
from tests.containers import CONTAINER, FakeContainers, Serve, app, raw, saying

NOBODY = Principal("test")
OK = b"HTTP/1.1 200 OK\r\n"


@asynccontextmanager
async def containers_of(folder: Path, serve: Serve, **settings: Any) -> AsyncIterator[Api]:
    """A pool `python` of containers that run `serve`, and one `other` beside it."""
    backend = FakeContainers(serve)
    container = {**CONTAINER, **settings.pop("container", {})}
    try:
        async with api_of(folder, pools=("python", "other"), backend=backend, container=container, **settings) as api:
            yield api
    finally:
        await backend.aclose()


async def echo(request: web.Request) -> web.StreamResponse:
    """Tells what it was sent: the target as it was, each header, the body's size and hash."""
    digest, size = hashlib.sha256(), 0
    async for chunk in request.content.iter_any():
        digest.update(chunk)
        size += len(chunk)
    value = {
        "method": request.method,
        "target": request.raw_path,
        "headers": [[name, text] for name, text in request.headers.items()],
        "size": size,
        "sha256": digest.hexdigest(),
    }
    return web.json_response(value)


def echoing() -> web.Application:
    application = web.Application(client_max_size=0)
    application.router.add_route("*", r"/{tail:[\s\S]*}", echo)
    return application


@pytest.fixture
async def echoed(tmp_path: Path) -> AsyncIterator[Api]:
    async with containers_of(tmp_path, app(echoing), max_upload=64 << 20) as api:
        yield api


async def raw_target(api: Api, target: str, method: str = "GET", headers: str = "") -> bytes:
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n{headers}"
    return await api.raw(f"{head}Connection: close\r\n\r\n".encode())


# --- what passes


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_every_method_passes(echoed: Api, method: str) -> None:
    said = await echoed.json(method, "/a/b", version=None)

    assert said["method"] == method
    assert said["target"] == "/a/b?identifier=abcd-1"


async def test_head_has_the_headers_of_get_and_no_body(echoed: Api) -> None:
    async with echoed.request("HEAD", "/x") as response:
        assert response.status == 200
        assert int(response.headers["Content-Length"]) > 100
        assert await response.read() == b""


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/%2e%2e/%2E%2E/etc",
        "/a/../b/./c",
        "/a;b=c;d",
        "//double//",
        "//169.254.169.254/latest",
        "/enc%2Foded%5Cslash",
        "/%0d%0aX-Injected:%201",
        "/@evil.example/",
        "/http://evil.example/",
        "/%00",
        "/100%",
        "/executions",
        "/files",
        "/session",
        "/metadata",
        "/.management/other",
        "/.Management/",
    ],
)
@pytest.mark.parametrize("base", ["/pools/python", "/subscriptions/s/resourceGroups/g/sessionPools/python"])
async def test_a_path_arrives_as_it_was_written(echoed: Api, base: str, path: str) -> None:
    answer = await raw_target(echoed, f"{base}{path}?identifier=abcd-1&b=%2F+x&&c")

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert f'"target": "{path}?identifier=abcd-1&b=%2F+x&&c"'.encode() in answer


async def test_what_is_no_ascii_arrives_percent_encoded(echoed: Api) -> None:
    answer = await raw_target(echoed, "/pools/python/caf\u00e9?identifier=abcd-1")

    assert b'"target": "/caf%C3%A9?identifier=abcd-1"' in answer


async def test_a_body_streams_through_whatever_its_size(echoed: Api) -> None:
    data = bytes(range(256)) * (20 << 12)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 100_000):
            yield data[start : start + 100_000]

    chunked = await echoed.json("POST", "/x", data=pieces())
    whole = await echoed.json("PUT", "/x", data=io.BytesIO(data))

    assert chunked["size"] == whole["size"] == len(data)
    assert chunked["sha256"] == whole["sha256"] == hashlib.sha256(data).hexdigest()


async def test_a_body_that_is_compressed_passes_untouched_both_ways(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(10 << 20))

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(len(bomb)) == bomb
        writer.write(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb) + bomb)
        await writer.drain()

    async with containers_of(tmp_path, raw(handle)) as api:
        url = f"{api.base}/x?identifier=abcd-1"
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Encoding": "gzip"}
        async with (
            aiohttp.ClientSession(auto_decompress=False) as http,
            http.post(url, data=bomb, headers=headers) as got,
        ):
            assert got.headers["Content-Encoding"] == "gzip"
            assert await got.read() == bomb


async def test_a_body_beyond_the_pools_limit_is_413(tmp_path: Path) -> None:
    async with containers_of(tmp_path, app(echoing), max_upload=1000) as api:
        said = await api.json("POST", "/x", 413, data=b"x" * 1001)

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b"x" * 400

        later = await api.json("POST", "/x", 413, data=pieces())

        assert said["error"]["code"] == later["error"]["code"] == "PayloadTooLarge"


async def test_an_answer_streams_as_it_comes(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
        await writer.drain()
        await go.wait()
        writer.write(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
        await writer.drain()

    async with containers_of(tmp_path, raw(handle)) as api, api.request("GET", "/x") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        assert await response.content.readuntil(b"\n\n") == b"data: 1\n\n"
        go.set()
        assert await response.content.read() == b"data: 2\n\n"


async def test_both_directions_stream_at_once(tmp_path: Path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"\r\n")
        while line := await reader.readline():
            if line.startswith(b"say "):
                writer.write(line)
                await writer.drain()
            if line == b"0\r\n":
                return

    said: asyncio.Queue[bytes] = asyncio.Queue()

    async def pieces() -> AsyncIterator[bytes]:
        while piece := await said.get():
            yield piece

    async with containers_of(tmp_path, raw(handle)) as api:
        said.put_nowait(b"say one\n")
        async with api.request("POST", "/x", data=pieces()) as response:
            assert await response.content.readline() == b"say one\n"
            said.put_nowait(b"say two\n")
            assert await response.content.readline() == b"say two\n"
            said.put_nowait(b"")


async def test_a_redirect_is_the_callers_to_follow(tmp_path: Path) -> None:
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/internal\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with (
        containers_of(tmp_path, raw(handle)) as api,
        api.request("GET", "/x", allow_redirects=False) as response,
    ):
        assert response.status == 302
        assert response.headers["Location"] == "http://127.0.0.1:1/internal"
        assert connections == 1


# --- what does not


async def test_no_credential_and_no_hop_of_the_caller_reaches_the_container(echoed: Api) -> None:
    said = await echoed.json(
        "GET",
        "/x",
        headers={
            "Cookie": "canary=1",
            "Proxy-Authorization": "Basic canary",
            "x-ms-apikey": "canary",
            "X-Forwarded-For": "canary",
            "X-Forwarded-Anything": "canary",
            "Forwarded": "for=canary",
            "X-Real-Ip": "canary",
            "Via": "canary",
            "TE": "trailers",
            "Keep-Alive": "canary",
            "Connection": "X-Mine, keep-alive",
            "X-Mine": "canary",
            "X-Kept": "yes",
        },
    )

    headers = {name.lower(): text for name, text in said["headers"]}
    assert "canary" not in str(said["headers"])
    assert TOKEN not in str(said)
    assert headers["x-kept"] == "yes"
    assert headers["host"] == "localhost:8080"
    assert headers["connection"] == "close"


async def test_the_trace_goes_on_in_the_container(echoed: Api) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    said = await echoed.json("GET", "/x", headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})

    [parent] = [text for name, text in said["headers"] if name.lower() == "traceparent"]
    assert parent.split("-")[1] == trace


async def test_a_connection_header_cannot_take_the_framing_away(echoed: Api) -> None:
    said = await echoed.json("POST", "/x", data=b"12345", headers={"Connection": "Content-Length, Host"})

    assert said["size"] == 5


async def test_headers_that_concern_the_whole_origin_end_at_the_gateway(tmp_path: Path) -> None:
    answer = (
        OK + b"Content-Length: 2\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nStrict-Transport-Security: max-age=9\r\n"
        b'Service-Worker-Allowed: /\r\nClear-Site-Data: *\r\nAccess-Control-Allow-Origin: *\r\nAlt-Svc: h2="x"\r\n'
        b"Connection: close, X-Hop\r\nX-Hop: 1\r\nx-ms-error-code: Forged\r\nX-Content-Type-Options: sniff\r\n"
        b"Content-Type: text/html\r\nCache-Control: max-age=60\r\nServer: mine\r\nX-Kept: yes\r\n\r\nhi"
    )
    async with containers_of(tmp_path, saying(answer)) as api, api.request("GET", "/x") as response:
        names = {name.lower() for name in response.headers}

        assert not names & {"set-cookie", "strict-transport-security", "service-worker-allowed", "clear-site-data"}
        assert not names & {"access-control-allow-origin", "alt-svc", "x-hop", "x-ms-error-code"}
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Content-Security-Policy"].startswith("sandbox ")
        assert response.headers["Content-Type"] == "text/html"
        assert response.headers["Cache-Control"] == "max-age=60"
        assert response.headers.getall("Server") == ["mine"]
        assert response.headers["X-Kept"] == "yes"
        assert await response.text() == "hi"


# --- containers that do their worst


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", "ContainerUnreachable"),
        (b"HTTP/1.1 200", "ContainerUnreachable"),
        (b"nonsense\r\n\r\n", "ContainerFault"),
        (b"HTTP/1.1 999 No\r\nContent-Length: 0\r\n\r\n", "ContainerFault"),
        (b"HTTP/1.1 600 No\r\nContent-Length: 0\r\n\r\n", "ContainerFault"),
        (b"HTTP/1.1 099 No\r\n\r\n", "ContainerFault"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "ContainerFault"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000, "ContainerFault"),
        (OK + b"X: " + b"x" * (1 << 20) + b"\r\n\r\n", "ContainerFault"),
        (OK + b"".join(b"X-%d: 1\r\n" % number for number in range(5000)) + b"\r\n", "ContainerFault"),
        (OK + b"".join(b"X-%d: 1\r\n" % number for number in range(300)) + b"\r\n", "ContainerFault"),
        (OK + b"X : 1\r\n\r\n", "ContainerFault"),
        (OK + b"X: a\x00b\r\n\r\n", "ContainerFault"),
        (OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", "ContainerFault"),
        (OK + b"Content-Length: -1\r\n\r\n", "ContainerFault"),
        (OK + b"Transfer-Encoding: gzip\r\n\r\n", "ContainerFault"),
        (b"SSH-2.0-OpenSSH_9\r\n", "ContainerUnreachable"),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else value,
)
async def test_an_answer_that_is_none_is_502_in_our_words(tmp_path: Path, answer: bytes, code: str) -> None:
    async with containers_of(tmp_path, saying(answer)) as api:
        said = await api.json("GET", "/x", 502)

        assert said["error"]["code"] == code
        assert said["error"]["remedy"]
        assert len(await api.gateway.list_sessions(NOBODY, "python")) == 1


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 10\r\n\r\nfive5",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nfive5\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nfive5\r\nzz\r\n",
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nfive5\r\nffffffffffffffffffffff\r\n",
    ],
)
async def test_an_answer_that_is_cut_never_looks_whole(tmp_path: Path, answer: bytes) -> None:
    async with containers_of(tmp_path, saying(answer)) as api, api.request("GET", "/x") as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_a_silent_container_is_504(tmp_path: Path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with containers_of(tmp_path, raw(handle), container={"silence": 1}) as api:
        said = await api.json("GET", "/x", 504)

        assert said["error"]["code"] == "ContainerSilent"
        assert "1 s" in said["error"]["message"]


async def test_a_container_that_falls_silent_in_the_middle_is_cut_off(tmp_path: Path) -> None:
    """Its limit is one that a busy machine keeps until the middle."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await reader.read()

    async with (
        containers_of(tmp_path, raw(handle), container={"silence": 4}) as api,
        api.request("GET", "/x") as response,
    ):
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def quick(api: Api) -> bytes:
    async with api.request("GET", "/quick", identifier="abcd-2") as response:
        body: bytes = await response.read()
        return body


async def test_a_flood_of_tiny_chunks_slows_nobody_else(tmp_path: Path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"flood" not in await reader.readuntil(b"\r\n\r\n"):
            writer.write(OK + b"Content-Length: 2\r\n\r\nok")
            return
        writer.write(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1\r\na\r\n" * 10_000)
            await writer.drain()

    async with containers_of(tmp_path, raw(handle), ready=2) as api, api.request("GET", "/flood") as flood:
        reading = asyncio.create_task(flood.content.readexactly(1 << 40))
        loop = asyncio.get_running_loop()
        assert await quick(api) == b"ok"
        began = loop.time()
        for _ in range(5):
            assert await quick(api) == b"ok"

        assert loop.time() - began < 20
        reading.cancel()


async def test_a_container_that_answers_early_and_closes_is_heard(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig"
    async with (
        containers_of(tmp_path, saying(answer), max_upload=64 << 20) as api,
        api.request("POST", "/x", data=io.BytesIO(bytes(8 << 20))) as response,
    ):
        assert response.status == 413
        assert await response.text() == "big"


async def test_a_container_that_closes_while_it_is_sent_something_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next piece is sent to nobody before what it said has been read."""
    monkeypatch.chdir(tmp_path)  # paths of sockets are short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("app.sock")
        listening.listen()
        listening.setblocking(False)

        async def pieces() -> AsyncIterator[bytes]:
            container, _ = listening.accept()
            container.setblocking(False)
            with container:
                container.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
            yield b"piece"

        request = Forward("POST", "/x", body=pieces(), length=-1)
        async with forwarded(UnixAddress("app.sock"), 8080, 60, request) as answer:
            assert answer.status == 413
            assert b"".join([chunk async for chunk in answer.chunks]) == b"big"


async def test_a_container_whose_port_is_closed_is_502_and_the_session_goes_on(tmp_path: Path) -> None:
    async with containers_of(tmp_path, app(echoing)) as api:
        await api.json("GET", "/x")
        backend = api.backend
        assert isinstance(backend, FakeContainers)
        [info] = await api.gateway.list_sessions(NOBODY, "python")
        await backend.stop(info.sandbox)

        said = await api.json("GET", "/x", 502)

        assert said["error"]["code"] == "ContainerUnreachable"
        assert len(await api.gateway.list_sessions(NOBODY, "python")) == 1


async def test_a_container_that_dies_ends_its_session_and_the_next_request_says_why(tmp_path: Path) -> None:
    dying = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/wait" in await reader.readuntil(b"\r\n\r\n"):
            dying.set()
            await reader.read()
            return
        writer.write(OK + b"Content-Length: 2\r\n\r\nok")

    async with containers_of(tmp_path, raw(handle)) as api:
        process = await api.process()
        waiting = asyncio.create_task(api.json("GET", "/wait", 502))
        await dying.wait()
        process.die("the container exited with status 3")
        lost = await waiting

        assert lost["error"]["code"] == "SandboxLost"
        assert "status 3" in lost["error"]["message"]
        async with api.request("GET", "/x") as response:
            assert response.headers["x-ms-new-allocation"] == "true"
            assert "status 3" in response.headers["x-kernelpool-notice"]
        async with api.request("GET", "/x") as response:
            assert response.headers["x-ms-new-allocation"] == "false"
            assert "x-kernelpool-notice" not in response.headers


# --- which requests are the container's


async def test_the_management_routes_of_a_pool_of_containers_are_the_gateways(echoed: Api) -> None:
    await echoed.json("GET", "/x")

    listed = await echoed.json("POST", "/.management/listSessions", identifier=None)
    found = await echoed.json("POST", "/.management/getSession")
    also = await echoed.json("GET", "/listSessions", identifier=None)
    async with echoed.request("POST", "/.management/stopSession") as stopped:
        text = await stopped.text()

    assert [each["identifier"] for each in listed["value"]] == ["abcd-1"]
    assert [each["identifier"] for each in also["sessions"]] == ["abcd-1"]
    assert found["expiresAt"]
    assert text == "Session abcd-1 in session pool python stopped."
    assert (await echoed.json("POST", "/.management/stopSession", 404))["error"]["code"] == "NoSessionFoundError"


async def test_session_routes_without_an_api_version_are_the_containers(echoed: Api) -> None:
    answer = await raw_target(echoed, "/pools/python/session?identifier=abcd-1")

    assert b'"target": "/session?identifier=abcd-1"' in answer
    assert (await echoed.json("GET", "/session", version=VERSION))["identifier"] == "abcd-1"


async def test_an_identifier_is_needed(echoed: Api) -> None:
    said = await echoed.json("GET", "/x", 400, identifier=None)

    assert said["error"]["code"] == "InvalidLengthOfSessionIdentifier"


async def test_nothing_is_forwarded_in_a_pool_of_kernels(api: Api) -> None:
    assert (await api.json("GET", "/anything/at/all", 404))["error"]["code"] == "NotFound"


async def test_a_request_keeps_the_session_and_its_state(echoed: Api) -> None:
    guids = set()
    for _ in range(3):
        async with echoed.request("GET", "/x") as response:
            guids.add(response.headers["x-ms-session-guid"])

    assert len(guids) == 1


# --- WebSockets


async def speak(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(protocols=("b.example",), max_msg_size=1 << 22)
    await socket.prepare(request)
    await socket.send_json([[name, text] for name, text in request.headers.items()])
    async for message in socket:
        if message.type is aiohttp.WSMsgType.TEXT and message.data == "bye":
            await socket.close(code=4321, message=b"so long")
        elif message.type is aiohttp.WSMsgType.TEXT:
            await socket.send_str(message.data.upper())
        else:
            await socket.send_bytes(message.data[::-1])
    return socket


def speaking() -> web.Application:
    application = web.Application()
    application.router.add_get("/ws", speak)
    return application


async def test_a_websocket_passes_both_ways(tmp_path: Path) -> None:
    async with containers_of(tmp_path, app(speaking)) as api:
        url = f"{api.base}/ws?identifier=abcd-1"
        headers = {"Authorization": f"Bearer {TOKEN}", "Cookie": "canary=1"}
        async with api.http.ws_connect(url, headers=headers, protocols=("a.example", "b.example")) as socket:
            assert socket.protocol == "b.example"
            assert "canary" not in (said := await socket.receive_str())
            assert TOKEN not in said
            await socket.send_str("hello")
            assert await socket.receive_str() == "HELLO"
            data = bytes(range(256)) * 4096
            await socket.send_bytes(data)
            assert await socket.receive_bytes() == data[::-1]
            await socket.send_str("bye")
            message = await socket.receive()
            assert message.type is aiohttp.WSMsgType.CLOSE
            assert (message.data, message.extra) == (4321, "so long")


async def test_an_open_websocket_keeps_its_session_and_a_drain_ends_it(tmp_path: Path) -> None:
    async with containers_of(tmp_path, app(speaking), cooldown=0.5) as api:
        url = f"{api.base}/ws?identifier=abcd-1"
        async with api.http.ws_connect(url, headers={"Authorization": f"Bearer {TOKEN}"}) as socket:
            await socket.receive_str()
            [info] = await api.gateway.list_sessions(NOBODY, "python")
            await asyncio.sleep(1.2)  # longer than the cooldown
            await socket.send_str("still")
            assert await socket.receive_str() == "STILL"
            assert [each.sandbox for each in await api.gateway.list_sessions(NOBODY, "python")] == [info.sandbox]

            assert await api.sockets.close_all(30)
            assert (await socket.receive()).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE)


async def test_a_container_is_handed_a_bounded_number_of_requests_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernelpool.agents.container.MOST_FORWARDS", 1)
    async with containers_of(tmp_path, app(speaking)) as api:
        url = f"{api.base}/ws?identifier=abcd-1"
        async with api.http.ws_connect(url, headers={"Authorization": f"Bearer {TOKEN}"}):
            async with api.request("GET", "/x") as refused:
                assert refused.status == 429
                assert refused.headers["x-ms-error-code"] == "ContainerBusy"
                assert refused.headers["Retry-After"] == "1"
            # Another session has places of its own.
            async with api.request("GET", "/x", identifier="abcd-2") as other:
                assert other.status != 429


async def test_a_container_that_floods_a_websocket_waits_for_its_reader(tmp_path: Path) -> None:
    sent, over = 0, False

    async def flood(request: web.Request) -> web.WebSocketResponse:
        nonlocal sent
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        while not over:
            await socket.send_bytes(bytes(1 << 16))
            sent += 1 << 16
        return socket

    def flooding() -> web.Application:
        application = web.Application()
        application.router.add_get("/ws", flood)
        return application

    async with containers_of(tmp_path, app(flooding)) as api:
        url = f"{api.base}/ws?identifier=abcd-1"
        async with api.http.ws_connect(url, headers={"Authorization": f"Bearer {TOKEN}"}) as socket:
            await socket.receive_bytes()
            before = -1
            while before != sent:  # until the container waits
                before = sent
                await asyncio.sleep(0.5)

            assert sent < 64 << 20
            over = True  # or closing would read for ever
            await socket.close()


async def test_what_was_passed_on_stands_in_the_audit_log(tmp_path: Path) -> None:
    entries: list[Entry] = []

    class Kept:
        def record(self, entry: Entry) -> None:
            entries.append(entry)

    telemetry = Telemetry(SILENT.observer, SILENT.tracing, Kept())
    async with containers_of(tmp_path, app(echoing), telemetry=telemetry) as api:
        await api.json("GET", "/secret/path")
        assert await api.works.wait_idle(30)  # the last byte of the answer comes before the entry

    [entry] = entries
    assert (entry.action, entry.outcome, entry.pool) == (Action.FORWARD, "succeeded", "python")
    assert "secret" not in repr(entry)
    assert entry.size > 100


async def test_a_websocket_of_another_site_is_refused(tmp_path: Path) -> None:
    async with containers_of(tmp_path, app(speaking)) as api:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await api.http.ws_connect(f"{api.base}/ws?identifier=abcd-1", headers={"Origin": "https://evil.example"})

        assert refused.value.status == 403


async def test_a_websocket_without_a_token_is_refused(tmp_path: Path) -> None:
    async with containers_of(tmp_path, app(speaking)) as api:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await api.http.ws_connect(f"{api.base}/ws?identifier=abcd-1")

        assert refused.value.status == 401


async def test_a_refusal_to_upgrade_is_passed_on(tmp_path: Path) -> None:
    async with containers_of(tmp_path, app(echoing)) as api:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await api.http.ws_connect(f"{api.base}/x?identifier=abcd-1", headers={"Authorization": f"Bearer {TOKEN}"})

        assert refused.value.status == 200


async def test_an_upgrade_that_breaks_half_way_is_502(tmp_path: Path) -> None:
    key = base64.b64encode(bytes(16)).decode()
    upgrade = f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
    async with containers_of(tmp_path, saying(b"HTTP/1.1 101 Switching Protocols\r\nUpgr")) as api:
        request = (
            f"GET /pools/python/ws?identifier=abcd-1 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        )
        answer = await api.raw(f"{request}{upgrade}Connection: Upgrade\r\n\r\n".encode(), until_closed=False)

        assert answer.startswith(b"HTTP/1.1 502 ")
