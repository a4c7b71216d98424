"""Which requests come from where they may: hosts, web pages' origins, cross-origin answers. Asked before any handler.

Against a web page in somebody's browser: a name that was rebound to our address (Host), a form or a script of another
site (Origin, Sec-Fetch-Site), a WebSocket of another site (Origin again: browsers ask nobody before they open one).
Clients that are no browsers send no Origin, and notice nothing of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tornado.httputil import HTTPServerRequest

from kernelpool.errors import MalformedHead, Misdirected, OriginNotAllowed
from kernelpool.network import LOOPBACK_HOSTS, WILDCARD_ADDRESSES, is_host_allowed, is_same_origin, parse_host

PROBES = frozenset({"/healthz", "/readyz"})
"""Served for any Host, or none: kubelets and load balancers probe by address. They tell nothing that a page could use,
and change nothing."""
EXPOSED = (
    "x-ms-error-code, x-ms-session-guid, x-ms-new-allocation, x-ms-session-etag, operation-id, operation-location, "
    "retry-after, content-disposition, content-range, accept-ranges, etag, mcp-session-id"
)
"""What a script may read of an answer, besides what it always may."""
PREFLIGHT_SECONDS = 7200
HSTS_SECONDS = 365 * 24 * 3600
_HEADER_NAMES = re.compile(r"[A-Za-z0-9_-]{1,64}(?: ?, ?[A-Za-z0-9_-]{1,64}){0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class EdgePolicy:
    """What the operator allows."""

    hosts: tuple[str, ...] = LOOPBACK_HOSTS
    origins: tuple[str, ...] = ()
    hsts: bool = False
    """Whether browsers are told to come back with TLS only: when it is ours to say, because the TLS is."""

    def check(self, request: HTTPServerRequest) -> None:
        """Raises what a request is refused with."""
        self._check_host(request)
        if request.method not in ("GET", "HEAD", "OPTIONS") or is_upgrade(request) or is_preflight(request):
            self._check_origin(request)

    def allows_origin(self, request: HTTPServerRequest) -> bool:
        """Whether the page that sent the request, if it was one, may use the gateway."""
        origin = request.headers.get("Origin")
        if origin is None:
            return request.headers.get("Sec-Fetch-Site", "none").lower() != "cross-site"
        return origin.lower() in self.origins or is_same_origin(origin, request.protocol, request.host)

    def headers(self, request: HTTPServerRequest) -> Iterator[tuple[str, str]]:
        """Of every answer."""
        yield "X-Content-Type-Options", "nosniff"
        yield "Referrer-Policy", "no-referrer"
        yield "Cross-Origin-Resource-Policy", "same-origin"
        if self.hsts and request.host_name not in LOOPBACK_HOSTS:
            yield "Strict-Transport-Security", f"max-age={HSTS_SECONDS}"
        if self.origins:
            yield "Vary", "Origin"
        origin = request.headers.get("Origin")
        if origin is not None and origin.lower() in self.origins:
            yield "Access-Control-Allow-Origin", origin
            yield "Access-Control-Expose-Headers", EXPOSED

    def preflight_headers(self, request: HTTPServerRequest) -> Iterator[tuple[str, str]]:
        """Of the answer to a browser that asks before it sends. Whatever headers it wants to send it may: a header is
        worth nothing without the token, and the token is not the browser's to add."""
        wanted = request.headers.get("Access-Control-Request-Headers", "")
        yield "Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE"
        if _HEADER_NAMES.fullmatch(wanted):
            yield "Access-Control-Allow-Headers", wanted
        yield "Access-Control-Max-Age", str(PREFLIGHT_SECONDS)
        yield "Vary", "Origin, Access-Control-Request-Headers"

    def _check_host(self, request: HTTPServerRequest) -> None:
        if request.path in PROBES:
            return
        text = request.headers.get("Host")
        if text is None:  # HTTP/1.0, for which Tornado makes one up
            raise MalformedHead("the request has no Host header")
        host = parse_host(text)
        if host is None:
            raise MalformedHead(f"the Host header {text[:100]!r} is no host name")
        if not is_host_allowed(host[0], self.hosts):
            raise Misdirected(f"this gateway does not serve the host {host[0][:100]!r}")

    def _check_origin(self, request: HTTPServerRequest) -> None:
        if not self.allows_origin(request) and not (is_upgrade(request) and _has_token(request)):
            origin = request.headers.get("Origin", "another site")
            raise OriginNotAllowed(f"pages of {origin[:200]!r} may not use this gateway")


def allowed_hosts(listening_on: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Loopback, what the operator named, and the address listened on when it is one and not all."""
    own = () if listening_on in WILDCARD_ADDRESSES else (listening_on.lower(),)
    return tuple(dict.fromkeys((*LOOPBACK_HOSTS, *own, *names)))


def _has_token(request: HTTPServerRequest) -> bool:
    """In a header. No page can put one on a WebSocket, so whatever its Origin says, it comes from a program: behind a
    proxy that rewrites Host, those name an origin that we have never heard of. A token in the URL proves no such thing.
    """
    return re.match(r"\s*(?:token|bearer)\s+\S", request.headers.get("Authorization", ""), re.IGNORECASE) is not None


def is_upgrade(request: HTTPServerRequest) -> bool:
    return "websocket" in request.headers.get("Upgrade", "").lower()


def is_preflight(request: HTTPServerRequest) -> bool:
    return (
        request.method == "OPTIONS"
        and "Origin" in request.headers
        and "Access-Control-Request-Method" in request.headers
    )
