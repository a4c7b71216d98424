"""Jupyter's sockets as a kernel of ours has them: bound as the connection file says, messages signed, nothing dropped.

For kernels whose interpreter is another process; the one of Python has ipykernel's.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zmq

DELIMITER = b"<IDS|MSG>"
VERSION = "5.4"
IOPUB_MARK = 100
LINGER = 1000
"""Milliseconds for a reader to take what was said last."""

KINDS = {"shell": zmq.ROUTER, "iopub": zmq.XPUB, "stdin": zmq.ROUTER, "control": zmq.ROUTER, "hb": zmq.REP}


@dataclass(frozen=True, slots=True)
class Request:
    """A message from a client, and where its reply goes."""

    channel: str
    peers: tuple[bytes, ...]
    header: dict[str, Any]
    content: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.header["msg_type"])


class Wire:
    """The five sockets of a kernel. To be closed by `with`, which gives readers a second."""

    def __init__(self, connection_file: Path) -> None:
        self._connection = json.loads(connection_file.read_text())
        self._mac = hmac.new(self._connection["key"].encode(), digestmod=hashlib.sha256)
        self._session = secrets.token_hex(16)
        self._stack = ExitStack()
        self.sockets: dict[str, zmq.Socket[bytes]] = {}

    def __enter__(self) -> Wire:
        context: zmq.Context[zmq.Socket[bytes]] = self._stack.enter_context(zmq.Context())
        for name, kind in KINDS.items():
            socket = self._stack.enter_context(context.socket(kind))
            socket.linger = LINGER
            # Drop nothing: when the reader is this far behind, whoever writes waits.
            socket.sndhwm = IOPUB_MARK if name == "iopub" else 0
            socket.rcvhwm = 0
            if name == "iopub":
                socket.setsockopt(zmq.XPUB_NODROP, 1)
            socket.bind(self._address(self._connection[f"{name}_port"]))
            self.sockets[name] = socket
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _address(self, port: int) -> str:
        transport, ip = self._connection["transport"], self._connection["ip"]
        return f"ipc://{ip}-{port}" if transport == "ipc" else f"{transport}://{ip}:{port}"

    def receive(self, channel: str) -> Request | None:
        """The next request, if there is one; those that are not signed are passed over. Does not wait."""
        while True:
            try:
                frames = self.sockets[channel].recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            if request := self._read(channel, frames):
                return request

    def waiting(self, channel: str) -> list[Request]:
        """All that have come by now."""
        return list(iter(lambda: self.receive(channel), None))

    def _read(self, channel: str, frames: Sequence[bytes]) -> Request | None:
        try:
            at = frames.index(DELIMITER)
            signature, header, parent, metadata, content = frames[at + 1 : at + 6]
            if not hmac.compare_digest(signature, self._sign((header, parent, metadata, content))):
                return None
            request = Request(channel, tuple(frames[:at]), json.loads(header), json.loads(content))
            return request if isinstance(request.kind, str) and isinstance(request.content, dict) else None
        except (ValueError, KeyError, TypeError):
            return None

    def reply(self, request: Request, content: dict[str, Any]) -> None:
        kind = request.kind.removesuffix("_request") + "_reply"
        self.sockets[request.channel].send_multipart([*request.peers, *self._frames(kind, content, request.header)])

    def publish(self, kind: str, content: dict[str, Any], request: Request | None, **fields: Any) -> None:
        """On IOPub, as an effect of the request. `fields`: metadata."""
        parent = request.header if request else {}
        self.sockets["iopub"].send_multipart([kind.encode(), *self._frames(kind, content, parent, fields)])

    def _frames(
        self, kind: str, content: dict[str, Any], parent: dict[str, Any], metadata: dict[str, Any] | None = None
    ) -> list[bytes]:
        header = {
            "msg_id": secrets.token_hex(16),
            "msg_type": kind,
            "username": "kernel",
            "session": self._session,
            "date": datetime.now(UTC).isoformat(),
            "version": VERSION,
        }
        parts = [json.dumps(part).encode() for part in (header, parent, metadata or {}, content)]
        return [DELIMITER, self._sign(parts), *parts]

    def _sign(self, parts: Sequence[bytes]) -> bytes:
        if not self._connection["key"]:
            return b""
        mac = self._mac.copy()
        for part in parts:
            mac.update(part)
        return mac.hexdigest().encode()
