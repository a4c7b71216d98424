"""Where control groups may go, read off the texts of four kinds of machines, and the files that hold the limits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kernelpool.backends.cgroups import Cgroup, CgroupRoot, Hierarchy, Place, _limit_files, _write, hierarchies
from kernelpool.models import Limits

LIMITS = Limits(memory=100 << 20, cpus=0.5, pids=60)

V2_SYSTEM = (
    "0::/system.slice/kernelpool.service\n",
    "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
)
V2_USER = (
    "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-r1.scope\n",
    "30 23 0:26 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
)
V2_CONTAINER = ("0::/\n", "600 590 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n")
V1 = (
    "12:pids:/user.slice\n11:memory:/user.slice/user-0.slice\n4:cpu,cpuacct:/user.slice\n1:name=systemd:/user.slice\n",
    "33 25 0:29 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
    "34 25 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:10 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 25 0:31 / /sys/fs/cgroup/pids rw,relatime shared:11 - cgroup cgroup rw,pids\n"
    "36 25 0:32 / /sys/fs/cgroup/freezer rw,relatime shared:12 - cgroup cgroup rw,freezer\n",
)
V1_CONTAINER = (
    "8:pids:/docker/abc\n4:memory:/docker/abc\n1:cpu:/docker/abc\n",
    "33 25 0:29 /docker/abc /sys/fs/cgroup/memory ro,relatime - cgroup cgroup rw,memory\n"
    "34 25 0:30 /docker/abc /sys/fs/cgroup/cpu ro,relatime - cgroup cgroup rw,cpu\n"
    "35 25 0:31 /docker/abc /sys/fs/cgroup/pids ro,relatime - cgroup cgroup rw,pids\n",
)
HYBRID = (
    "8:pids:/\n4:memory:/nested/here\n1:cpu:/\n0::/\n",
    "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
)
SPACE = ("0::/a b\n", "30 23 0:26 / /sys/fs/c\\040group rw - cgroup2 cgroup2 rw\n")
NONE = ("0::/\n", "22 27 0:21 / /proc rw,relatime - proc proc rw\n")

ROOT = Path("/sys/fs/cgroup")
ALL = ("memory", "pids", "cpu")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (V2_SYSTEM, [Hierarchy(2, ALL, ROOT, ROOT / "system.slice/kernelpool.service")]),
        (
            V2_USER,
            [Hierarchy(2, ALL, ROOT, ROOT / "user.slice/user-1000.slice/user@1000.service/app.slice/run-r1.scope")],
        ),
        (V2_CONTAINER, [Hierarchy(2, ALL, ROOT, ROOT)]),
        (
            V1,
            [
                Hierarchy(1, ("memory",), ROOT / "memory", ROOT / "memory/user.slice/user-0.slice"),
                Hierarchy(1, ("cpu",), ROOT / "cpu,cpuacct", ROOT / "cpu,cpuacct/user.slice"),
                Hierarchy(1, ("pids",), ROOT / "pids", ROOT / "pids/user.slice"),
            ],
        ),
        (
            V1_CONTAINER,
            [Hierarchy(1, (name,), ROOT / name, ROOT / name) for name in ("memory", "cpu", "pids")],
        ),
        (
            HYBRID,
            [
                Hierarchy(1, ("cpu",), ROOT / "cpu", ROOT / "cpu"),
                Hierarchy(1, ("memory",), ROOT / "memory", ROOT / "memory/nested/here"),
                Hierarchy(1, ("pids",), ROOT / "pids", ROOT / "pids"),
                Hierarchy(2, ALL, ROOT / "unified", ROOT / "unified"),
            ],
        ),
        (SPACE, [Hierarchy(2, ALL, Path("/sys/fs/c group"), Path("/sys/fs/c group/a b"))]),
        (NONE, []),
    ],
)
def test_hierarchies(texts: tuple[str, str], expected: list[Hierarchy]) -> None:
    assert hierarchies(*texts) == expected


def _fake_v2(base: Path, *, procs: str = "", controllers: str = "cpuset cpu io memory pids") -> None:
    """What the kernel has in a group, as plain files: enough to see what is written where."""
    base.mkdir(parents=True, exist_ok=True)
    (base / "cgroup.controllers").write_text(controllers)
    (base / "cgroup.subtree_control").write_text("")
    (base / "cgroup.procs").write_text(procs)


def test_a_delegated_group_of_version_2_gets_a_parent_for_sandboxes(tmp_path: Path) -> None:
    here = tmp_path / "service"
    _fake_v2(here)
    _fake_v2(here / "kernelpool")

    root = CgroupRoot.within([Hierarchy(2, ALL, tmp_path, here)], "tag")

    assert [place.path for place in root.places] == [here / "kernelpool"]
    assert root.controllers == {"memory", "pids", "cpu"}
    assert (here / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    assert (here / "kernelpool" / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"


def test_controllers_that_are_not_offered_are_not_promised(tmp_path: Path) -> None:
    _fake_v2(tmp_path, controllers="memory")
    _fake_v2(tmp_path / "kernelpool", controllers="memory")

    assert CgroupRoot.within([Hierarchy(2, ALL, tmp_path, tmp_path)], "tag").controllers == {"memory"}


def test_a_tree_without_our_controllers_or_rights_is_no_place(tmp_path: Path) -> None:
    _fake_v2(tmp_path / "unified", controllers="hugetlb")
    found = [
        Hierarchy(2, ALL, tmp_path / "unified", tmp_path / "unified"),
        Hierarchy(1, ("memory",), tmp_path / "missing", tmp_path / "missing"),
    ]

    root = CgroupRoot.within(found, "tag")

    assert root.places == ()
    assert root.create("abc", LIMITS) == Cgroup()


def test_limits_of_version_2(tmp_path: Path) -> None:
    written = _written(tmp_path, 2, ("memory.max", "memory.swap.max", "pids.max", "cpu.max"))

    assert written == {
        "memory.max": str(100 << 20),
        "memory.swap.max": "0",
        "pids.max": "64",
        "cpu.max": "50000 100000",
    }


def test_limits_of_version_1(tmp_path: Path) -> None:
    names = (
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "pids.max",
        "cpu.cfs_period_us",
        "cpu.cfs_quota_us",
    )

    assert _written(tmp_path, 1, names) == {
        "memory.limit_in_bytes": str(100 << 20),
        "memory.memsw.limit_in_bytes": str(100 << 20),
        "pids.max": "64",
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "50000",
    }


def test_no_account_of_swap_is_no_failure(tmp_path: Path) -> None:
    written = _written(tmp_path, 2, ("memory.max", "pids.max", "cpu.max"))

    assert "memory.max" in written


def test_a_limit_that_cannot_be_set_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _written(tmp_path, 2, ("memory.swap.max", "pids.max", "cpu.max"))


def _written(tmp_path: Path, version: int, names: tuple[str, ...]) -> dict[str, str]:
    """What `create` writes into a group that has the files `names`, by making them when it makes the directory."""
    place = Place(2 if version == 2 else 1, ALL, tmp_path)
    for name in names:
        (tmp_path / name).touch()
    for name, value in _limit_files(place, LIMITS):
        _write(tmp_path / name, value)
    return {name: (tmp_path / name).read_text() for name in names}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("memory.events", "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
    ],
)
def test_kills_for_want_of_memory_are_counted(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)

    assert Cgroup((tmp_path,)).oom_kills() == 2


def test_a_group_that_is_gone_is_empty_and_removed() -> None:
    group = Cgroup((Path("/nonexistent/group"),))

    assert (group.pids(), group.oom_kills(), group.remove()) == ([], 0, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="making control groups needs root, or systemd's delegation")
def test_a_real_group_is_made_found_and_removed() -> None:
    root = CgroupRoot.open(f"test{os.getpid()}")
    if not root.places:
        pytest.skip("no control groups can be made on this machine")

    group = root.create("0123456789ab", LIMITS)
    made = root.ids()
    removed = group.remove()
    root.close()

    assert made == {"0123456789ab"}
    assert removed
    assert root.ids() == set()
