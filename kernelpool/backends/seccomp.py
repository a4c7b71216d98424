"""Which system calls a sandbox may make: an allow-list, and the assembler that turns it into a cBPF program.

`POLICY` is the decision, the same for every engine: `seccomp_program` makes of it what bubblewrap loads, and
`oci_seccomp.py` what Docker and Kubernetes load. What is on no list is answered with ENOSYS, so that programs fall back
as they would on an older kernel, and a call that a future kernel adds is closed from its first day.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from kernelpool.backends.syscall_table import Architecture, syscall_numbers

LOW_32: Final = 0xFFFFFFFF
ALLOW: Final = 0
"""As an errno: no error, let it pass."""


@dataclass(frozen=True, slots=True)
class Is:
    """`(argument & mask) == value`, on the low 32 bits: what the kernel looks at in all the arguments below."""

    argument: int
    value: int
    mask: int = LOW_32


@dataclass(frozen=True, slots=True)
class Clause:
    """When all of `tests` hold, the call ends with `errno` (0: it is allowed)."""

    tests: tuple[Is, ...]
    errno: int = ALLOW


@dataclass(frozen=True, slots=True)
class Checked:
    """A call whose arguments decide: the first clause that holds, else `otherwise`."""

    clauses: tuple[Clause, ...]
    otherwise: int


@dataclass(frozen=True, slots=True)
class Policy:
    allowed: frozenset[str]
    denied: frozenset[str]
    """Known to be dangerous, and common enough that EPERM explains more than ENOSYS."""
    checked: Mapping[str, Checked] = field(default_factory=dict)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ALLOWED: Final = _names("""
    read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask
    rt_sigreturn pread64 pwrite64 readv writev access pipe select sched_yield mremap msync mincore madvise shmget shmat
    shmctl dup dup2 pause nanosleep getitimer alarm setitimer getpid sendfile connect accept sendto recvfrom
    sendmsg recvmsg shutdown bind listen getsockname getpeername getsockopt fork vfork execve exit wait4 kill
    uname semget semop semctl shmdt msgget msgsnd msgrcv msgctl fcntl flock fsync fdatasync truncate ftruncate getdents
    getcwd chdir fchdir rename mkdir rmdir creat link unlink symlink readlink chmod fchmod chown fchown lchown umask
    gettimeofday getrlimit getrusage sysinfo times getuid getgid setuid setgid geteuid getegid setpgid getppid getpgrp
    setsid setreuid setregid getgroups setgroups setresuid getresuid setresgid getresgid getpgid setfsuid setfsgid
    getsid capget capset rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend sigaltstack utime mknod statfs
    fstatfs getpriority setpriority sched_setparam sched_getparam sched_setscheduler sched_getscheduler
    sched_get_priority_max sched_get_priority_min sched_rr_get_interval mlock munlock mlockall munlockall arch_prctl
    setrlimit sync gettid readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr
    flistxattr removexattr lremovexattr fremovexattr tkill time futex sched_setaffinity sched_getaffinity
    set_thread_area get_thread_area epoll_create getdents64 set_tid_address restart_syscall semtimedop fadvise64
    timer_create timer_settime timer_gettime timer_getoverrun timer_delete clock_gettime clock_getres clock_nanosleep
    exit_group epoll_wait epoll_ctl tgkill utimes get_mempolicy waitid ioprio_set ioprio_get inotify_init
    inotify_add_watch inotify_rm_watch openat mkdirat mknodat fchownat futimesat newfstatat unlinkat renameat
    linkat symlinkat readlinkat fchmodat faccessat pselect6 ppoll set_robust_list get_robust_list splice tee
    sync_file_range utimensat epoll_pwait signalfd timerfd_create eventfd fallocate timerfd_settime timerfd_gettime
    accept4 signalfd4 eventfd2 epoll_create1 dup3 pipe2 inotify_init1 preadv pwritev rt_tgsigqueueinfo recvmmsg
    prlimit64 syncfs sendmmsg getcpu sched_setattr sched_getattr renameat2 getrandom memfd_create execveat membarrier
    mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc pkey_free statx rseq pidfd_send_signal pidfd_open
    close_range openat2 faccessat2 epoll_pwait2 futex_waitv fchmodat2 map_shadow_stack futex_wake futex_wait
    futex_requeue mseal setxattrat getxattrat listxattrat removexattrat landlock_create_ruleset landlock_add_rule
    landlock_restrict_self
