"""Which addresses are the public internet. The rest is somebody's inside: this host's, a cloud's, a neighbour's."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Judge = Callable[[Address], str | None]
"""Why an address must not be connected to; None when it may."""

PRIVATE: Final[Sequence[ipaddress.IPv4Network]] = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",  # carrier NAT, and a cloud's metadata
            "127.0.0.0/8",  # but over the loopback interface
            "168.63.129.16/32",  # another cloud's metadata
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.88.99.0/24",  # relays into IPv6
            "192.168.0.0/16",
            "198.18.0.0/15",
            "224.0.0.0/3",  # multicast, reserved, broadcast
        ),
    )
)
"""Where a sandbox must not get to: whatever is not the public internet."""

# All of IPv6 that is given out to anybody; in it, what stands for addresses of IPv4, which a relay would unpack, and a
# range for examples that older tables do not know.
_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_NOBODYS: Final = tuple(map(ipaddress.IPv6Network, ("2001::/32", "2002::/16", "3fff::/20")))


def judge(address: Address) -> str | None:
    """For a real proxy: only what is public by its number, and not this host's own."""
    if not is_public(address):
        return "is not on the public internet"
    return "is this host's own" if _is_own(address) else None


def is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        # Both: `is_global` follows IANA's table with the version of Python, and has multicast for global.
        return address.is_global and not any(address in network for network in PRIVATE)
    return (
        address in _UNICAST
        and address.is_global
        and address.scope_id is None
        and not any(address in network for network in _NOBODYS)
    )


def _is_own(address: Address) -> bool:
    """The kernel takes an address of its own for the source of what is sent to it. Nothing is sent: it is UDP."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
            probe.connect((str(address), 9))
            return bool(ipaddress.ip_address(probe.getsockname()[0]) == address)
    except OSError:
        return False  # there is no way to it at all, as connecting will find
