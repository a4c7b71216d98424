"""Memory, process and CPU limits by control groups: version 2, version 1 and the hybrid of both.

Where we are and what is mounted where is read off two texts by pure functions; `CgroupRoot` then tries the places
where a group of ours may go, and the rest is reading and writing small files. All of it blocks: call it in a thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from kernelpool.models import Limits

CONTROLLERS: Final = ("memory", "pids", "cpu")
PARENT: Final = "kernelpool"
_CPU_PERIOD: Final = 100_000
# bwrap's two processes and their moments of setting up are not the session's.
_OWN_PROCESSES: Final = 4


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A tree of groups: its version, the controllers that it could offer us, its top, and where this process is."""

    version: Literal[1, 2]
    controllers: tuple[str, ...]
    top: Path
    here: Path


def hierarchies(cgroup: str, mountinfo: str) -> list[Hierarchy]:
    """From the texts of /proc/self/cgroup and /proc/self/mountinfo. Trees without a controller of ours are left out;
    of version 2 only the files in it can tell the controllers."""
    ours = dict(_memberships(cgroup))
    found: list[Hierarchy] = []
    for kind, root, mountpoint, options in _cgroup_mounts(mountinfo):
        if kind == "cgroup2":
            version: Literal[1, 2] = 2
            controllers: tuple[str, ...] = CONTROLLERS
            path = ours.get("")
        else:
            version = 1
            controllers = tuple(name for name in CONTROLLERS if name in options)
            path = next((ours[name] for name in controllers if name in ours), None)
        if path is None or not controllers:
            continue
        top = Path(mountpoint)
        hierarchy = Hierarchy(version, controllers, top, top / _below(path, root))
        if all(other.controllers != controllers or other.version != version for other in found):
            found.append(hierarchy)
    return found


def _memberships(cgroup: str) -> Iterable[tuple[str, str]]:
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            yield name, path


def _cgroup_mounts(mountinfo: str) -> Iterable[tuple[str, str, str, frozenset[str]]]:
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.partition(" ")
        if kind in ("cgroup", "cgroup2"):
            fields = before.split()
            yield kind, _unescape(fields[3]), _unescape(fields[4]), frozenset(options.split()[-1].split(","))


def _unescape(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _below(path: str, root: str) -> str:
    """`path` as seen from a mount of `root`: containers mount their own part of the tree as if it were the whole."""
    if root != "/" and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    # Outside of our cgroup namespace: `/../..`; the mount's own root is the best that we can see.
    return "" if path.startswith("/..") else path.lstrip("/")


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One sandbox's groups: one directory in version 2, one per controller in version 1. Empty when there are none."""

    paths: tuple[Path, ...] = ()

    @property
    def join_files(self) -> list[str]:
        """A process that writes 0 into each of these is in."""
        return [str(path / "cgroup.procs") for path in self.paths]

    def pids(self) -> list[int]:
        """Of the processes in it; one is enough to ask, as all of them join all of it."""
        found: set[int] = set()
        for path in self.paths:
            with contextlib.suppress(OSError):
                found.update(int(line) for line in (path / "cgroup.procs").read_text().split())
        return sorted(found - {0})

    def kill(self) -> None:
        for path in self.paths:
            with contextlib.suppress(OSError):
                if (path / "cgroup.kill").exists():
                    (path / "cgroup.kill").write_text("1")
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def oom_kills(self) -> int:
        """How many processes in it the kernel killed for want of memory."""
        for path in self.paths:
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError):
                    match = re.search(r"^oom_kill (\d+)$", (path / name).read_text(), re.MULTILINE)
                    if match:
                        return int(match[1])
        return 0

    def remove(self) -> bool:
        """Whether it is gone; it stays while a process, even a dying one, is in it."""
        gone = True
        for path in self.paths:
            try:
                path.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                gone = False
        return gone


@dataclass(frozen=True, slots=True)
class Place:
    """A directory in one hierarchy in which we make groups, and what they can limit."""

    version: Literal[1, 2]
    controllers: tuple[str, ...]
    path: Path