""")

_DENIED: Final = _names("""
    ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd
    add_key request_key keyctl bpf perf_event_open userfaultfd memfd_secret seccomp
    mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree open_tree_attr mount_setattr
    setns unshare name_to_handle_at open_by_handle_at quotactl quotactl_fd fanotify_init fanotify_mark
    kexec_load kexec_file_load init_module finit_module delete_module create_module query_module reboot swapon swapoff
    acct settimeofday clock_settime adjtimex clock_adjtime syslog sethostname setdomainname vhangup iopl ioperm
    modify_ldt lookup_dcookie nfsservctl vmsplice mbind set_mempolicy migrate_pages move_pages
""")

# Every CLONE_NEW* flag that clone(2) takes; CLONE_NEWTIME works only with clone3 and unshare, which are closed.
_NEW_NAMESPACES: Final = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_STREAM, _DGRAM = 1, 2
_INTERNET_PROTOCOLS: Final = (0, 6, 17)  # the default one, TCP, UDP: no SCTP, MPTCP, L2TP, ICMP …

_CHECKED: Final[Mapping[str, Checked]] = {
    "clone": Checked((Clause((Is(0, 0, _NEW_NAMESPACES),)),), errno.EPERM),
    "socket": Checked(
        (
            Clause((Is(0, _AF_UNIX),)),
            Clause((Is(0, _AF_NETLINK), Is(2, 0))),  # NETLINK_ROUTE: getifaddrs() needs it; no netfilter, no xfrm
            *(
                Clause((Is(0, family), Is(1, kind, 0xF), Is(2, protocol)))
                for family in (_AF_INET, _AF_INET6)
                for kind in (_STREAM, _DGRAM)
                for protocol in _INTERNET_PROTOCOLS
            ),
        ),
        errno.EAFNOSUPPORT,
    ),
    "socketpair": Checked((Clause((Is(0, _AF_UNIX),)),), errno.EAFNOSUPPORT),
    "setsockopt": Checked(
        (
            Clause((Is(1, 6), Is(2, 31)), errno.EPERM),  # TCP_ULP: kernel TLS, ESP in TCP
            Clause((Is(1, 17), Is(2, 100)), errno.EPERM),  # UDP_ENCAP: ESP in UDP
        ),
        ALLOW,
    ),
    "ioctl": Checked(
        (
            Clause((Is(1, 0x5412),), errno.EPERM),  # TIOCSTI: types into a terminal
            Clause((Is(1, 0x541C),), errno.EPERM),  # TIOCLINUX: pastes into a console
            Clause((Is(1, 0x5423),), errno.EPERM),  # TIOCSETD: loads line disciplines
        ),
        ALLOW,
    ),
    "prctl": Checked(
        (
            Clause((Is(0, 35),), errno.EPERM),  # PR_SET_MM
            Clause((Is(0, 22),), errno.EPERM),  # PR_SET_SECCOMP
            Clause((Is(0, 0x59616D61),), errno.EPERM),  # PR_SET_PTRACER
        ),
        ALLOW,
    ),
    "personality": Checked((Clause((Is(0, 0),)), Clause((Is(0, LOW_32),))), errno.EPERM),
}

POLICY: Final = Policy(_ALLOWED, _DENIED, _CHECKED)
# clone3 has its flags in memory, where a filter cannot look; libc falls back to clone when it does not exist.

_UNCOUNTED_MEMORY: Final = frozenset({"memfd_create", "shmget"})


def policy(*, memory_is_limited: bool) -> Policy:
    """Without a memory cgroup nothing bounds memfds and System V shared memory, so those go as well."""
    if memory_is_limited:
        return POLICY
    return Policy(POLICY.allowed - _UNCOUNTED_MEMORY, POLICY.denied | _UNCOUNTED_MEMORY, POLICY.checked)


# --- the assembler -------------------------------------------------------------------------------------------------

Instruction = tuple[int, int, int, int]
"""code, jump if true, jump if false, operand: a struct sock_filter."""

_LOAD, _AND, _JUMP, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
_KILL_PROCESS, _ERRNO, _PASS = 0x80000000, 0x00050000, 0x7FFF0000
_OFFSET_NR, _OFFSET_ARCH, _OFFSET_ARGS = 0, 4, 16
_AUDIT_ARCH: Final[Mapping[Architecture, int]] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT: Final = 0x40000000
_FAR: Final = 255  # a conditional jump reaches no further


def native_architecture() -> Architecture:
    """Raises `RuntimeError` on a machine that we have no table for."""
    machine = platform.machine()
    if machine == "x86_64":
        return "x86_64"
    if machine in ("aarch64", "arm64"):
        return "aarch64"
    raise RuntimeError(f"kernelpool has no system call table for {machine}; x86_64 and aarch64 are supported")


def seccomp_program(rules: Policy, architecture: Architecture) -> bytes:
    """The policy as the `sock_filter[]` that the kernel loads."""
    program = [
        (_LOAD, 0, 0, _OFFSET_ARCH),
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH[architecture]),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _OFFSET_NR),
    ]
    if architecture == "x86_64":
        # x32 calls have the same architecture and other numbers; -1 is here too: a tracer's "skip this call".
        program += [(_JUMP_GREATER_EQUAL, 0, 1, _X32_BIT), _return(errno.ENOSYS)]
    program += _search(_ranges(rules, syscall_numbers(architecture)))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _return(error: int) -> Instruction:
    return (_RETURN, 0, 0, _PASS if error == ALLOW else _ERRNO | error)


_Verdict = int | Checked


def _ranges(rules: Policy, numbers: Mapping[str, int]) -> list[tuple[int, _Verdict]]:
    """(first number, verdict up to the next one's first number), ascending and starting at 0."""
    verdicts: dict[int, _Verdict] = {}
    for name, number in numbers.items():
        if name in rules.checked:
            verdicts[number] = rules.checked[name]
        elif name in rules.allowed:
            verdicts[number] = ALLOW
        elif name in rules.denied:
            verdicts[number] = errno.EPERM
    ranges: list[tuple[int, _Verdict]] = []
    for number in range(max(verdicts) + 2):
        verdict = verdicts.get(number, errno.ENOSYS)
        if not ranges or ranges[-1][1] != verdict:
            ranges.append((number, verdict))
    return ranges


def _search(ranges: list[tuple[int, _Verdict]]) -> list[Instruction]:
    """A binary search for the range of the accumulator: every call is decided in about eight comparisons."""
    if len(ranges) == 1:
        verdict = ranges[0][1]
        return _check(verdict) if isinstance(verdict, Checked) else [_return(verdict)]
    middle = len(ranges) // 2
    below, above = _search(ranges[:middle]), _search(ranges[middle:])
    if len(below) <= _FAR:
        return [(_JUMP_GREATER_EQUAL, len(below), 0, ranges[middle][0]), *below, *above]
    return [(_JUMP_GREATER_EQUAL, 0, 1, ranges[middle][0]), (_JUMP, 0, 0, len(below)), *below, *above]


def _check(checked: Checked) -> list[Instruction]:
    program: list[Instruction] = []
    for clause in checked.clauses:
        program += _clause(clause)
    return [*program, _return(checked.otherwise)]


def _clause(clause: Clause) -> list[Instruction]:
    """Falls through to its return when every test holds; a test that fails jumps behind it."""
    backwards: list[Instruction] = [_return(clause.errno)]
    for test in reversed(clause.tests):
        backwards.append((_JUMP_EQUAL, 0, len(backwards), test.value))
        if test.mask != LOW_32:
            backwards.append((_AND, 0, 0, test.mask))
        backwards.append((_LOAD, 0, 0, _OFFSET_ARGS + 8 * test.argument))
    return backwards[::-1]
