"""Becomes bwrap: joins the control groups, gives up root, sets resource limits, and executes it.

Run as a program of its own, `python -I -S launch.py <marker>`, with an Order on stdin, so that nothing has to happen
between fork and exec in the gateway. Every import is on the way of every start, hence marshal, _signal and no typing.

It forks, so that the sandbox is nobody's child: one that this gateway made and one that an earlier gateway made are
then the same thing. The parent's exit status says whether the child got as far as executing bwrap, its stdout the
child's pid, its stderr what went wrong.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import ctypes
import fcntl
import marshal
import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

UID_IN_USE = 75
"""Exit status: processes of that user are running, take another one."""

_PR_SET_NO_NEW_PRIVS = 38
# Above the machine's own programs, and low enough for the agent to put the user's code above itself.
_OOM_SCORE = 200
_HIGH_FD = 100


def main() -> int:
    order = marshal.load(sys.stdin.buffer)  # noqa: S302 - of the gateway, run by the same interpreter
    try:
        _keep_fds(order)
        for path in order["cgroups"]:
            _write(path, "0")
        _write("/proc/self/oom_score_adj", str(max(_OOM_SCORE, _oom_score())))
        for name, (soft, hard) in order["rlimits"].items():
            _limit(getattr(resource, name), soft, hard)
        if order["uid"] is not None:
            _become(order["uid"])
        if 0 in (os.getuid(), os.geteuid(), os.getgid(), os.getegid()):
            raise PermissionError("bwrap must not run as root: a sandbox of root may write to /proc/sys")
        _no_new_privileges()
        os.umask(0o077)
        os.chdir(order["cwd"])
    except OSError as error:
        print(f"launch: {error}", file=sys.stderr)
        return 1
    return _fork_and_execute(order)


def _keep_fds(order: dict[str, Any]) -> None:
    """Moves the descriptors to the numbers that they shall have; in `fds`, wanted number → number now."""
    given = {*order["fds"].values(), order["stderr"]}
    high = {wanted: fcntl.fcntl(now, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD) for wanted, now in order["fds"].items()}
    order["stderr"] = fcntl.fcntl(order["stderr"], fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
    for fd in given:
        os.close(fd)
    for wanted, now in high.items():
        os.dup2(now, wanted)  # inheritable


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _oom_score() -> int:
    with open("/proc/self/oom_score_adj") as file:
        return int(file.read())


def _limit(kind: int, soft: int, hard: int) -> None:
    """As asked, or as high as the gateway's own limit lets us."""
    _, most = resource.getrlimit(kind)
    if most != resource.RLIM_INFINITY:
        hard = min(hard, most)
    resource.setrlimit(kind, (min(soft, hard), hard))


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _no_new_privileges() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")


def _fork_and_execute(order: dict[str, Any]) -> int:
    """The child reports a failed exec through a pipe that a successful one closes."""
    read, write = os.pipe()  # not inheritable
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if order["uid"] is not None:
        # A user of its own has two processes now, this and its child. When one more is there, fork fails.
        resource.setrlimit(resource.RLIMIT_NPROC, (2, hard))
    try:
        child = os.fork()
    except BlockingIOError:
        print(f"launch: uid {order['uid']} has processes already", file=sys.stderr)
        return UID_IN_USE
    if child == 0:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
        _execute(order, write)
    os.close(write)
    failure = os.read(read, 4096)
    sys.stderr.write(failure.decode(errors="replace"))
    print(child)
    return 1 if failure else 0


def _execute(order: dict[str, Any], failure: int) -> NoReturn:
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(order["stderr"], 2)
        _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)  # which Python ignores, and every process would inherit that
        # An empty environment: /proc/1/environ in the sandbox shows this one, whatever bwrap clears.
        os.execve(order["path"], order["argv"], {})  # noqa: S606
    except BaseException as error:
        os.write(failure, f"launch: {error}".encode())
    finally:
        os._exit(127)


if __name__ == "__main__":
    sys.exit(main())
