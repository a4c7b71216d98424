"""The server name in the first message of TLS, read without believing a length in it. Pure functions.

A name that the proxy has checked is worth little when the TLS inside asks the same address for another one, as it
does where many sites share one address.
"""

from __future__ import annotations

from typing import Final

MAX_BYTES: Final = 16 << 10
UNRECOGNIZED_NAME: Final = b"\x15\x03\x03\x00\x02\x02\x70"
"""A fatal alert: what a client of TLS shows as such."""

_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _HOST_NAME = 0, 0


class NotTls(ValueError):
    """No ClientHello, or a broken one."""


def looks_like_tls(data: bytes) -> bool:
    return data[:1] == bytes([_HANDSHAKE])


def server_name(data: bytes) -> str | None:
    """The name, "" when there is none, None when more has to come. Raises `NotTls`."""
    message = _handshake(data)
    if message is None:
        return None
    try:
        return _name_in(message)
    except (IndexError, UnicodeDecodeError):
        raise NotTls("the ClientHello is broken") from None


def _handshake(data: bytes) -> bytes | None:
    """The ClientHello's body, from as many records as it came in."""
    message, at = b"", 0
    while len(message) < 4 or len(message) < 4 + int.from_bytes(message[1:4]):
        header = data[at : at + 5]
        if header and (header[0] != _HANDSHAKE or header[1:2] not in (b"", b"\x03")):
            raise NotTls("this is no TLS")
        length = int.from_bytes(header[3:5])
        if len(header) == 5 and not 0 < length <= 1 << 14:
            raise NotTls("a record of TLS has no such length")
        if message[:1] not in (b"", bytes([_CLIENT_HELLO])):
            raise NotTls("TLS does not begin with a ClientHello")
        if len(message) >= 4 and int.from_bytes(message[1:4]) > MAX_BYTES:
            raise NotTls("the ClientHello is too long")
        if len(header) < 5 or len(data) < at + 5 + length:
            if len(data) >= MAX_BYTES:
                raise NotTls("the ClientHello is too long")
            return None
        message += data[at + 5 : at + 5 + length]
        at += 5 + length
    if message[0] != _CLIENT_HELLO:
        raise NotTls("TLS does not begin with a ClientHello")
    return message[4 : 4 + int.from_bytes(message[1:4])]


def _name_in(hello: bytes) -> str:
    rest = _Reader(hello)
    rest.take(2 + 32)  # version, random
    rest.vector(1)  # session id
    rest.vector(2)  # cipher suites
    rest.vector(1)  # compression methods
    if not rest.left:
        return ""
    extensions, names = _Reader(rest.vector(2)), list[str]()
    while extensions.left:
        kind, body = int.from_bytes(extensions.take(2)), extensions.vector(2)
        if kind == _SERVER_NAME:
            entries = _Reader(_Reader(body).vector(2))
            while entries.left:
                if entries.take(1)[0] != _HOST_NAME:
                    raise NotTls("a server name is of no known kind")
                names.append(entries.vector(2).decode("ascii"))
    if len(names) > 1:
        raise NotTls("there are several server names")
    return names[0] if names else ""


class _Reader:
    """Raises `IndexError` for what is not there."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise IndexError
        self._at += size
        return self._data[self._at - size : self._at]

    def vector(self, width: int) -> bytes:
        return self.take(int.from_bytes(self.take(width)))
