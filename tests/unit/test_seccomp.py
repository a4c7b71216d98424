"""The system call filter: each verdict, on both architectures, and that ordinary programs do not notice it."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kernelpool.backends.oci_seccomp import oci_profile
from kernelpool.backends.seccomp import POLICY, native_architecture, policy, seccomp_program
from kernelpool.backends.syscall_table import Architecture, syscall_numbers
from tests.unit.cbpf import verdict

ARCHITECTURES: dict[Architecture, int] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NEWUSER, NEWNS, SIGCHLD, THREAD = 0x10000000, 0x00020000, 17, 0x003D0F00
TIOCSTI, TIOCLINUX, TIOCGWINSZ = 0x5412, 0x541C, 0x5413

CASES: list[tuple[str, tuple[int, ...], str | int]] = [
    ("read", (), "pass"),
    ("openat", (), "pass"),
    ("execve", (), "pass"),
    ("futex", (), "pass"),
    ("memfd_create", (), "pass"),
    ("pidfd_open", (), "pass"),
    ("clone", (SIGCHLD,), "pass"),
    ("clone", (THREAD,), "pass"),
    ("clone", (NEWUSER | SIGCHLD,), errno.EPERM),
    ("clone", (NEWNS | THREAD,), errno.EPERM),
    ("clone", (1 << 32 | NEWUSER,), errno.EPERM),
    ("clone3", (), errno.ENOSYS),
    ("unshare", (0,), errno.EPERM),
    ("setns", (), errno.EPERM),
    ("socket", (1, 1, 0), "pass"),
    ("socket", (1, 5 | 0o2000000, 0), "pass"),
    ("socket", (2, 1, 0), "pass"),
    ("socket", (2, 1 | 0o2000000 | 0o4000, 6), "pass"),
    ("socket", (10, 2, 17), "pass"),
    ("socket", (16, 3, 0), "pass"),
    ("socket", (16, 3, 12), errno.EAFNOSUPPORT),
    ("socket", (16, 3, 6), errno.EAFNOSUPPORT),
    ("socket", (2, 3, 1), errno.EAFNOSUPPORT),
    ("socket", (2, 1, 262), errno.EAFNOSUPPORT),
    ("socket", (2, 2, 1), errno.EAFNOSUPPORT),
    ("socket", (17, 3, 0), errno.EAFNOSUPPORT),
    ("socket", (38, 5, 0), errno.EAFNOSUPPORT),
    ("socket", (40, 1, 0), errno.EAFNOSUPPORT),
    ("socket", (1 << 32 | 38, 5, 0), errno.EAFNOSUPPORT),
    ("socketpair", (1, 1, 0), "pass"),
    ("socketpair", (2, 1, 0), errno.EAFNOSUPPORT),
    ("setsockopt", (3, 1, 2), "pass"),
    ("setsockopt", (3, 6, 1), "pass"),
    ("setsockopt", (3, 6, 31), errno.EPERM),
    ("setsockopt", (3, 17, 31), "pass"),
    ("setsockopt", (3, 17, 100), errno.EPERM),
    ("ioctl", (0, TIOCGWINSZ), "pass"),
    ("ioctl", (0, TIOCSTI), errno.EPERM),
    ("ioctl", (0, 1 << 32 | TIOCSTI), errno.EPERM),
    ("ioctl", (0, TIOCLINUX), errno.EPERM),
    ("ioctl", (0, 0x5423), errno.EPERM),
    ("prctl", (15,), "pass"),
    ("prctl", (38,), "pass"),
    ("prctl", (22,), errno.EPERM),
    ("prctl", (35,), errno.EPERM),
    ("prctl", (0x59616D61,), errno.EPERM),
    ("personality", (0xFFFFFFFF,), "pass"),
    ("personality", (0,), "pass"),
    ("personality", (0x0040000,), errno.EPERM),
    ("ptrace", (), errno.EPERM),
    ("process_vm_readv", (), errno.EPERM),
    ("process_vm_writev", (), errno.EPERM),
    ("pidfd_getfd", (), errno.EPERM),
    ("kcmp", (), errno.EPERM),
    ("bpf", (), errno.EPERM),
    ("perf_event_open", (), errno.EPERM),
    ("userfaultfd", (), errno.EPERM),
    ("memfd_secret", (), errno.EPERM),
    ("add_key", (), errno.EPERM),
    ("keyctl", (), errno.EPERM),
    ("request_key", (), errno.EPERM),
    ("mount", (), errno.EPERM),
    ("move_mount", (), errno.EPERM),
    ("open_tree_attr", (), errno.EPERM),
    ("seccomp", (), errno.EPERM),
    ("io_uring_setup", (), errno.ENOSYS),
    ("io_uring_enter", (), errno.ENOSYS),
    ("io_uring_register", (), errno.ENOSYS),
    ("mq_open", (), errno.ENOSYS),
    ("statmount", (), errno.ENOSYS),
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("name", "args", "expected"), CASES)
def test_verdicts(architecture: Architecture, name: str, args: tuple[int, ...], expected: str | int) -> None:
    program = seccomp_program(POLICY, architecture)
    number = syscall_numbers(architecture)[name]

    assert verdict(program, ARCHITECTURES[architecture], number, args) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_call_gets_the_verdict_of_its_list(architecture: Architecture) -> None:
    program = seccomp_program(POLICY, architecture)

    for name, number in syscall_numbers(architecture).items():
        if name in POLICY.checked:
            continue
        expected = "pass" if name in POLICY.allowed else errno.EPERM if name in POLICY.denied else errno.ENOSYS
        assert verdict(program, ARCHITECTURES[architecture], number) == expected, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("number", [470, 1000, 0x3FFFFFFF])
def test_a_call_of_the_future_does_not_exist(architecture: Architecture, number: int) -> None:
    program = seccomp_program(POLICY, architecture)

    assert verdict(program, ARCHITECTURES[architecture], number) == errno.ENOSYS


def test_a_call_of_another_architecture_kills() -> None:
    for architecture, own in ARCHITECTURES.items():
        program = seccomp_program(POLICY, architecture)
        for other in (0x40000003, 0x40000028, 0xC0000015, *ARCHITECTURES.values()):
            if other != own:
                assert verdict(program, other, 0) == "kill"


@pytest.mark.parametrize("number", [0x40000000, 0x40000001, 0x40000200, -1])
def test_x32_calls_do_not_exist(number: int) -> None:
    assert verdict(seccomp_program(POLICY, "x86_64"), ARCHITECTURES["x86_64"], number) == errno.ENOSYS


def test_memory_that_nothing_counts_is_closed_without_a_memory_group() -> None:
    program = seccomp_program(policy(memory_is_limited=False), "x86_64")

    for name in ("memfd_create", "shmget"):
        assert verdict(program, ARCHITECTURES["x86_64"], syscall_numbers("x86_64")[name]) == errno.EPERM
    assert verdict(program, ARCHITECTURES["x86_64"], syscall_numbers("x86_64")["mmap"]) == "pass"


def test_every_name_in_the_policy_is_a_call_and_on_one_list() -> None:
    known = syscall_numbers("x86_64").keys() | syscall_numbers("aarch64").keys()

    assert POLICY.allowed | POLICY.denied | POLICY.checked.keys() <= known
    assert not POLICY.allowed & POLICY.denied
    assert not (POLICY.allowed | POLICY.denied) & POLICY.checked.keys()


def test_numbers_are_those_of_the_kernel_headers() -> None:
    headers = list(Path("/usr/include").glob("*/asm/unistd_64.h"))
    if not headers:
        pytest.skip("no kernel headers on this machine")
    found = dict(re.findall(r"^#define __NR_(\w+)\s+(\d+)$", headers[0].read_text(), re.MULTILINE))

    ours = syscall_numbers("x86_64")

    assert len(found) > 300
    assert {name: ours.get(name) for name in found} == {name: int(number) for name, number in found.items()}


def test_generic_numbers_are_those_of_the_kernel_headers() -> None:
    header = Path("/usr/include/asm-generic/unistd.h")
    if not header.exists():
        pytest.skip("no kernel headers on this machine")
    found = dict(re.findall(r"^#define __NR_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE))

    ours = syscall_numbers("aarch64")
    named = {name: int(number) for name, number in found.items() if name in ours}

    assert len(named) > 250
    assert {name: ours[name] for name in named} == named


# --- the OCI form -------------------------------------------------------------------------------------------------


def _oci_verdict(name: str, args: tuple[int, ...]) -> str | int:
    """What libseccomp makes of the profile: the first entry whose conditions all hold, else the default."""
    profile = oci_profile()
    for entry in profile["syscalls"]:
        if name in entry["names"] and all(
            (args + (0,) * 6)[test["index"]] & test["value"] == test["valueTwo"] for test in entry.get("args", [])
        ):
            return "pass" if entry["action"] == "SCMP_ACT_ALLOW" else int(entry["errnoRet"])
    return int(profile["defaultErrnoRet"])


@pytest.mark.parametrize(("name", "args", "expected"), CASES)
def test_the_oci_profile_decides_the_same(name: str, args: tuple[int, ...], expected: str | int) -> None:
    assert (_oci_verdict(name, args) == "pass") == (expected == "pass")


# --- real programs ------------------------------------------------------------------------------------------------

_UNDER_THE_FILTER = """
import ctypes, sys
from kernelpool.backends.seccomp import POLICY, native_architecture, seccomp_program

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

