"""Plugs a user-mode network into a sandbox: filters first, then the cable.

Run as a program of its own, `python -I -S plug.py <marker>`, with an order on stdin, because it enters the sandbox's
namespaces. Gives up root before that. Its stdout is the pid of the network's process, its stderr what went wrong.
"""

from __future__ import annotations

import ctypes
import fcntl
import marshal
import os
import select
import signal
import socket
import stat
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NS_GET_USERNS = 0xB701
_CLONE_NEWNS, _CLONE_NEWNET, _CLONE_NEWUSER = 0x00020000, 0x40000000, 0x10000000
_MS_NOSUID, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 8, 1 << 14, 1 << 18
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_RTMGRP_IPV4_ROUTE, _RTM_NEWROUTE = 0x40, 24
_NLMSG_ERROR = 2
_TUN = "/dev/net/tun"
_READY_SECONDS = 10
_OOM_SCORE = 300

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    order = marshal.load(sys.stdin.buffer)  # noqa: S302 - of the gateway, run by the same interpreter
    try:
        for path in order["cgroups"]:
            _write(path, "0")
        _write("/proc/self/oom_score_adj", str(_OOM_SCORE))
        network = os.open(f"/proc/{order['init']}/ns/net", os.O_RDONLY)
        # Not the namespace that process 1 is in, which has no rights, but the one above that made the network.
        user = fcntl.ioctl(network, _NS_GET_USERNS)
        if order["uid"] is not None:
            _open_up_tun()
            os.setgroups([])
            os.setresgid(order["uid"], order["uid"], order["uid"])
            os.setresuid(order["uid"], order["uid"], order["uid"])
        if os.geteuid() == 0:
            raise PermissionError("the network must not run as root")
        _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))  # lets the network open what is ours in /proc
        print(_plug_in(network, user, order))
    except OSError as error:
        print(f"plug: {error}", file=sys.stderr)
        return 1
    return 0


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _write(path: str, value: str) -> None:
    with open(path, "w") as file:
        file.write(value)


def _open_up_tun() -> None:
    """Where only root may open it, this process and the network get a device file of their own that all may open."""
    if os.stat(_TUN).st_mode & 0o006 == 0o006:
        return
    device = os.stat(_TUN).st_rdev
    _check(_libc.unshare(_CLONE_NEWNS))
    _check(_libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
    folder = os.path.dirname(_TUN).encode()
    _check(_libc.mount(b"tmpfs", folder, b"tmpfs", ctypes.c_ulong(_MS_NOSUID | _MS_NOEXEC), b"size=4k,mode=0755"))
    os.mknod(_TUN, stat.S_IFCHR | 0o666, device)
    os.chmod(_TUN, 0o666)  # noqa: S103 - the system's own has these bits wherever udev runs


def _plug_in(network: int, user: int, order: dict[str, Any]) -> int:
    """A child enters the sandbox's network, for there is no way back out of a user namespace. It installs the filter,
    says so, and ends when there is a way out; in between the network program is started."""
    filtered, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        _enter(network, user, order, theirs)
    os.close(theirs)
    if not os.read(filtered, 1):
        raise OSError("the kernel takes no packet filter (nf_tables), and without one there is no egress")
    program = _start([part.format(user=f"/proc/{os.getpid()}/fd/{user}") for part in order["argv"]])
    watched = {os.pidfd_open(child): child, os.pidfd_open(program): program}
    ended, _, _ = select.select(list(watched), [], [], _READY_SECONDS)
    if [watched[fd] for fd in ended] != [child] or os.waitpid(child, 0)[1] != 0:
        os.kill(program, 9)
        raise OSError(f"{order['argv'][0]} did not come up")
    return program


def _enter(network: int, user: int, order: dict[str, Any], filtered: int) -> None:
    try:
        _check(_libc.setns(user, _CLONE_NEWUSER))
        _check(_libc.setns(network, _CLONE_NEWNET))
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as routes:
            routes.bind((0, _RTMGRP_IPV4_ROUTE))
            _install(order["filters"])
            os.write(filtered, b"!")
            routes.settimeout(_READY_SECONDS)
            while not _has_default_route(routes.recv(1 << 16)):
                pass
        os._exit(0)
    except BaseException as error:
        os.write(2, f"plug: {error}\n".encode())
    finally:
        os._exit(1)


def _has_default_route(news: bytes) -> bool:
    while news:
        length, kind = struct.unpack_from("=IH", news)
        family, prefix_length = struct.unpack_from("=BB", news, 16)
        if (kind, family, prefix_length) == (_RTM_NEWROUTE, socket.AF_INET, 0):
            return True
        news = news[(length + 3) & ~3 :]
    return False


def _install(filters: list[tuple[bytes, int]]) -> None:
    """The first that the kernel takes. A batch is taken whole or not at all."""
    for batch, answers in filters:
        try:
            _send(batch, answers)
            return
        except OSError as error:
            refusal = error
    raise refusal


def _send(batch: bytes, answers: int) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as kernel:
        kernel.settimeout(5)
        kernel.send(batch)
        while answers > 0:
            data = kernel.recv(1 << 16)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                if kind == _NLMSG_ERROR:
                    (error,) = struct.unpack_from("=i", data, 16)
                    if error:
                        raise OSError(-error, os.strerror(-error))
                    answers -= 1
                data = data[(length + 3) & ~3 :]


def _start(command: list[str]) -> int:
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # pasta takes an ignored one, as Python has it, for an error
            os.execve(command[0], command, {"PATH": "/usr/bin:/bin"})  # noqa: S606
        finally:
            os._exit(127)
    return child


if __name__ == "__main__":
    sys.exit(main())
