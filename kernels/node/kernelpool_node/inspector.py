"""Stops JavaScript that does not look up: by the inspector, which Node.js opens on SIGUSR1 whatever it is doing."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
from typing import Any

LISTENING = re.compile(r"Debugger listening on ws://([\d.]+):(\d+)/(\S+)")
NOISE = re.compile(
    r"Debugger (listening|ending) on ws://|Debugger attached\.|For help, see: https://nodejs\.org/"
    r"|Waiting for the debugger to disconnect"
)
LEAVING = "Waiting for the debugger"
STARTS = ("Debugger ", "For help, see: ", LEAVING)
"""Of what is noise."""
SECONDS = 1.0
LONGEST = 1 << 16
"""Bytes of an answer."""


class Inspector:
    """A connection to it, for good: Node.js that closes its inspector soon after SIGUSR1 opens another by itself."""

    def __init__(self, told: re.Match[str]) -> None:
        """`told` is what Node.js says when the inspector is open. Raises `OSError`."""
        host, port, path = told.groups()
        self._connection = socket.create_connection((host, int(port)), timeout=SECONDS)
        # The mutable state: what was read of answers, and how often it was asked.
        self._said = bytearray()
        self._asked = 0
        try:
            self._shake_hands(f"{host}:{port}", path)
        except OSError:
            self._connection.close()
            raise

    def _shake_hands(self, authority: str, path: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        self._connection.sendall(
            f"GET /{path} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while (end := self._said.find(b"\r\n\r\n")) < 0:
            self._receive()
        del self._said[: end + 4]

    def close(self) -> None:
        self._connection.close()

    def terminate(self) -> None:
        """Ends what runs when it is heard, and keeps all state. Does not wait: JavaScript may be waiting for us to read
        what it prints. Raises `OSError`."""
        self._absorb()
        self._ask("Runtime.terminateExecution")

    def absorb(self) -> None:
        """Nothing runs: an end that was asked for too late is not to be that of what comes next. Raises `OSError`."""
        asked = self._absorb()
        while self._answer() != asked:
            pass

    def _absorb(self) -> int:
        """What an end that is still to come ends, or its own. Without it V8 takes an end that its own code has caught,
        for one that is still to come, and no other."""
        return self._ask("Runtime.evaluate", expression="for (;;) {}", timeout=1)

    def _ask(self, method: str, **params: Any) -> int:
        self._asked += 1
        text = json.dumps({"id": self._asked, "method": method, "params": params}).encode()
        assert len(text) < 126
        # Text, final, masked with zeros.
        self._connection.sendall(bytes([0x81, 0x80 | len(text)]) + bytes(4) + text)
        return self._asked

    def _answer(self) -> object:
        """The id of the next one."""
        head, length = 2, self._peek(2)[1]
        if length >= 126:
            head = 4 if length == 126 else 10
            length = int.from_bytes(self._peek(head)[2:])
        text = self._peek(head + length)[head:]
        del self._said[: head + length]
        try:
            return json.loads(text).get("id")
        except (ValueError, AttributeError):
            return None

    def _peek(self, size: int) -> bytes:
        if size > LONGEST:
            raise OSError("what the inspector says is no answer")
        while len(self._said) < size:
            self._receive()
        return bytes(self._said[:size])

    def _receive(self) -> None:
        data = self._connection.recv(LONGEST)
        if not data:
            raise OSError("the inspector is gone")
        self._said += data
