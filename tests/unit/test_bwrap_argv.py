"""The arguments that make a sandbox."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kernelpool.backends.bwrap_argv import AGENT_COMMAND, RootEntry, View, bwrap_argv, root_entries

VIEW = View(
    root=Path("/state/runtimes/python/root"),
    entries=(RootEntry("bin", "usr/bin"), RootEntry("etc/ssl"), RootEntry("opt/venv"), RootEntry("usr")),
    program=Path("/state/runtimes/agent"),
    workspace=1000,
    tmp=2000,
    shm=3000,
    files={"/etc/passwd": Path("/state/etc/passwd")},
    masked=("/proc/kallsyms",),
    empty=Path("/state/etc/empty"),
)
EXPECTED = """
--unshare-user --unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try
--disable-userns --assert-userns-disabled --new-session --uid 65532 --gid 65532 --hostname sandbox --cap-drop ALL
--clearenv --setenv PATH /opt/venv/bin:/usr/local/bin:/usr/bin:/bin --setenv HOME /mnt/data --setenv LANG C.UTF-8
--symlink usr/bin /bin
--ro-bind /state/runtimes/python/root/etc/ssl /etc/ssl
--ro-bind /state/runtimes/python/root/opt/venv /opt/venv
--ro-bind /state/runtimes/python/root/usr /usr
--ro-bind /state/runtimes/agent /opt/kernelpool
--ro-bind /state/etc/passwd /etc/passwd
--proc /proc --ro-bind /state/etc/empty /proc/kallsyms
--dev /dev --size 3000 --perms 1777 --tmpfs /dev/shm --remount-ro /dev
--size 2000 --perms 1777 --tmpfs /tmp --size 1000 --perms 0700 --tmpfs /mnt/data
--chdir /mnt/data --remount-ro / --seccomp 6 --json-status-fd 7 --block-fd 8
"""


def test_the_whole_of_it() -> None:
    assert bwrap_argv(VIEW) == EXPECTED.split()


def test_nothing_of_the_host_is_bound_writable_or_shared() -> None:
    argv = bwrap_argv(VIEW)

    assert not {"--bind", "--dev-bind", "--share-net", "--cap-add", "--bind-try"} & set(argv)


def test_a_sandbox_does_not_die_with_its_gateway() -> None:
    assert "--die-with-parent" not in bwrap_argv(VIEW)


def test_sources_are_ours_and_never_the_hosts_own_usr() -> None:
    argv = bwrap_argv(VIEW)
    sources = [argv[at + 1] for at, word in enumerate(argv) if word == "--ro-bind"]

    assert sources
    assert all(source.startswith("/state/") for source in sources)


def test_odd_paths_stay_one_argument() -> None:
    argv = bwrap_argv(replace(VIEW, program=Path("/state/with space --bind / x")))

    assert argv[argv.index("/opt/kernelpool") - 1] == "/state/with space --bind / x"


def test_the_agent_is_started_isolated_and_with_the_documented_descriptors() -> None:
    assert " ".join(AGENT_COMMAND) == "/opt/venv/bin/python -I /opt/kernelpool --listen fd:3 --config fd:4"


def test_entries_of_a_root_leave_out_what_the_sandbox_brings_itself(tmp_path: Path) -> None:
    for name in ("proc", "dev", "tmp", "mnt/data", "usr/bin", "etc/ssl", "opt/venv", "opt/kernelpool", "run", "sys"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc" / "passwd").touch()
    (tmp_path / "etc" / "ld.so.cache").touch()
    (tmp_path / "lib").symlink_to("usr/lib")

    entries = root_entries(tmp_path, ["/etc/passwd"])

    assert entries == (
        RootEntry("etc/ld.so.cache"),
        RootEntry("etc/ssl"),
        RootEntry("lib", "usr/lib"),
        RootEntry("opt/venv"),
        RootEntry("usr"),
    )
