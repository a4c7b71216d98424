"""Stops JavaScript that does not look up: by the inspector, which Node.js opens on SIGUSR1 whatever it is doing."""

from __future__ import annotations

import base64
import json
import os
import re
import socket

LISTENING = re.compile(r"Debugger listening on ws://([\d.]+):(\d+)/(\S+)")
NOISE = re.compile(r"Debugger (listening|ending) on ws://|Debugger attached\.|For help, see: https://nodejs\.org/")
SECONDS = 1.0


class Inspector:
    """A connection to it, for good: Node.js that closes its inspector soon after SIGUSR1 opens another by itself."""

    def __init__(self, told: re.Match[str]) -> None:
        """`told` is what Node.js says when the inspector is open. Raises `OSError`."""
        host, port, path = told.groups()
        key = base64.b64encode(os.urandom(16)).decode()
        self._connection = socket.create_connection((host, int(port)), timeout=SECONDS)
        self._connection.sendall(
            f"GET /{path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._connection.recv(4096)

    def terminate(self) -> None:
        """Ends what runs now, and keeps all state. Raises `OSError`."""
        text = json.dumps({"id": 1, "method": "Runtime.terminateExecution"}).encode()
        assert len(text) < 126
        # Text, final, masked with zeros.
        self._connection.sendall(bytes([0x81, 0x80 | len(text)]) + bytes(4) + text)
        self._connection.recv(4096)
