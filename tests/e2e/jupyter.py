"""A Jupyter client of the tests' own, over raw sockets: both framings, and everything that it was told kept."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
import websocket

from kernelpool.protocol.framing import V1, WireMessage, decode_v1, encode_v1, parse_legacy
from tests.e2e.gateways import SECONDS, TOKEN, Gateway

Json = dict[str, Any]


class Server:
    """A gateway as a Jupyter server."""

    def __init__(self, gateway: Gateway, base: str = "") -> None:
        self.gateway = gateway
        self.url = f"http://127.0.0.1:{gateway.port}{base}"

    def ask(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        headers = {"Authorization": f"token {TOKEN}"}
        response = requests.request(method, self.url + path, json=body, headers=headers, timeout=SECONDS)
        assert response.status_code == status, response.text
        return response.json() if response.content else None

    @contextmanager
    def kernel(self, **body: Any) -> Iterator[Json]:
        self.gateway.wait_ready()
        kernel = self.ask("POST", "/api/kernels", body, 201)
        yield kernel
        self.end(kernel)

    def end(self, kernel: Json) -> None:
        """Whether or not it is there still."""
        url = f"{self.url}/api/kernels/{kernel['id']}"
        requests.delete(url, headers={"Authorization": f"token {TOKEN}"}, timeout=SECONDS)

    @contextmanager
    def connected(self, kernel: Json, *, legacy: bool = False, **query: str) -> Iterator[Client]:
        url = f"{self.url.replace('http', 'ws', 1)}/api/kernels/{kernel['id']}/channels"
        text = "&".join(f"{name}={value}" for name, value in {"token": TOKEN, **query}.items())
        protocols = None if legacy else [V1]
        socket = websocket.create_connection(f"{url}?{text}", timeout=SECONDS, subprotocols=protocols)
        try:
            yield Client(socket)
        finally:
            socket.close()


class Client:
    """One connection. Messages are dicts as in the older framing, whichever it speaks."""

    def __init__(self, socket: websocket.WebSocket) -> None:
        self.socket = socket
        self.is_legacy = socket.getsubprotocol() != V1
        self.session = uuid.uuid4().hex
        self.heard: list[Json] = []

    def send(
        self,
        kind: str,
        content: Json | None = None,
        channel: str = "shell",
        buffers: tuple[bytes, ...] = (),
        **rest: Any,
    ) -> str:
        """The id of the message. `rest` is more of its header, or its parent."""
        parent = rest.pop("parent", {})
        header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "session": self.session, "username": "", **rest}
        header |= {"version": "5.4", "date": "2026-01-01T00:00:00Z"}
        parts = {"header": header, "parent_header": parent, "metadata": {}, "content": content or {}}
        if self.is_legacy:
            self.socket.send(json.dumps({**parts, "channel": channel, "buffers": []}))
        else:
            dumped = [json.dumps(part).encode() for part in parts.values()]
            wire = WireMessage(channel, dumped[0], dumped[1], dumped[2], dumped[3], buffers)
            self.socket.send_binary(encode_v1(wire))
        return str(header["msg_id"])

    def execute(self, code: str, **content: Any) -> str:
        return self.send("execute_request", {"code": code, "allow_stdin": False, "stop_on_error": True, **content})

    def next(self) -> Json:
        while True:
            data = self.socket.recv()
            if data or self.socket.connected:
                break
        message = self._parse(data)
        self.heard.append(message)
        return message

    def _parse(self, data: str | bytes) -> Json:
        if self.is_legacy:
            fields, buffers = parse_legacy(data)
            return {**fields, "buffers": buffers}
        assert isinstance(data, bytes)
        wire = decode_v1(data)
        names = ("header", "parent_header", "metadata", "content")
        parts = {name: json.loads(getattr(wire, name)) for name in names}
        return {**parts, "channel": wire.channel, "msg_type": parts["header"]["msg_type"], "buffers": wire.buffers}

    def until(self, kind: str, parent: str | None = None, **content: Any) -> Json:
        """The next message of that type and content; with a parent, one that came already will do as well.

        The channels of a kernel keep no order among each other: a reply may overtake what it follows.
        """

        def fits(message: Json) -> bool:
            has_content = all(message["content"].get(name) == value for name, value in content.items())
            return message["msg_type"] == kind and has_content and parent in (None, parent_of(message))

        for message in self.heard if parent is not None else ():
            if fits(message):
                return message
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            if fits(message := self.next()):
                return message
        raise TimeoutError(f"no {kind}")

    def finish(self, id: str) -> list[Json]:
        """Everything with that parent, up to the reply and the idle that end it."""
        seen: list[Json] = []
        missing = {"reply", "idle"}
        while missing:
            message = self.next()
            if parent_of(message) != id:
                continue
            seen.append(message)
            if message["msg_type"].endswith("_reply") and message["channel"] in ("shell", "control"):
                missing.discard("reply")
            if message["content"].get("execution_state") == "idle":
                missing.discard("idle")
        return seen

    def run(self, code: str, **content: Any) -> list[Json]:
        return self.finish(self.execute(code, **content))

    def value(self, code: str) -> str:
        [result] = [each for each in self.run(code) if each["msg_type"] == "execute_result"]
        return str(result["content"]["data"]["text/plain"])

    def request(self, kind: str, content: Json | None = None, channel: str = "shell", **rest: Any) -> Json:
        """The content of its reply."""
        seen = self.finish(self.send(kind, content, channel, **rest))
        return next(each["content"] for each in seen if each["msg_type"].endswith("_reply"))


def parent_of(message: Json) -> str:
    return str(message["parent_header"].get("msg_id", ""))


def kinds(messages: list[Json]) -> list[str]:
    return [message["msg_type"] for message in messages]


def text_of(messages: list[Json], name: str = "stdout") -> str:
    """What was written, in order."""
    streams = [each["content"] for each in messages if each["msg_type"] == "stream"]
    return "".join(each["text"] for each in streams if each["name"] == name)
