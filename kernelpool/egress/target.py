"""Where a request to the proxy wants to go: read off its head, strictly. Pure functions.

Two forms exist: `CONNECT host:port`, and `GET http://host/path`. Anything ambiguous is refused, not mended.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import h11

from kernelpool.egress.decisions import Outcome, Refused
from kernelpool.egress.policy import host_name

_CONNECT: Final = re.compile(r"(?P<host>[^:/?#@\\]{1,300}|\[[^\]]{1,100}\]):(?P<port>[1-9][0-9]{0,4})")
_ABSOLUTE: Final = re.compile(
    r"http://(?P<host>[^:/?#@\\\[]{1,300}|\[[^\]]{1,100}\])(?::(?P<port>[1-9][0-9]{0,4}))?(?P<path>[/?][^#]*)?",
    re.IGNORECASE,
)
# Of the connection, not of the request (RFC 9110, 7.6.1), and what is meant for a proxy.
_HOP_BY_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"proxy-connection"}
)
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Target:
    host: str
    """As `host_name` gives it."""
    port: int
    path: str | None = None
    """Of a request to be passed on; None for a tunnel."""

    @property
    def authority(self) -> str:
        return self.host if self.port == 80 else f"{self.host}:{self.port}"


def target_of(request: h11.Request) -> Target:
    """Raises `Refused`."""
    text = request.target.decode("ascii")
    is_tunnel = request.method == b"CONNECT"
    match = (_CONNECT if is_tunnel else _ABSOLUTE).fullmatch(text)
    if match is None or int(match["port"] or 80) > 65535:
        if text.lower().startswith("https://"):
            raise Refused(400, Outcome.BAD_REQUEST, "https goes through a tunnel: use CONNECT")
        raise Refused(400, Outcome.BAD_REQUEST, "this is a proxy: ask for http://host/path, or CONNECT host:port")
    _refuse_ambiguous(request, is_tunnel)
    try:
        host = host_name(match["host"])
    except ValueError as error:
        raise Refused(403, Outcome.REFUSED_NAME, str(error), match["host"], int(match["port"] or 80)) from None
    if is_tunnel:
        return Target(host, int(match["port"]))
    path = match["path"] or "/"
    return Target(host, int(match["port"] or 80), path if path.startswith("/") else f"/{path}")


def _refuse_ambiguous(request: h11.Request, is_tunnel: bool) -> None:
    """Whose end somebody else might see elsewhere."""
    if request.http_version not in (b"1.0", b"1.1"):
        raise Refused(400, Outcome.BAD_REQUEST, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    names = [name for name, _ in request.headers]
    framing = names.count(b"content-length") + names.count(b"transfer-encoding")
    if framing > (0 if is_tunnel else 1):
        raise Refused(400, Outcome.BAD_REQUEST, "the request's length is said in more than one way")
    if b"transfer-encoding" in names and request.http_version == b"1.0":
        raise Refused(400, Outcome.BAD_REQUEST, "HTTP/1.0 has no Transfer-Encoding")


def end_to_end(headers: Headers) -> Headers:
    """Without those of the connection, those that it names itself, and those for a proxy."""
    named = {word.strip().lower() for name, value in headers if name == b"connection" for word in value.split(b",")}
    gone = _HOP_BY_HOP | (named - {b"content-length", b"host"})
    return [(name, value) for name, value in headers if name not in gone and not name.startswith(b"proxy-")]


def passed_on(headers: Headers) -> Headers:
    """The end-to-end ones, with the length said in one way, and the end of the connection announced."""
    kept = end_to_end(headers)
    if any(name == b"transfer-encoding" for name, _ in headers):
        kept = [(name, value) for name, value in kept if name != b"content-length"]
        kept.append((b"transfer-encoding", b"chunked"))
    return [*kept, (b"connection", b"close")]
