"""What the suite of the backends needs of a backend: one class each, one line each in `KITS`."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, Self

from kernelpool.backends.base import Backend, RuntimeMetadata, Sandbox, SandboxSpec, Say, UnixAddress
from kernelpool.backends.bubblewrap import BubblewrapBackend, BubblewrapSettings
from kernelpool.backends.cgroups import CgroupRoot
from kernelpool.backends.tree import Tree
from kernelpool.models import AgentConfig, Limits
from kernelpool.runtimes import Runtime

STANDIN = Path(__file__).with_name("standin.py")
RUNTIME = Runtime("standin", "python", "Python", Path("/nonexistent"), ("python",))
SECRET = "c4n4ry-of-the-agent"
MEBIBYTE = 1 << 20
_SMALL = {"memory": 128 * MEBIBYTE, "pids": 64, "workspace": 16 * MEBIBYTE, "tmp": 16 * MEBIBYTE}


class Kit(Protocol):
    """One backend under test."""

    @property
    def limits_memory(self) -> bool:
        """Whether this machine lets this backend, as this user, limit the memory of sandboxes."""

    def backend(self) -> AbstractAsyncContextManager[Backend]:
        """A new object of it; those of one kit share their sandboxes, as a gateway and the next one do."""

    def traces(self) -> set[str]:
        """All that this kit's sandboxes are on the machine now: processes, mounts, sockets, directories, groups."""

    def abandon(self, id: str) -> None:
        """Has another process make the sandbox `id` and be killed with SIGKILL."""

    def close(self) -> None:
        """Removes its own directories."""


def spec(id: str | None = None, **limits: int) -> SandboxSpec:
    return SandboxSpec(
        id=id or os.urandom(6).hex(),
        pool="contract",
        fingerprint="v1",
        runtime=RUNTIME,
        limits=Limits(**(_SMALL | limits)),
        agent=AgentConfig(secret=SECRET, kernel_argv=("python",), processes=64),
    )


async def ask(sandbox: Sandbox, code: str, *, timeout: float = 30) -> str:
    """The output of `code`, run in the sandbox beside its agent, without the exit status when that is 0."""
    assert isinstance(sandbox.address, UnixAddress)
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_unix_connection(sandbox.address.path)
        try:
            writer.write(code.encode())
            writer.write_eof()
            answer = (await reader.read()).decode(errors="replace")
        finally:
            writer.close()
    return answer.removesuffix("[0]").rstrip("\n")


class BubblewrapKit:
    """With a tree of this interpreter and its standard library: seconds to make, nothing to download."""

    def __init__(self) -> None:
        # Not below pytest's own directory, which is closed to the users of sandboxes.
        self.base = Path(tempfile.mkdtemp(prefix="kp-", dir="/var/tmp"))
        self.base.chmod(0o755)
        self.state = self.base / "state"
        self.settings = _own_settings(self.base)
        self.limits_memory = "memory" in CgroupRoot.open("0").controllers
        _make_root(self.base / "root")
        (self.base / "program").mkdir()
        shutil.copyfile(STANDIN, self.base / "program" / "__main__.py")
        for path in (self.base / "program").rglob("*"):
            path.chmod(0o644)

    def close(self) -> None:
        shutil.rmtree(self.base)

    def backend(self) -> BubblewrapBackend:
        return BubblewrapBackend(self.state, self.settings, build_tree=self.tree)

    @classmethod
    def at(cls, base: Path) -> Self:
        """The same one, in another process."""
        kit = cls.__new__(cls)
        kit.base, kit.state, kit.settings = base, base / "state", _own_settings(base)
        return kit

    @property
    def uids(self) -> range:
        return range(self.settings.first_uid, self.settings.last_uid + 1)

    async def tree(self, runtime: Runtime, state: Path, say: Say) -> Tree:
        metadata = RuntimeMetadata("python", "3", (), 0.0, "standin", "0")
        return Tree(self.base / "root", self.base / "program", metadata)

    def traces(self) -> set[str]:
        return {*self._processes(), *self._groups(), *self._folders(), *self._mounts(), *self._sockets()}

    def _processes(self) -> set[str]:
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                status = (folder / "status").read_text()
            except OSError:
                continue
            if "State:\tZ" not in status and self._is_ours(status):
                found.add(f"process {folder.name}")
        return found

    def _is_ours(self, status: str) -> bool:
        uid = int(re.findall(r"^Uid:\t(\d+)", status, re.MULTILINE)[0])
        if os.geteuid() == 0:
            return uid in self.uids
        depth = len(re.findall(r"^NSpid:\t(.*)$", status, re.MULTILINE)[0].split())
        return uid == os.geteuid() and (depth > 1 or "Name:\tbwrap" in status)

    def _groups(self) -> set[str]:
        tag = hashlib.sha256(os.fsencode(self.state)).hexdigest()[:8]
        return {f"group {path}" for path in Path("/sys/fs/cgroup").glob(f"**/kernelpool/{tag}-*")}

    def _folders(self) -> set[str]:
        return {f"folder {path}" for path in (self.state / "sandboxes").glob("*")}

    def _mounts(self) -> set[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return {f"mount {line}" for line in lines if str(self.base) in line}

    def _sockets(self) -> set[str]:
        lines = Path("/proc/net/unix").read_text().splitlines()
        return {f"socket {line.split()[-1]}" for line in lines if str(self.state) in line}

    def abandon(self, id: str) -> None:
        code = (
            "import asyncio, os, signal, sys; from pathlib import Path; from tests.contract import sandboxes\n"
            "async def main():\n"
            "    kit = sandboxes.BubblewrapKit.at(Path(sys.argv[1]))\n"
            "    async with kit.backend() as backend:\n"
            "        sandbox = await backend.create(sandboxes.spec(sys.argv[2]))\n"
            "        assert await sandboxes.ask(sandbox, 'print(1)') == '1'\n"
            "        os.kill(os.getpid(), signal.SIGKILL)\n"
            "asyncio.run(main())\n"
        )
        argv = [sys.executable, "-c", code, str(self.base), id]
        done = subprocess.run(argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
        assert done.returncode == -9, done.stderr


KITS: dict[str, Callable[[], Kit]] = {
    "bubblewrap": BubblewrapKit,
}


def _own_settings(base: Path) -> BubblewrapSettings:
    """With users that are not those of a gateway, or another run of the tests, on this machine."""
    first = 200_000 + zlib.crc32(os.fsencode(base)) % 10_000 * 100
    return BubblewrapSettings(first_uid=first, last_uid=first + 90)


def _make_root(root: Path) -> None:
    """/opt/venv with this interpreter, and the libraries that it needs where its loader looks for them."""
    venv = root / "opt" / "venv"
    (venv / "bin").mkdir(parents=True)
    executable = Path(os.path.realpath(sys._base_executable))  # type: ignore[attr-defined]
    shutil.copy2(executable, venv / "bin" / "python")
    library = Path(sysconfig.get_path("stdlib"))
    ignore = shutil.ignore_patterns("test", "tests", "*-packages", "config-*", "idlelib", "ensurepip")
    shutil.copytree(library, venv / "lib" / library.name, ignore=ignore)
    binaries = [venv / "bin" / "python", *(venv / "lib").glob("*/lib-dynload/*.so")]
    listing = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True, check=True).stdout
    for path in {Path(word) for word in listing.split() if word.startswith("/") and not word.endswith(":")}:
        target = root / path.relative_to("/")
        if path.is_relative_to(sys.base_prefix):
            target = root / "lib" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    (root / "usr").mkdir(exist_ok=True)
    (root / "bin").symlink_to("usr/bin")
