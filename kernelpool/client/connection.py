"""What both transports share: where the gateway is, how to ask it, and what httpx's errors mean. No I/O."""

from __future__ import annotations

import random
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from kernelpool.client.calls import Call
from kernelpool.client.errors import ClientError, ConnectionBroken, InvalidRequest, Unreachable
from kernelpool.client.policy import Retries
from kernelpool.client.transfers import Source

CONNECT_SECONDS = 10.0
TIMEOUT = 60.0
MAX_ANSWER = 64 << 20
RETRIES = Retries()
MAX_CONNECTIONS = 200
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")

Token = str | Callable[[], str]


@dataclass(frozen=True, slots=True)
class Connection:
    """Checked when it is made: a wrong URL is told before anything is sent."""

    url: str
    token: Token = field(repr=False)
    timeout: float = TIMEOUT
    """Seconds that the gateway may be silent. While code runs it sends a sign of life every ten."""
    retries: Retries = RETRIES
    verify: bool | ssl.SSLContext = True
    max_answer: int = MAX_ANSWER
    """Bytes of an answer that are kept in memory."""

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.url)
        except (httpx.InvalidURL, TypeError) as error:
            raise InvalidRequest(f"{self.url!r} is no URL: {error}") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise InvalidRequest("the URL of a gateway looks like http://host:port", code="InvalidUrl")
        if url.userinfo or url.query or url.fragment:
            raise InvalidRequest("the URL of a gateway has no user, query or fragment; the token goes beside it")
        if pool := re.search(r"/pools/([^/]+)/?$", url.path):
            raise InvalidRequest(
                f"the URL is that of pool {pool[1]!r}; give the part before /pools, and the pool's name"
            )
        object.__setattr__(self, "url", str(url).rstrip("/"))

    def options(self) -> dict[str, Any]:
        """For the constructor of an httpx client."""
        return {
            "timeout": httpx.Timeout(self.timeout, connect=min(CONNECT_SECONDS, self.timeout)),
            "limits": httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=20),
            # The certificates of the world take tens of milliseconds to load, and no redirect is ever followed.
            "verify": self.verify if self.url.startswith("https:") else False,
            "follow_redirects": False,
        }

    def mounts(self) -> dict[str, None]:
        """No proxy of the environment stands between a process and its own machine."""
        return {f"all://{host}": None for host in LOOPBACK}

    def request(self, call: Call[Any], more_headers: Mapping[str, str]) -> dict[str, Any]:
        """For httpx's `build_request`."""
        token = self.token if isinstance(self.token, str) else self.token()
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json", "Accept-Encoding": "identity"}
        if call.json is not None:
            headers["Content-Type"] = "application/json"
        return {
            "method": call.method,
            "url": self.url + call.path,
            "params": dict(call.query),
            "headers": {**headers, **call.headers, **more_headers},
        }

    def pause(self, error: ClientError, failures: int, *, repeatable: bool, source: Source | None = None) -> float:
        """Seconds until it may be sent again. Raises the error when it may not."""
        seconds = self.retries.pause(error, failures, repeatable=repeatable, luck=random.random())  # noqa: S311
        if seconds is None or (source is not None and not source.replayable):
            raise error
        return seconds

    def error_of(self, error: httpx.HTTPError | httpx.InvalidURL | httpx.StreamError) -> ClientError:
        """What went wrong on the way, in our words."""
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError):
            why = str(error) or f"no connection within {CONNECT_SECONDS:g} s"
            remedy = "Check the URL, and that the gateway runs."
            if "CERTIFICATE_VERIFY_FAILED" in why:
                remedy = "Name the file of the authority that signed its certificate in SSL_CERT_FILE."
            return Unreachable(f"cannot reach {self.url}: {why}", remedy=remedy)
        if isinstance(error, httpx.PoolTimeout):
            return Unreachable(f"more than {MAX_CONNECTIONS} calls at the same time", remedy="Make fewer at once.")
        if isinstance(error, httpx.TimeoutException):
            return ConnectionBroken(f"{self.url} was silent for {self.timeout:g} s")
        if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol | httpx.InvalidURL):
            return InvalidRequest(f"this cannot be sent: {error}")
        return ConnectionBroken(f"the connection to {self.url} broke: {error}", remedy="Send the request again.")


def upload_headers(size: int | None) -> Mapping[str, str]:
    """Without a size httpx sends the body in chunks."""
    return {"Content-Type": "application/octet-stream", **({"Content-Length": str(size)} if size is not None else {})}
