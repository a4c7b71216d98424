"""The doctor: what this machine offers, and what a probe saw in a sandbox, against what we promise."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from kernelpool.backends import probe, syscall_table
from kernelpool.backends.base import Finding, SandboxSpec, UnixAddress
from kernelpool.backends.bwrap_argv import SANDBOX_UID, WRITABLE
from kernelpool.backends.bwrap_binary import ADVISED, Bwrap
from kernelpool.backends.sandboxed import BubblewrapSandbox
from kernelpool.backends.tree.steps import in_thread
from kernelpool.egress.policy import NOTHING
from kernelpool.errors import StartFailed

_PROBE_SECONDS: Final = 30.0
_MAX_ANSWER: Final = 1 << 20
_REPORT: Final = "Do not serve. Report this as a bug, with the output of `kernelpool doctor`."


@dataclass(frozen=True, slots=True)
class Promise:
    """A key of what the probe tells, the only value that keeps the promise, and the promise in plain words."""

    key: str
    value: Any
    wanted: str
    remedy: str = _REPORT


_ENOSYS: Final = ("io_uring_setup", "clone3")

GOLDEN: Final[Sequence[Promise]] = (
    Promise("uid", SANDBOX_UID, "the code runs as a user without rights"),
    Promise("capabilities", dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), 0), "no capabilities"),
    Promise("no new privileges", "1", "setuid programs give no rights"),
    Promise("seccomp", "2", "system calls are filtered"),
    Promise("processes", [1, 2, 3], "only the sandbox's own processes are seen"),
    Promise("environment of process 1", "", "nothing of the gateway's environment is seen"),
    Promise("host paths in process 1", [], "no path of the host is seen"),
    Promise("descriptors", [0, 1, 2, 3, 4, 5], "no open file of the gateway is inherited"),
    Promise("environment", ["HOME", "LANG", "PATH", "PWD"], "the environment is ours alone"),
    Promise("interfaces", ["lo"], "no network interface but its own loopback"),
    Promise("routes", [], "no route to anywhere"),
    Promise("connections", dict.fromkeys(probe.ADDRESSES, "ENETUNREACH"), "no address can be reached"),
    Promise("lookup", "fails", "no name can be looked up"),
    Promise("abstract sockets", [], "no abstract socket of the host is seen"),
    Promise("writable", sorted(WRITABLE), "only three places are writable, and all are limited"),
    Promise("mounts without nosuid", [], "setuid files are inert"),
    Promise(
        "devices",
        ["full", "null", "pts", "random", "shm", "tty", "urandom", "zero"],
        "no device but the harmless ones",
    ),
    Promise("kernel files", [], "no setting of the kernel is writable"),
    Promise("host files", [], "no file of the host is seen"),
    Promise(
        "calls",
        {name: "ENOSYS" if name in _ENOSYS else "EPERM" for name in probe.CALLS},
        "dangerous system calls are refused",
    ),
    Promise("sockets", dict.fromkeys(probe.SOCKETS, "EAFNOSUPPORT"), "only Unix, TCP, UDP and route sockets"),
    Promise("core limit", [0, 0], "no core dumps"),
    Promise("hostname", "sandbox", "the host's name is not seen"),
)


def throw_away(spec: SandboxSpec) -> SandboxSpec:
    """For a sandbox like those of `spec` that nobody will ever get, not even after a crash."""
    agent = replace(spec.agent, secret=secrets.token_urlsafe(), kernel_argv=(), egress_socket="")
    id = secrets.token_hex(6)
    return replace(spec, id=id, pool="doctor", fingerprint="doctor", agent=agent, egress=NOTHING)


def host_findings(bwrap: Bwrap, controllers: Collection[str], has_own_uids: bool) -> list[Finding]:
    """What makes sandboxes stronger or weaker here."""
    advised = ".".join(map(str, ADVISED))
    delegate = (
        "As root, nothing is needed where control groups are mounted writable. As an ordinary user of systemd, start "
        "with `systemd-run --user --scope -p Delegate=yes kernelpool serve`."
    )
    return [
        Finding(
            "bubblewrap",
            bwrap.version >= ADVISED,
            str(bwrap),
            f"{advised} or newer",
            "Update the system's package bubblewrap. Known holes of older ones need what kernelpool never does: a "
            "setuid bwrap, or binds below directories that sandboxes can write.",
            essential=False,
        ),
        Finding(
            "memory limit",
            "memory" in controllers,
            "by control group" if "memory" in controllers else "none",
            "a control group counts all memory of a sandbox",
            f"A session can use up the machine's memory. {delegate}",
            essential=False,
        ),
        Finding(
            "process limit",
            "pids" in controllers,
            "by control group" if "pids" in controllers else "by RLIMIT_NPROC only",
            "a control group counts the processes of a sandbox",
            delegate,
            essential=False,
        ),
        Finding(
            "CPU limit",
            "cpu" in controllers,
            "by control group" if "cpu" in controllers else "none",
            "a control group limits the CPU time of a sandbox",
            f"A session can slow down the others. {delegate}",
            essential=False,
        ),
        Finding(
            "user per sandbox",
            has_own_uids,
            "a host user each" if has_own_uids else f"all as uid {os.geteuid()}",
            "sandboxes have different users outside",
            "Without it, sandboxes are kept apart by namespaces alone. Start the gateway as root: it gives each "
            "sandbox a user of its own and runs none as root.",
            essential=False,
        ),
    ]


_REMEDIES: Final[Mapping[str, str]] = {
    "namespace": (
        "This machine does not let users make namespaces. On Debian: `sysctl kernel.unprivileged_userns_clone=1`. "
        "On Ubuntu 24.04 and later install an AppArmor profile for bwrap (package apparmor-profiles, "
        "bwrap-userns-restrict) or set `sysctl kernel.apparmor_restrict_unprivileged_userns=0`. Elsewhere see "
        "`sysctl user.max_user_namespaces`. Inside a container use the Docker or Kubernetes backend."
    ),
    "uid map": "AppArmor or a security module refuses the mapping of users: see `dmesg` for what denied it to bwrap.",
    "mount proc": "This is a container that hides parts of /proc: use the Docker or Kubernetes backend there.",
    "user id": "Set a range of host user ids that no account has and that this gateway alone uses.",
}


def start_finding(error: StartFailed) -> Finding:
    """Why not even the probe's sandbox came up."""
    seen = "; ".join([str(error), *getattr(error, "__notes__", [])])
    remedy = next((text for word, text in _REMEDIES.items() if word in seen.lower()), "See what bubblewrap says.")
    return Finding("sandbox", False, seen, "a sandbox starts", remedy)


