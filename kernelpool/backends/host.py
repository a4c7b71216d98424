"""The bubblewrap backend's settings, and what this machine offers it, found out once at the start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernelpool.backends import egress
from kernelpool.backends.bwrap_binary import Bwrap, find_bwrap
from kernelpool.backends.cgroups import CgroupRoot
from kernelpool.backends.records import boot_id
from kernelpool.backends.seccomp import native_architecture, policy, seccomp_program
from kernelpool.backends.state import StateFolder

# Files of /proc that tell about the host, its kernel and what else runs on it.
_MASKED: Final = ("/proc/kallsyms", "/proc/config.gz", "/proc/keys", "/proc/key-users", "/proc/timer_list")


@dataclass(frozen=True, slots=True)
class BubblewrapSettings:
    bwrap: Path | None = None
    """The bwrap to run, instead of the newer one of the system's and the bundled one."""
    first_uid: int = 70_000
    """As root: the first of the host's user ids that sandboxes get, one each. No account may have them."""
    last_uid: int = 79_999
    """The last one. Gateways on one machine may have the same range: an id with processes is passed over."""
    shm: int = 64 << 20
    """Size of /dev/shm, in bytes; it counts towards the sandbox's memory."""
    start_timeout: float = 30.0
    """Seconds for bwrap to set a sandbox up, without the agent's own start."""


@dataclass(frozen=True, slots=True)
class Host:
    """What this machine offers, found out once."""

    state: StateFolder
    bwrap: Bwrap
    cgroups: CgroupRoot
    seccomp: bytes
    masked: tuple[str, ...]
    network: egress.NetworkProgram | None
    boot: str

    def close(self) -> None:
        self.cgroups.close()
        self.state.close()

    @property
    def memory_is_limited(self) -> bool:
        return "memory" in self.cgroups.controllers


def open_host(path: Path, settings: BubblewrapSettings) -> Host:
    """Raises `StartFailed` when this machine or the directory cannot serve. Blocks."""
    state = StateFolder(path)
    try:
        bwrap = find_bwrap(state.path, settings.bwrap)
        cgroups = CgroupRoot.open(state.tag)
        rules = policy(memory_is_limited="memory" in cgroups.controllers)
        return Host(
            state=state,
            bwrap=bwrap,
            cgroups=cgroups,
            seccomp=seccomp_program(rules, native_architecture()),
            masked=tuple(path for path in _MASKED if Path(path).exists()),
            network=next(iter(egress.find_programs()), None),
            boot=boot_id(),
        )
    except BaseException:
        state.close()
        raise