@dataclass(frozen=True, slots=True)
class CgroupRoot:
    """Where the groups of one state directory are made; `tag` keeps them apart from another one's."""

    places: tuple[Place, ...]
    tag: str

    @classmethod
    def open(cls, tag: str) -> Self:
        """Finds, and makes, the directories of this machine that will hold our groups."""
        found = hierarchies(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())
        return cls.within(found, tag)

    @classmethod
    def within(cls, found: Sequence[Hierarchy], tag: str) -> Self:
        places: list[Place] = []
        for hierarchy in sorted(found, key=lambda hierarchy: hierarchy.version):
            have = {name for place in places for name in place.controllers}
            place = _place(hierarchy)
            if place and not have.issuperset(place.controllers):
                places.append(place)
        return cls(tuple(places), tag)

    @property
    def controllers(self) -> frozenset[str]:
        return frozenset(name for place in self.places for name in place.controllers)

    def create(self, id: str, limits: Limits) -> Cgroup:
        """Makes the groups of one sandbox with its limits. Raises `OSError`, leaving nothing behind."""
        group = self.named(id)
        try:
            for place, path in zip(self.places, group.paths, strict=True):
                # Its parent is missing when another gateway, the last to leave, has tidied up since.
                path.mkdir(parents=place.version == 1)
                for name, value in _limit_files(place, limits):
                    _write(path / name, value)
        except OSError:
            group.remove()
            raise
        return group

    def close(self) -> None:
        """Takes our empty parents away. Those of version 2 stay: they pass the controllers on."""
        for place in self.places:
            if place.version == 1:
                with contextlib.suppress(OSError):
                    place.path.rmdir()

    def named(self, id: str) -> Cgroup:
        return Cgroup(tuple(place.path / f"{self.tag}-{id}" for place in self.places))

    def ids(self) -> set[str]:
        """Of all sandboxes that have a group here."""
        prefix = f"{self.tag}-"
        return {path.name.removeprefix(prefix) for place in self.places for path in place.path.glob(f"{prefix}*")}


def _place(hierarchy: Hierarchy) -> Place | None:
    """Below ourselves where possible, because our own limits then hold for the sandboxes too; else, as root, at the
    top: there is no delegation to be had when the gateway was started from a login shell."""
    for base in dict.fromkeys((hierarchy.here, hierarchy.top)):
        try:
            controllers = hierarchy.controllers
            if hierarchy.version == 2:
                controllers = _delegate(base)
            if not controllers:
                continue
            path = base / PARENT
            path.mkdir(exist_ok=True)
            if hierarchy.version == 2:
                _enable(path, controllers)
            elif not os.access(path / "cgroup.procs", os.W_OK):
                continue
        except OSError:
            continue
        return Place(hierarchy.version, controllers, path)
    return None


def _delegate(base: Path) -> tuple[str, ...]:
    """The controllers that groups below `base` can have. In version 2 a group that has processes cannot pass any on
    (but for the top), so when only this process is there, it moves into a leaf of its own."""
    available = (base / "cgroup.controllers").read_text().split()
    wanted = tuple(name for name in CONTROLLERS if name in available)
    if not wanted:
        return ()
    try:
        _enable(base, wanted)
    except OSError:
        if (base / "cgroup.procs").read_text().split() != [str(os.getpid())]:
            raise
        leaf = base / "gateway"
        leaf.mkdir(exist_ok=True)
        _write(leaf / "cgroup.procs", "0")
        _enable(base, wanted)
    return wanted


def _enable(path: Path, controllers: Iterable[str]) -> None:
    enabled = (path / "cgroup.subtree_control").read_text().split()
    missing = [name for name in controllers if name not in enabled]
    if missing:
        _write(path / "cgroup.subtree_control", " ".join(f"+{name}" for name in missing))


def _limit_files(place: Place, limits: Limits) -> list[tuple[str, str]]:
    pids = str(limits.pids + _OWN_PROCESSES)
    quota = str(max(1000, int(limits.cpus * _CPU_PERIOD)))
    if place.version == 2:
        files = {
            "memory": [("memory.max", str(limits.memory)), ("memory.swap.max", "0")],
            "pids": [("pids.max", pids)],
            "cpu": [("cpu.max", f"{quota} {_CPU_PERIOD}")],
        }
    else:
        # In this order: memory and swap together may never be less than memory alone.
        memory = str(limits.memory)
        files = {
            "memory": [("memory.limit_in_bytes", memory), ("memory.memsw.limit_in_bytes", memory)],
            "pids": [("pids.max", pids)],
            "cpu": [("cpu.cfs_period_us", str(_CPU_PERIOD)), ("cpu.cfs_quota_us", quota)],
        }
    return [file for name in place.controllers for file in files[name]]


_OPTIONAL: Final = frozenset({"memory.swap.max", "memory.memsw.limit_in_bytes"})


def _write(path: Path, value: str) -> None:
    """Without creating it: a file that the kernel does not offer is a limit that does not hold."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        if path.name in _OPTIONAL:  # absent where the kernel does not account for swap
            return
        raise
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