def install_probe(state: Path) -> Path:
    """A program folder with the probe in it, to be shown in the agent's place."""
    folder = state / "probe"
    folder.mkdir(mode=0o755, exist_ok=True)
    folder.chmod(0o755)
    for module, name in ((probe, "__main__.py"), (syscall_table, "syscall_table.py")):
        part = folder / f"{name}.new"
        shutil.copyfile(str(module.__file__), part)
        part.chmod(0o644)
        part.replace(folder / name)
    return folder


def probe_as_text() -> str:
    """The same program for `python -c`."""
    table, own = (Path(str(module.__file__)).read_text() for module in (syscall_table, probe))
    return (
        "import sys, types\n"
        "table = sys.modules['syscall_table'] = types.ModuleType('syscall_table')\n"
        f"exec({table!r}, vars(table))\n"
        f"exec({own!r})\n"
    )


async def probe_findings(sandbox: BubblewrapSandbox) -> list[Finding]:
    """Asks the probe that runs in `sandbox`."""
    outside = await in_thread(_user_outside, sandbox)
    seen = await ask_probe(sandbox.address)
    if seen is None:
        return [silent_probe(sandbox.last_words())]
    return [outside, *compare(seen)]


async def ask_probe(address: UnixAddress) -> dict[str, Any] | None:
    """What it sees; None when it does not answer."""
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            reader, writer = await asyncio.open_unix_connection(address.path, limit=_MAX_ANSWER)
            try:
                seen = json.loads(await reader.readuntil(b"\n"))
            finally:
                writer.close()
    except (OSError, ValueError, TimeoutError, EOFError, asyncio.LimitOverrunError):
        return None
    return seen if isinstance(seen, dict) else None


def silent_probe(words: str) -> Finding:
    return Finding("sandbox", False, words or "the probe does not answer", "a probe answers", _REPORT)


def _user_outside(sandbox: BubblewrapSandbox) -> Finding:
    """From inside it cannot be told."""
    init = sandbox.record.init
    status = Path(f"/proc/{init.pid}/status").read_text() if init else ""
    uids = set(" ".join(re.findall(r"^[UG]id:\t(.*)$", status, re.MULTILINE)).split())
    return Finding(
        "user outside",
        bool(uids) and "0" not in uids,
        f"uid {'/'.join(sorted(uids))}",
        "on the host the code is not root, whom /proc/sys would obey",
        _REPORT,
    )


def compare(seen: Mapping[str, Any], golden: Sequence[Promise] = GOLDEN) -> list[Finding]:
    return [
        Finding(
            promise.key,
            seen.get(promise.key) == promise.value,
            _difference(seen.get(promise.key), promise.value),
            promise.wanted,
            "" if seen.get(promise.key) == promise.value else promise.remedy,
        )
        for promise in golden
    ]


def _difference(seen: Any, wanted: Any) -> str:
    """What is as promised in few words; of a table that is not, the lines that differ."""
    if seen == wanted:
        return "as promised" if isinstance(wanted, dict | list) else str(wanted or "nothing")
    if isinstance(seen, dict) and isinstance(wanted, dict):
        return ", ".join(f"{key}: {value}" for key, value in seen.items() if wanted.get(key) != value)
    return str(seen)
