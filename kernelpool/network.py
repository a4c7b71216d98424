"""Hosts, origins and proxies: how an operator writes them, and whether a request's fits. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

Network = IPv4Network | IPv6Network
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
WILDCARD_ADDRESSES = ("0.0.0.0", "::", "")  # noqa: S104 - compared, not bound
_PORTS = {"http": 80, "https": 443}
_NAME = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*"
_HOST = re.compile(rf"(?P<host>{_NAME}|\[(?P<six>[0-9a-f:.]+)\])\.?(?::(?P<port>\d{{1,5}}))?")
_PATTERN = re.compile(rf"\*|(?:\*\.)?{_NAME}")


# --- a request's side


def parse_host(text: str) -> tuple[str, int | None] | None:
    """A Host header's name, in lower case and without brackets, and its port; None for what is no host."""
    match = _HOST.fullmatch(text.lower())
    if match is None or (match["six"] and parse_address(match["six"]) is None):
        return None
    port = int(match["port"]) if match["port"] else None
    return (None) if port is not None and port > 65535 else (match["six"] or match["host"], port)


def is_host_allowed(name: str, allowed: Iterable[str]) -> bool:
    """`name` as `parse_host` gives it. `*.example.com` fits every name below, and not example.com itself."""
    return any(
        pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:])) for pattern in allowed
    )


def is_same_origin(origin: str, scheme: str, host: str) -> bool:
    """Whether a page of that `Origin` came from where it sends its request."""
    theirs_scheme, _, theirs = origin.lower().partition("://")
    ours_at, theirs_at = parse_host(host), parse_host(theirs)
    if ours_at is None or theirs_at is None or scheme != theirs_scheme:
        return False
    default = _PORTS.get(scheme)
    return (ours_at[0], ours_at[1] or default) == (theirs_at[0], theirs_at[1] or default)


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """An address with or without a port or brackets; one that IPv6 wraps is unwrapped."""
    text = text.strip()
    if match := re.fullmatch(r"\[([^\]]*)\](?::\d+)?|(\d+\.\d+\.\d+\.\d+):\d+", text):
        text = match[1] or match[2]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_within(address: IPv4Address | IPv6Address | None, networks: Sequence[Network]) -> bool:
    return address is not None and any(address in network for network in networks)


def forwarded_client(peer: str, forwarded_for: str, trusted: Sequence[Network]) -> str:
    """Who sent what came from `peer`, by X-Forwarded-For: each proxy has written on the right whom it saw, so the
    right-most one that is no proxy of ours is the client. What stands left of it, it may have made up."""
    client = peer
    for text in reversed(forwarded_for.split(",")):
        if not is_within(parse_address(client), trusted) or (address := parse_address(text)) is None:
            break
        client = str(address)
    return client


def client_key(address: str) -> str:
    """What counts as one client. With IPv6 everybody has 2⁶⁴ addresses, so there it is the network."""
    parsed = parse_address(address)
    return str(IPv6Network((parsed, 64), strict=False)) if isinstance(parsed, IPv6Address) else str(parsed or address)


# --- the operator's side


def split_list(value: Any) -> Any:
    """`a, b`, as an environment variable has it."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _host_pattern(value: str) -> str:
    name = value.lower().rstrip(".")
    if _PATTERN.fullmatch(name):
        return name
    if (address := parse_address(value)) is not None:
        return str(address)
    raise ValueError(f"{value!r} is no host; write a name, an address, *.example.com or *, without a port")


def _origin(value: str) -> str:
    scheme, _, host = value.lower().rstrip("/").partition("://")
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) or parse_host(host) is None:
        raise ValueError(f"{value!r} is no origin; write for example https://app.example.com")
    return f"{scheme}://{host}"


def _network(value: str) -> str:
    try:
        return str(ip_network(value))
    except ValueError:
        raise ValueError(f"{value!r} is no network; write for example 10.0.0.0/8 or 127.0.0.1") from None


HostPatterns = Annotated[tuple[Annotated[str, AfterValidator(_host_pattern)], ...], BeforeValidator(split_list)]
Origins = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], BeforeValidator(split_list)]
Networks = Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], BeforeValidator(split_list)]
