"""A gateway that is asked to stop: connections end politely, WebSockets are told to go elsewhere."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tornado.websocket import WebSocketHandler

from kernelpool import server
from kernelpool.api import make_application
from kernelpool.api.base import Collaborators
from kernelpool.api.sockets import RESTARTS, OpenSockets
from tests.api.conftest import Api
from tests.api.test_server import TOKEN, WORLD, fake_backends, gateway_of, settings_of

__all__ = ["fake_backends"]
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Channel(WebSocketHandler):
    """As a surface with WebSockets does it."""

    def initialize(self, sockets: OpenSockets) -> None:
        self.sockets = sockets

    def open(self, *path: Any, **named: Any) -> None:
        self.sockets.add(self)

    def on_message(self, message: str | bytes) -> None:
        self.write_message(message)

    def on_close(self) -> None:
        self.sockets.discard(self)


async def test_idle_connections_are_closed_and_answers_are_the_last_of_theirs(api: Api) -> None:
    idle, idle_writer = await asyncio.open_connection("127.0.0.1", api.port)
    idle_writer.write(HEALTH)
    await idle.readuntil(b'"alive"}')
    new, new_writer = await asyncio.open_connection("127.0.0.1", api.port)

    async with asyncio.timeout(30):
        while not any(stream.is_idle for stream in api.server._streams):
            await asyncio.sleep(0.01)
        api.server.drain()

        assert await idle.read() == b""
        new_writer.write(HEALTH)
        answer = await new.read()
    idle_writer.close()
    new_writer.close()

    assert re.match(rb"HTTP/1.1 200 .*\r\nConnection: close\r\n", answer, re.DOTALL)


async def test_an_answer_that_was_awaited_when_the_drain_began_says_that_it_is_the_last(tmp_path: Path) -> None:
    async with gateway_of(settings_of(tmp_path, token=TOKEN)) as running:
        await running.run("go = False")
        url = f"{running.endpoint}/executions?api-version=2025-10-02-preview&identifier=abcd-1"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        body = {"code": "while True: pass", "timeoutInSeconds": 1}
        call = asyncio.create_task(running.http.post(url, json=body, headers=headers))
        async with asyncio.timeout(30):
            while not any(sandbox.process.status().running for sandbox in WORLD[tmp_path / "kept"].values()):
                await asyncio.sleep(0.01)
        running.stop()
        response = await call
        await asyncio.wait_for(running.task, 20)

    assert response.status == 200
    assert response.headers["Connection"] == "close"


async def test_websockets_are_told_to_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_application

    def with_channel(collaborators: Collaborators, *rest: Any, **named: Any) -> Any:
        application = made(collaborators, *rest, **named)
        application.add_handlers(".*", [("/channel", Channel, {"sockets": collaborators.sockets})])
        return application

    monkeypatch.setattr(server, "make_application", with_channel)
    async with gateway_of(settings_of(tmp_path, token=TOKEN)) as running:
        url = running.endpoint.replace("/pools/python", "/channel")
        async with running.http.ws_connect(url) as channel:
            await channel.send_str("hello")
            assert await channel.receive_str() == "hello"
            running.stop()
            message = await channel.receive(30)
        await asyncio.wait_for(running.task, 20)

    assert message.type is aiohttp.WSMsgType.CLOSE
    assert message.data == RESTARTS


class Deaf:
    """A client that never answers the close."""

    def __init__(self) -> None:
        self.codes: list[int | None] = []

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        self.codes.append(code)


async def test_who_does_not_answer_is_not_waited_for_and_who_comes_late_is_told_too() -> None:
    sockets, deaf, late = OpenSockets(), Deaf(), Deaf()
    sockets.add(deaf)

    assert not await sockets.close_all(0.01)
    sockets.add(late)

    assert deaf.codes == late.codes == [RESTARTS]
    sockets.discard(deaf)
    sockets.discard(late)
    assert await sockets.close_all(1)
