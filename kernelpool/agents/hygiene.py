"""Which headers pass between a caller and a custom container, and which end at the gateway. No I/O.

A request's framing and hops are the gateway's own; its credentials are for the gateway, and a container that saw them
could act as its caller. An answer comes from code that nobody trusts, under the origin that all sessions, pools and the
gateway itself share: what a browser would hold against that whole origin ends here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Headers = Sequence[tuple[str, str]]

_HOPS = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings"}
)
"""RFC 9110, 7.6.1; and what old clients still send."""
_FRAMING = frozenset({"content-length", "host", "expect"})
"""Said anew for each connection."""
_CREDENTIALS = frozenset({"authorization", "cookie", "cookie2", "x-ms-apikey", "x-api-key"})
_ABOUT_THE_CALLER = frozenset({"forwarded", "x-real-ip", "true-client-ip", "x-client-ip", "via", "origin"})
"""Origin belongs to Host, which is another one now; the edge has checked it."""
_OF_THE_ORIGIN = frozenset(
    {
        "set-cookie",
        "set-cookie2",
        "clear-site-data",
        "strict-transport-security",
        "public-key-pins",
        "alt-svc",
        "service-worker-allowed",
        "nel",
        "report-to",
        "reporting-endpoints",
        "origin-agent-cluster",
        "accept-ch",
        "www-authenticate",
    }
)
_OURS = frozenset({"x-ms-error-code", "x-ms-session-guid", "x-ms-new-allocation", "x-kernelpool-notice"})
"""What only the gateway says."""
_WEBSOCKET = re.compile(r"^sec-websocket-", re.IGNORECASE)
SANDBOXED = "sandbox allow-scripts allow-forms allow-popups allow-modals allow-downloads"
"""A Content-Security-Policy, added to the container's own: a page of its has an origin of nobody's."""


def to_container(headers: Headers, port: int, *, length: int | None, upgrades: bool = False) -> list[tuple[str, str]]:
    """Of a request. `length` is that of its body: None when there is none, -1 when nobody knows."""
    dropped = _HOPS | _FRAMING | _CREDENTIALS | _ABOUT_THE_CALLER | _named(headers)
    kept = [("Host", f"localhost:{port}")]
    for name, value in headers:
        low = name.lower()
        if low in dropped or low.startswith(("x-forwarded-", "proxy-")):
            continue
        if _WEBSOCKET.match(low) and not upgrades:
            continue
        kept.append((name, value))
    if upgrades:
        kept += [("Connection", "Upgrade"), ("Upgrade", "websocket")]
    else:
        kept.append(("Connection", "close"))
    if length is not None:
        kept.append(("Transfer-Encoding", "chunked") if length < 0 else ("Content-Length", str(length)))
    return kept


def from_container(headers: Headers, status: int) -> list[tuple[str, str]]:
    """Of an answer. Its length stays where it is the framing."""
    dropped = _HOPS | _OF_THE_ORIGIN | _OURS | _named(headers)
    names = {name.lower() for name, _ in headers}
    if "transfer-encoding" in names or status in (101, 204):
        dropped = dropped | {"content-length"}
    return [
        (name, value)
        for name, value in headers
        if not (name.lower() in dropped or name.lower().startswith(("access-control-", "proxy-")))
    ]


def _named(headers: Iterable[tuple[str, str]]) -> set[str]:
    """What the Connection header says is for this hop alone."""
    values = [value for name, value in headers if name.lower() == "connection"]
    return {token.strip().lower() for value in values for token in value.split(",")}
