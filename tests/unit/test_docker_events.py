"""The follower of an engine's events, with engines that behave badly."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kernelpool.backends.docker.engine import Engine
from kernelpool.backends.docker.events import Events
from kernelpool.backends.docker.settings import DockerSettings

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def engine_that(answers: Answer) -> Iterator[str]:
    """Its address; `answers` is asked for events."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0].endswith("/events"):
                answers(self)
                return
            body = json.dumps({"ApiVersion": "1.41", "Version": "20.10"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"tcp://127.0.0.1:{server.server_port}"
        server.shutdown()


async def test_an_engine_that_refuses_is_asked_less_and_less_often(caplog: pytest.LogCaptureFixture) -> None:
    asked = []

    def refuse(request: BaseHTTPRequestHandler) -> None:
        asked.append(time.monotonic())
        request.send_error(403)

    async def connected() -> None:
        raise AssertionError("it has refused")

    with engine_that(refuse) as host:
        async with (
            asyncio.timeout(30),
            Engine(DockerSettings(host=host)) as engine,
            Events(engine, "tag", connected, lambda _: None),
        ):
            while len(asked) < 5:
                await asyncio.sleep(0.01)

    # A busy machine makes any of them longer, but none shorter.
    pauses = [vars(record)["retry_in"] for record in caplog.records if "broke off" in record.getMessage()][:4]
    assert pauses == sorted(pauses)
    assert pauses[3] > 2 * pauses[0]
    assert all(asked[n + 1] - asked[n] > pauses[n] - 0.01 for n in range(4))  # they are told rounded


async def test_an_engine_that_never_answers_holds_up_nobody_who_leaves() -> None:
    asked, over = threading.Event(), threading.Event()

    def wait(request: BaseHTTPRequestHandler) -> None:
        asked.set()
        over.wait(60)

    async def connected() -> None:
        pass

    with engine_that(wait) as host:
        try:
            async with (
                asyncio.timeout(20),
                Engine(DockerSettings(host=host)) as engine,
                Events(engine, "tag", connected, lambda _: None, quiet=0.5),
            ):
                await asyncio.to_thread(asked.wait)
        finally:
            over.set()


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("odd")])
async def test_whatever_goes_wrong_deaths_are_heard_again(error: Exception) -> None:
    def tell(request: BaseHTTPRequestHandler) -> None:
        event = {"Actor": {"Attributes": {"io.kernelpool.sandbox": "abcdefabcdef"}}}
        request.send_response(200)
        request.end_headers()
        request.wfile.write(json.dumps(event).encode() + b"\n")

    failures = [error]
    heard = asyncio.Event()

    async def connected() -> None:
        if failures:
            raise failures.pop()

    with engine_that(tell) as host:
        async with (
            asyncio.timeout(30),
            Engine(DockerSettings(host=host)) as engine,
            Events(engine, "tag", connected, lambda _: heard.set()),
        ):
            await heard.wait()
