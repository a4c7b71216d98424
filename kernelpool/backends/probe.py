"""What an attacker sees in a sandbox. Runs there in the agent's place, tells callers as a line of JSON, and ends.

Standard library only, with `syscall_table` copied beside it. It asks for forbidden things, so it refuses to run where
it could get them.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import resource
import socket
import sys
from pathlib import Path
from typing import Any, Final

try:
    from syscall_table import syscall_numbers  # type: ignore[import-not-found]  # in the sandbox, beside this file
except ImportError:
    from kernelpool.backends.syscall_table import syscall_numbers

_PATIENCE: Final = 20
_CAP_SYS_ADMIN: Final = 1 << 21
_CLONE_NEWUSER: Final = 0x10000000

# name → arguments with which the call would do no harm even if it were allowed
CALLS: Final[dict[str, tuple[int, ...]]] = {
    "unshare": (_CLONE_NEWUSER,),
    "setns": (-1, 0),
    "mount": (0, 0, 0, 0, 0),
    "umount2": (0, 0),
    "pivot_root": (0, 0),
    "chroot": (0,),
    "fsopen": (0, 0),
    "open_tree": (-1, 0, 0),
    "move_mount": (-1, 0, -1, 0, 0),
    "mount_setattr": (-1, 0, 0, 0, 0),
    "ptrace": (0xFFFF, 0, 0, 0),
    "process_vm_readv": (0, 0, 0, 0, 0, 0),
    "process_vm_writev": (0, 0, 0, 0, 0, 0),
    "kcmp": (0, 0, 0, 0, 0),
    "pidfd_getfd": (-1, 0, 0),
    "io_uring_setup": (0, 0),
    "userfaultfd": (1,),
    "add_key": (0, 0, 0, 0, 0),
    "keyctl": (0, 0, 0, 0, 0),
    "request_key": (0, 0, 0, 0),
    "bpf": (0, 0, 0),
    "perf_event_open": (0, 0, 0, 0, 0),
    "memfd_secret": (0xFFFF,),
    "seccomp": (0xFFFF, 0, 0),
    "open_by_handle_at": (-1, 0, 0),
    "fanotify_init": (0, 0),
    "kexec_load": (0, 0, 0, 0),
    "init_module": (0, 0, 0),
    "delete_module": (0, 0),
    "syslog": (10, 0, 0),
    "swapon": (0, 0),
    "acct": (0,),
    "vmsplice": (-1, 0, 0, 0),
    "clone3": (0, 0),
}

# name → family, type, protocol
SOCKETS: Final = {
    "packet": (17, socket.SOCK_RAW, 0),
    "raw": (socket.AF_INET, socket.SOCK_RAW, 1),
    "icmp": (socket.AF_INET, socket.SOCK_DGRAM, 1),
    "sctp": (socket.AF_INET, socket.SOCK_STREAM, 132),
    "alg": (38, socket.SOCK_SEQPACKET, 0),
    "vsock": (40, socket.SOCK_STREAM, 0),
    "key": (15, socket.SOCK_RAW, 2),
    "rxrpc": (33, socket.SOCK_DGRAM, 2),
    "bluetooth": (31, socket.SOCK_RAW, 1),
    "netlink netfilter": (16, socket.SOCK_RAW, 12),
    "netlink xfrm": (16, socket.SOCK_RAW, 6),
    "netlink uevent": (16, socket.SOCK_RAW, 15),
}

_KERNEL_FILES: Final = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/sysrq-trigger",
    "/proc/1/exe",
    "/sys/kernel/uevent_helper",
    "/sys/fs/cgroup/release_agent",
    "/sys/fs/cgroup/cgroup.procs",
)
_HOST_FILES: Final = (
    "/etc/shadow",
    "/root",
    "/home",
    "/boot",
    "/sys",
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/systemd/private",
    "/proc/kcore",
    "/dev/mem",
    "/dev/kvm",
    "/dev/fuse",
    "/dev/net/tun",
)
ADDRESSES: Final = ("169.254.169.254", "168.63.129.16", "10.0.0.1", "192.168.0.1", "192.0.2.1", "::ffff:10.0.0.1")


def main() -> None:
    _refuse_where_it_could_do_harm()
    with _listener() as listener:
        listener.settimeout(_PATIENCE)
        while True:  # until nobody has asked for that long
            try:
                caller, _ = listener.accept()
            except TimeoutError:
                return
            with caller:
                _tell_apart(caller)


def _tell_apart(caller: socket.socket) -> None:
    """In a process of its own: a look may change who looks, where a call is not refused."""
    if (pid := os.fork()) == 0:
        try:
            caller.sendall(json.dumps(look()).encode() + b"\n")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def _listener() -> socket.socket:
    """Where the agent would listen: a descriptor that it inherits, a port of loopback, or a path."""
    where = sys.argv[sys.argv.index("--listen") + 1] if "--listen" in sys.argv else "fd:3"
    if where.startswith("fd:"):
        return socket.socket(fileno=int(where.removeprefix("fd:")))
    if where.startswith("tcp:"):
        host, _, port = where.removeprefix("tcp:").rpartition(":")
        return socket.create_server((host, int(port)))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(where.removeprefix("unix:"))
    os.chmod(where.removeprefix("unix:"), 0o666)  # noqa: S103 - as the agent does; its directory is closed
    listener.listen()
    return listener


def look() -> dict[str, Any]:
    return {
        "uid": os.getuid(),
        "capabilities": _capabilities(),
        "no new privileges": _status("NoNewPrivs"),
        "seccomp": _status("Seccomp"),
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "environment of process 1": _read("/proc/1/environ"),
        "host paths in process 1": [part for part in _read("/proc/1/cmdline").split("\0") if _names_the_host(part)],
        "descriptors": _descriptors(),
        "environment": sorted(os.environ),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "routes": _routes(),
        "connections": {address: _connect(address) for address in ADDRESSES},
        "abstract sockets": [line for line in _read("/proc/net/unix").splitlines() if " @" in line],
        "writable": _writable(),
        "mounts without nosuid": _mounts_without("nosuid"),
        "devices": sorted(name for name in os.listdir("/dev") if not os.path.islink(f"/dev/{name}")),
        "kernel files": sorted(filter(_opens_for_writing, _KERNEL_FILES)),
        "host files": sorted(filter(_shows_something, _HOST_FILES)),
        "calls": {name: _call(name, arguments) for name, arguments in CALLS.items()},
        "sockets": {name: _socket(*arguments) for name, arguments in SOCKETS.items()},
        "core limit": resource.getrlimit(resource.RLIMIT_CORE),
        "hostname": socket.gethostname(),
        "lookup": _lookup(),
    }


def _refuse_where_it_could_do_harm() -> None:
    whole_machine = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    if whole_machine and int(_status("CapEff"), 16) & _CAP_SYS_ADMIN:
        sys.exit("this asks for forbidden things and would get them here")


def _status(name: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.partition(":")[2].strip()
    return ""


def _capabilities() -> dict[str, int]:
    """Sets that this kernel knows: gVisor's tells of no ambient ones."""
    told = {name: _status(name) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    return {name: int(value, 16) for name, value in told.items() if value}


def _read(path: str) -> str:
    try:
        return Path(path).read_bytes().decode(errors="replace")
    except OSError as error:
        return f"({errno.errorcode[error.errno or 0]})"


def _names_the_host(part: str) -> bool:
    return part.startswith("/") and not part.startswith("/opt/")


def _descriptors() -> list[int]:
    """Without the one that lists them."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
            found.append(int(name))
        except OSError:
            pass
    return sorted(found)


def _routes() -> list[str]:
    ours = [line.split() for line in _read("/proc/net/route").splitlines()[1:]]
    theirs = [line.split() for line in _read("/proc/net/ipv6_route").splitlines()]
    return sorted({fields[0] for fields in ours} | {fields[-1] for fields in theirs} - {"lo"})


def _connect(address: str) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(1)
        return _outcome(lambda: client.connect((address, 80)))


def _lookup() -> str:
    try:
        socket.getaddrinfo("example.com", 80)
    except OSError:
        return "fails"
    return "answers"


def _mounts() -> list[tuple[str, set[str]]]:
    lines = [line.split() for line in _read("/proc/self/mountinfo").splitlines()]
    return [(fields[4], set(fields[5].split(","))) for fields in lines]


def _mounts_without(option: str) -> list[str]:
    return sorted({point for point, options in _mounts() if option not in options})


def _writable() -> list[str]:
    """Mounts and top directories in which a file can be made."""
    places = {point for point, _ in _mounts()} | {f"/{name}" for name in os.listdir("/")} | {"/", "/dev", "/etc"}
    return sorted(place for place in places if os.path.isdir(place) and _can_create_in(place))


def _can_create_in(place: str) -> bool:
    name = f"{place.rstrip('/')}/.probe"
    try:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.unlink(name)
    except OSError:
        return False
    return True


def _opens_for_writing(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY))
    except OSError:
        return False
    return True


def _shows_something(path: str) -> bool:
    """An empty directory of a runtime's own tree is nothing of the host's."""
    try:
        if os.path.isdir(path):
            return bool(os.listdir(path))
        os.close(os.open(path, os.O_RDONLY))
    except OSError:
        return False
    return True


def _socket(family: int, kind: int, protocol: int) -> str:
    return _outcome(lambda: socket.socket(family, kind, protocol).close())


def _outcome(action: Any) -> str:
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return "OK"


def _call(name: str, arguments: tuple[int, ...]) -> str:
    architecture = "x86_64" if platform.machine() == "x86_64" else "aarch64"
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(*map(ctypes.c_long, (syscall_numbers(architecture)[name], *arguments)))
    return "OK" if result >= 0 else errno.errorcode[ctypes.get_errno()]


if __name__ == "__main__":
    main()
