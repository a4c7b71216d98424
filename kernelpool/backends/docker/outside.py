"""The outside network for Docker sandboxes: a bridge of ours, and a holder that puts a packet filter before it.

A sandbox shares the network namespace of its holder, and is started only when the filter is in there; the holder has
given up all rights by then, and the sandbox never had any. The filter is in that namespace and not on the host, so it
holds for runc alone: gVisor has a network stack of its own, and of other runtimes nothing is known.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kernelpool.backends.base import SandboxSpec
from kernelpool.backends.docker.engine import Engine, EngineError, runtime_of
from kernelpool.backends.docker.labels import GATEWAY, network_name
from kernelpool.backends.egress import host_addresses
from kernelpool.backends.nftables import Network, egress_filter
from kernelpool.backends.tree.steps import in_thread
from kernelpool.egress.addresses import PRIVATE
from kernelpool.errors import InvalidRequest, StartFailed

READY_SOCKET: Final = "net.sock"
"""What a holder makes when the filter is in, where it relays nothing that would make another."""
_KNOWN: Final = frozenset({"runc", "io.containerd.runc.v2"})
_OPTIONS: Final = {
    "com.docker.network.bridge.enable_icc": "false",  # sandboxes do not reach each other
}
_CONFLICT: Final = 409
_MOST_RESOLVERS: Final = 3


@dataclass(frozen=True, slots=True)
class Outside:
    """What a holder needs to give the outside network."""

    network: str
    resolvers: tuple[str, ...]
    """What the engine asks for names, from within the sandbox; empty: it asks from the host."""
    filters: tuple[tuple[bytes, int], ...]

    @property
    def arguments(self) -> list[str]:
        """For holder.py."""
        return [f"--filter={answers}:{batch.hex()}" for batch, answers in self.filters]


def refuse_unproven(spec: SandboxSpec, info: Mapping[str, Any]) -> None:
    """Raises `InvalidRequest` for a runtime that the filter is not known to hold."""
    name = spec.oci_runtime or str(info.get("DefaultRuntime"))
    runtime = runtime_of(info, spec.oci_runtime)
    if name not in _KNOWN or Path(str(runtime.get("path", "runc"))).name != "runc":
        raise InvalidRequest(
            f"egress = true cannot be given with the oci_runtime {name}: no packet filter is known to hold there; "
            "give a list of domains"
        )


async def ensure(engine: Engine, tag: str) -> Outside:
    """Makes the network when it is not there. Raises `StartFailed`, `EngineError`."""
    name = network_name(tag)
    try:
        await engine.call(
            lambda client: client.create_network(
                name, driver="bridge", options=_OPTIONS, labels={GATEWAY: tag}, check_duplicate=True, enable_ipv6=False
            )
        )
    except EngineError as error:
        if error.status != _CONFLICT:
            raise
    facts = await engine.call(lambda client: client.inspect_network(name))
    if not is_ours(facts, tag):
        raise StartFailed(f"the engine's network {name} is not one that this gateway made: remove it")
    own = await in_thread(_own_addresses)
    gateways = [str(config.get("Gateway", "")) for config in facts["IPAM"]["Config"]]
    if not gateways or not all(Network(gateway) in own for gateway in gateways):
        raise StartFailed(
            "egress = true needs a gateway in the network namespace of the engine's host, where it can tell which "
            "addresses are that host's own; give a list of domains"
        )
    resolvers = await in_thread(_resolvers)
    filters = tuple(egress_filter(resolvers, [*PRIVATE, *own], reject=reject) for reject in (True, False))
    return Outside(name, resolvers, filters)


def is_ours(facts: Mapping[str, Any], tag: str) -> bool:
    """Whether a network is as this gateway makes it; anybody with the engine may have made one of that name."""
    return (
        (facts.get("Labels") or {}).get(GATEWAY) == tag
        and facts.get("Driver") == "bridge"
        and not facts.get("EnableIPv6")
        and _OPTIONS.items() <= (facts.get("Options") or {}).items()
    )


async def forget(engine: Engine, tag: str) -> None:
    """Removes the network, unless somebody uses it."""
    name = network_name(tag)
    try:
        await engine.call(lambda client: client.remove_network(name))
    except EngineError:
        return


def holding(body: dict[str, Any], outside: Outside) -> dict[str, Any]:
    """A holder that has the outside network, of one that has none."""
    host = {
        **body["HostConfig"],
        "NetworkMode": outside.network,
        "Dns": list(outside.resolvers),
        # For the filter; and to become nobody once that is in. Our system-call policy has no netlink for filters.
        "CapAdd": ["NET_ADMIN", "SETUID", "SETGID"],
        "SecurityOpt": ["no-new-privileges"],
    }
    entry = [*body["Entrypoint"], *outside.arguments]
    return {**body, "User": "0:0", "NetworkDisabled": False, "Entrypoint": entry, "HostConfig": host}


def sharing(body: dict[str, Any], holder: str) -> dict[str, Any]:
    """A sandbox in the network namespace of a holder."""
    rest = {name: value for name, value in body.items() if name not in ("Hostname", "Domainname")}
    return {
        **rest,
        "NetworkDisabled": False,
        "HostConfig": {**body["HostConfig"], "NetworkMode": f"container:{holder}"},
    }


def _own_addresses() -> list[Network]:
    return host_addresses(Path("/proc/net/fib_trie").read_text())


def _resolvers() -> tuple[str, ...]:
    """This host's, as far as they are not on loopback: those the engine asks on its own side."""
    found: list[str] = []
    for line in Path("/etc/resolv.conf").read_text().splitlines():
        words: Sequence[str] = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ipaddress.IPv4Address(words[1])
        except ValueError:
            continue
        if address.is_loopback:
            return ()
        found.append(str(address))
    return tuple(found[:_MOST_RESOLVERS])
