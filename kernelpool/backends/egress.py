"""The outside network for sandboxes that may have it: pasta or slirp4netns, behind a packet filter of ours.

They reach the public IPv4 internet and nothing else: not the host under any of its addresses, no private or
link-local network, no cloud's metadata. Names are looked up through the network program.
"""

from __future__ import annotations

import ipaddress
import marshal
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernelpool.backends import plug
from kernelpool.backends.launcher import marker
from kernelpool.backends.nftables import Network, egress_filter
from kernelpool.backends.processes import identify
from kernelpool.backends.records import ProcessId
from kernelpool.egress.addresses import PRIVATE
from kernelpool.errors import StartFailed

_TIMEOUT: Final = 25.0
_OWN, _GATEWAY, RESOLVER = "10.0.2.100", "10.0.2.2", "10.0.2.3"
INSTALL: Final = "sessions with egress need pasta or slirp4netns: install the package passt"

# `{network}` and `{user}` are paths of the namespaces.
_PROGRAMS: Final = {
    "pasta": (
        "--foreground --quiet --config-net --ipv4-only --no-map-gw --no-dhcp --no-ra --no-ndp --no-icmp "
        f"--tcp-ports none --udp-ports none --tcp-ns none --udp-ns none --address {_OWN} --netmask 24 "
        f"--gateway {_GATEWAY} --dns-forward {RESOLVER} --ns-ifname tap0 "
        "--userns {user} --netns {network}"
    ),
    "slirp4netns": (
        "--configure --mtu=65520 --disable-host-loopback --userns-path={user} --netns-type=path {network} tap0"
    ),
}


@dataclass(frozen=True, slots=True)
class NetworkProgram:
    """What to execute, with the placeholders above."""

    argv: Sequence[str]

    @property
    def name(self) -> str:
        return Path(self.argv[0]).name


def find_programs() -> list[NetworkProgram]:
    """Those on this machine, the best first: pasta is the faster and the maintained one."""
    paths = {name: shutil.which(name, path="/usr/local/bin:/usr/bin:/bin") for name in _PROGRAMS}
    return [NetworkProgram((path, *_PROGRAMS[name].split())) for name, path in paths.items() if path]


def host_addresses(fib_trie: str) -> list[Network]:
    """This machine's own addresses, from the text of /proc/net/fib_trie."""
    found = re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", fib_trie)
    return sorted({Network(address) for address in found if not ipaddress.IPv4Address(address).is_loopback})


def connect(program: NetworkProgram, init: ProcessId, uid: int | None, id: str, cgroups: Sequence[str]) -> ProcessId:
    """Gives the sandbox the outside network and returns that network's process. Raises `StartFailed`. Blocks."""
    forbidden = [*PRIVATE, *host_addresses(Path("/proc/net/fib_trie").read_text())]
    filters = [egress_filter([RESOLVER], forbidden, reject=reject) for reject in (True, False)]
    order = {
        "init": init.pid,
        "uid": uid,
        "cgroups": list(cgroups),
        "filters": filters,
        "argv": [part.replace("{network}", f"/proc/{init.pid}/ns/net") for part in program.argv],
    }
    try:
        answer = subprocess.run(
            [sys.executable, "-I", "-S", str(Path(plug.__file__)), marker(id)],
            input=marshal.dumps(order),
            capture_output=True,
            timeout=_TIMEOUT,
            close_fds=True,
            start_new_session=True,
            cwd="/",
            env={},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartFailed("the network of a sandbox did not come up") from error
    network = identify(int(answer.stdout)) if answer.returncode == 0 else None
    if network is None:
        failure = StartFailed("the network of a sandbox did not come up")
        failure.add_note(answer.stderr.decode(errors="replace").strip())
        raise failure
    return network