if __name__ == "__main__":
    code = seccomp_program(POLICY, native_architecture())
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(Program(len(code) // 8, code)), 0, 0) == 0
"""

PROGRAMS = {
    "numpy": "import numpy as np; print(np.linalg.inv(np.eye(200)).sum())",
    "pandas": "import pandas as pd; print(pd.DataFrame({'a': [1, 2]}).groupby('a').size().sum())",
    "matplotlib": (
        "import io, matplotlib; matplotlib.use('Agg'); import matplotlib.pyplot as plt\n"
        "plt.plot([1, 2]); plt.savefig(io.BytesIO())"
    ),
    "multiprocessing": (
        "import multiprocessing as m\n"
        "for method in ('fork', 'spawn', 'forkserver'):\n"
        "    with m.get_context(method).Pool(2) as pool: assert pool.map(abs, [-1, -2]) == [1, 2]\n"
        "from multiprocessing.shared_memory import SharedMemory\n"
        "s = SharedMemory(create=True, size=100); s.close(); s.unlink()"
    ),
    "asyncio": (
        "import asyncio\n"
        "async def main():\n"
        "    p = await asyncio.create_subprocess_exec('echo', 'x', stdout=-1); assert await p.communicate()\n"
        "asyncio.run(main())"
    ),
    "sqlite": "import sqlite3; print(sqlite3.connect(':memory:').execute('select 1').fetchone())",
    "threads": "import threading\nt = [threading.Thread(target=print) for _ in range(9)]\n[x.start() for x in t]",
    "zmq over ipc": (
        "import zmq, tempfile\n"
        "with tempfile.TemporaryDirectory() as d, zmq.Context() as c, c.socket(zmq.REP) as a, c.socket(zmq.REQ) as b:\n"
        "    a.bind(f'ipc://{d}/s'); b.connect(f'ipc://{d}/s'); b.send(b'x'); assert a.recv() == b'x'\n"
        "    a.send(b''); b.recv()"
    ),
    "interfaces": "import socket; print(socket.if_nameindex())",
    "pty": "import pty, os; m, s = pty.openpty(); os.write(s, b'x'); print(os.read(m, 1))",
    "shell": "import subprocess; subprocess.run('ls /proc/self | sort | head -3; true', shell=True, check=True)",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_ordinary_programs_do_not_notice(name: str, tmp_path: Path) -> None:
    try:
        native_architecture()
    except RuntimeError as error:
        pytest.skip(str(error))
    script = tmp_path / "script.py"
    body = "\n".join(f"    {line}" for line in PROGRAMS[name].splitlines())
    script.write_text(_UNDER_THE_FILTER + body + "\n")

    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=90)

    assert done.returncode == 0, done.stderr
