"""The packet filter of a sandbox with egress, as the one netlink batch that installs it.

A filter and not routes: a program may bind a socket to an interface, and then no route is asked. It is installed in
the sandbox's own network stack before that gets an interface, and its code has no rights to change it.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable
from typing import Final

Network = ipaddress.IPv4Network

_SUBSYSTEM: Final = 10
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 3, 6
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_REQUEST, _ACK, _CREATE, _APPEND = 0x001, 0x004, 0x400, 0x800
_IPV4, _IPV6 = 2, 10
_LOCAL_OUT: Final = 3
_DROP, _ACCEPT = 0, 1
_NESTED: Final = 0x8000
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_META_OIF: Final = 5
_TABLE, _CHAIN = b"kernelpool\0", b"output\0"


def egress_filter(resolvers: Iterable[str], forbidden: Iterable[Network], *, reject: bool) -> tuple[bytes, int]:
    """The batch, and the number of answers that the kernel gives to it.

    IPv4: itself, DNS at the `resolvers`, and all that is not `forbidden`. IPv6: itself. What is not allowed fails at
    once with `reject`, which not every kernel has, and is dropped without.
    """
    refuse = _rejection() if reject else _verdict(_DROP)
    rules = [
        (_IPV4, _over_loopback() + _verdict(_ACCEPT)),
        *((_IPV4, _to(Network(resolver)) + _to_port(53) + _verdict(_ACCEPT)) for resolver in resolvers),
        *((_IPV4, _to(network) + refuse) for network in forbidden),
        (_IPV6, _over_loopback() + _verdict(_ACCEPT)),
        (_IPV6, _verdict(_DROP)),
    ]
    messages = [_table(family) for family in (_IPV4, _IPV6)]
    messages += [_chain(family) for family in (_IPV4, _IPV6)]
    messages += [_rule(family, expressions) for family, expressions in rules]
    batch = [
        _message(_BATCH_BEGIN, 0, 0, b"", _SUBSYSTEM),
        *messages,
        _message(_BATCH_END, 0, 0, b"", _SUBSYSTEM),
    ]
    return b"".join(batch), len(messages)


def _message(kind: int, flags: int, family: int, attributes: bytes, resource: int = 0) -> bytes:
    body = struct.pack(">BBH", family, 0, resource) + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | flags, 0, 0) + body


def _new(kind: int, flags: int, family: int, attributes: bytes) -> bytes:
    return _message(_SUBSYSTEM << 8 | kind, _ACK | _CREATE | flags, family, attributes)


def _attribute(kind: int, value: bytes) -> bytes:
    padding = b"\0" * (-len(value) % 4)
    return struct.pack("=HH", 4 + len(value), kind) + value + padding


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack(">I", value))


def _nest(kind: int, value: bytes) -> bytes:
    return _attribute(kind | _NESTED, value)


def _table(family: int) -> bytes:
    return _new(_NEW_TABLE, 0, family, _attribute(1, _TABLE))


def _chain(family: int) -> bytes:
    hook = _nest(4, _number(1, _LOCAL_OUT) + _number(2, 0))
    names = _attribute(1, _TABLE) + _attribute(3, _CHAIN)
    return _new(_NEW_CHAIN, 0, family, names + hook + _number(5, _ACCEPT) + _attribute(7, b"filter\0"))


def _rule(family: int, expressions: bytes) -> bytes:
    names = _attribute(1, _TABLE) + _attribute(2, _CHAIN)
    return _new(_NEW_RULE, _APPEND, family, names + _nest(4, expressions))


def _expression(name: bytes, data: bytes) -> bytes:
    return _nest(1, _attribute(1, name + b"\0") + _nest(2, data))


def _load(header: int, offset: int, length: int) -> bytes:
    return _expression(b"payload", _number(1, 1) + _number(2, header) + _number(3, offset) + _number(4, length))


def _mask(mask: bytes) -> bytes:
    registers = _number(1, 1) + _number(2, 1) + _number(3, len(mask))
    return _expression(
        b"bitwise", registers + _nest(4, _attribute(1, mask)) + _nest(5, _attribute(1, bytes(len(mask))))
    )


def _equal(value: bytes) -> bytes:
    return _expression(b"cmp", _number(1, 1) + _number(2, 0) + _nest(3, _attribute(1, value)))


def _to(network: Network) -> bytes:
    return _load(_NETWORK_HEADER, 16, 4) + _mask(network.netmask.packed) + _equal(network.network_address.packed)


def _to_port(port: int) -> bytes:
    """TCP and UDP have it in the same place, and a sandbox can make no other packets."""
    return _load(_TRANSPORT_HEADER, 2, 2) + _equal(struct.pack(">H", port))


def _over_loopback() -> bytes:
    """By its number, which is 1 in every network stack, and in the machine's own byte order."""
    return _expression(b"meta", _number(1, 1) + _number(2, _META_OIF)) + _equal(struct.pack("=I", 1))


def _rejection() -> bytes:
    """ICMP: administratively prohibited."""
    return _expression(b"reject", _number(1, 0) + _attribute(2, bytes([13])))


def _verdict(code: int) -> bytes:
    return _expression(b"immediate", _number(1, 0) + _nest(2, _nest(2, _number(1, code))))
