"""What the suite of the backends needs of a backend: one class each, one line each in `KITS`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Protocol, Self

import docker
import docker.errors

from kernelpool.backends.base import Backend, Finding, RuntimeMetadata, Sandbox, SandboxSpec, Say, UnixAddress
from kernelpool.backends.bubblewrap import BubblewrapBackend, BubblewrapSettings
from kernelpool.backends.cgroups import CgroupRoot
from kernelpool.backends.docker.backend import DockerBackend
from kernelpool.backends.docker.doctor import ignores_cgroups
from kernelpool.backends.docker.engine import Engine
from kernelpool.backends.docker.image import Image
from kernelpool.backends.docker.labels import GATEWAY
from kernelpool.backends.docker.settings import DEFAULT_HOST, DockerSettings
from kernelpool.backends.tree.build import Tree
from kernelpool.egress.doors import DoorKeeper
from kernelpool.models import AgentConfig, Limits
from kernelpool.runtimes import Runtime
from tests.contract.forwarder import Forwarder

STANDIN = Path(__file__).with_name("standin.py")
RUNTIME = Runtime("standin", "python", "Python", Path("/nonexistent"), ("python",))
SECRET = "c4n4ry-of-the-agent"
MEBIBYTE = 1 << 20
ENGINE = os.environ.get("DOCKER_HOST", DEFAULT_HOST)
_SMALL = {"memory": 128 * MEBIBYTE, "pids": 64, "workspace": 16 * MEBIBYTE, "tmp": 16 * MEBIBYTE}


class Kit(Protocol):
    """One backend under test."""

    @property
    def limits_memory(self) -> bool:
        """Whether this machine lets this backend, as this user, limit the memory of sandboxes."""

    @property
    def shows_processes(self) -> bool:
        """Whether a process in a sandbox is one of the machine, so that `traces` names it."""

    @property
    def relays(self) -> int:
        """Processes of ours that a sandbox shows besides the agent, its init and the code."""

    def backend(self, doors: DoorKeeper | None = None) -> AbstractAsyncContextManager[Backend]:
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


async def ask(sandbox: Sandbox, code: str, *, timeout: float = 60) -> str:
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

    shows_processes: ClassVar[bool] = True
    relays: ClassVar[int] = 0

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

    def backend(self, doors: DoorKeeper | None = None) -> BubblewrapBackend:
        return BubblewrapBackend(self.state, self.settings, doors=doors, build_tree=self.tree)

    @classmethod
    def at(cls, base: str) -> Self:
        """The same one, in another process."""
        kit = cls.__new__(cls)
        kit.base, kit.state, kit.settings = Path(base), Path(base, "state"), _own_settings(Path(base))
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
        # Not by glob, which fails when a group of somebody else's goes meanwhile.
        folders = (folder for folder, _, _ in os.walk("/sys/fs/cgroup"))
        return {f"group {folder}" for folder in folders if f"/kernelpool/{tag}-" in folder}

    def _folders(self) -> set[str]:
        return {f"folder {path}" for path in (self.state / "sandboxes").glob("*")}

    def _mounts(self) -> set[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return {f"mount {line}" for line in lines if str(self.base) in line}

    def _sockets(self) -> set[str]:
        lines = Path("/proc/net/unix").read_text().splitlines()
        return {f"socket {line.split()[-1]}" for line in lines if str(self.state) in line}

    def abandon(self, id: str) -> None:
        _abandon("BubblewrapKit", id, str(self.base))


class DockerKit:
    """With an image of the same root as `BubblewrapKit`: nothing to download here either."""

    backend_class: ClassVar[type[DockerBackend]] = DockerBackend
    shows_processes: ClassVar[bool] = True
    relays: ClassVar[int] = 0

    def __init__(self, host: str = ENGINE) -> None:
        self.host = ENGINE
        self.client = docker.APIClient(host, version="auto")
        self.base = Path(tempfile.mkdtemp(prefix="kp-", dir="/var/tmp"))
        self.image = _import_image(self.client, self.base)
        self._seen: set[str] = set()

    def close(self) -> None:
        self.client.remove_image(self.image, force=True)
        self.client.close()
        shutil.rmtree(self.base)

    @classmethod
    def at(cls, base: str, image: str, host: str = ENGINE) -> Self:
        kit = cls.__new__(cls)
        kit.base, kit.image, kit.host = Path(base), image, host
        return kit

    @property
    def state(self) -> Path:
        return self.base / "state"

    @property
    def limits_memory(self) -> bool:
        return bool(self.client.info()["MemoryLimit"])

    def backend(self, doors: DoorKeeper | None = None, settings: DockerSettings | None = None) -> DockerBackend:
        settings = settings or DockerSettings(host=self.host)
        return self.backend_class(self.state, settings, doors=doors, prepare_image=self.find)

    async def find(self, engine: Engine, runtime: Runtime, say: Say) -> Image:
        return Image(self.image, RuntimeMetadata("python", "3", (), 0.0, "standin", "0"))

    def traces(self) -> set[str]:
        return {*self._containers(), *self._processes(), *self._folders(), *self._mounts(), *self._others()}

    def _containers(self) -> set[str]:
        ids = {one["Id"] for one in self.client.containers(all=True, filters={"label": self.label})}
        self._seen |= ids
        return {f"container {id}" for id in ids}

    @property
    def label(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return f"{GATEWAY}={(self.state / 'tag').read_text()}"
        return f"{GATEWAY}=nobody"

    def _processes(self) -> set[str]:
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                groups = (folder / "cgroup").read_text()
                if any(id in groups for id in self._seen) and "State:\tZ" not in (folder / "status").read_text():
                    found.add(f"process {folder.name}")
        return found

    def _folders(self) -> set[str]:
        paths = [*(self.state / "sandboxes").glob("*"), *(self.state / "run").glob("*/**/*")]
        return {f"folder {path}" for path in paths}

    def _mounts(self) -> set[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return {f"mount {line}" for line in lines if str(self.base) in line or any(id in line for id in self._seen)}

    def _others(self) -> set[str]:
        filters = {"label": self.label}
        networks = {f"network {one['Id']}" for one in self.client.networks(filters=filters)}
        return networks | {f"volume {one['Name']}" for one in self.client.volumes(filters=filters)["Volumes"] or []}

    def abandon(self, id: str) -> None:
        _abandon(type(self).__name__, id, str(self.base), self.image, self.host)


class ElsewhereKit(DockerKit):
    """The same engine at a TCP address: as one that shares no directory with the gateway."""

    relays = 1

    def __init__(self) -> None:
        super().__init__()
        self._forwarder = Forwarder(ENGINE.removeprefix("unix://"))
        self.host = self._forwarder.host

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._forwarder.close()


class _OnGvisor(DockerBackend):
    """As if each pool had said so."""

    async def create(self, spec: SandboxSpec) -> Sandbox:
        return await super().create(replace(spec, oci_runtime="runsc"))

    async def check(self, spec: SandboxSpec) -> Sequence[Finding]:
        return await super().check(replace(spec, oci_runtime="runsc"))


class GvisorKit(DockerKit):
    backend_class = _OnGvisor
    shows_processes = False

    def __init__(self) -> None:
        super().__init__()
        self._counts = not ignores_cgroups(self.client.info(), "runsc")

    @property
    def limits_memory(self) -> bool:
        return self._counts and super().limits_memory


def _abandon(kit: str, id: str, *arguments: str) -> None:
    code = (
        "import asyncio, os, signal, sys; from tests.contract import sandboxes\n"
        "async def main():\n"
        f"    kit = sandboxes.{kit}.at(*sys.argv[2:])\n"
        "    async with kit.backend() as backend:\n"
        "        sandbox = await backend.create(sandboxes.spec(sys.argv[1]))\n"
        "        assert await sandboxes.ask(sandbox, 'print(1)') == '1'\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    argv = [sys.executable, "-c", code, id, *arguments]
    done = subprocess.run(argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr


KITS: dict[str, Callable[[], Kit]] = {
    "bubblewrap": BubblewrapKit,
    "docker": DockerKit,
    "elsewhere": ElsewhereKit,
    "gvisor": GvisorKit,
}


def missing_engine(kit: str) -> str:
    """Why a kit cannot run here; "" when it can."""
    if kit == "bubblewrap":
        return ""
    missing = "no Docker Engine answers here: the Docker backend is NOT TESTED"
    if ENGINE.startswith("unix://") and not os.access(ENGINE.removeprefix("unix://"), os.W_OK):
        return missing  # the library leaves open what it could not connect
    try:
        client = docker.APIClient(ENGINE, version="auto")
    except docker.errors.DockerException:
        return missing
    with contextlib.closing(client):
        if kit == "gvisor":
            return _missing_gvisor(client)
    return ""


def _missing_gvisor(client: docker.APIClient) -> str:
    """A runtime may be configured and start nothing: runsc before 2023 has no platform that runs everywhere."""
    runtime = client.info()["Runtimes"].get("runsc")
    if runtime is None:
        return "the Docker Engine has no runtime runsc: gVisor is NOT TESTED"
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    argv = [runtime["path"], *(runtime.get("runtimeArgs") or []), *rootless, "do", "true"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    return f"runsc starts nothing here, so gVisor is NOT TESTED: {done.stderr[-200:]}" if done.returncode else ""


def _import_image(client: docker.APIClient, base: Path) -> str:
    """Of the stand-in's root. Returns its id."""
    root = base / "root"
    _make_root(root)
    shutil.copytree(STANDIN.parent, root / "opt" / "kernelpool", ignore=lambda folder, names: {*names} - {STANDIN.name})
    (root / "opt" / "kernelpool" / STANDIN.name).rename(root / "opt" / "kernelpool" / "__main__.py")
    archive = base / "image.tar"
    with tarfile.open(archive, mode="w") as tar:
        tar.add(root, ".", filter=_readable)
    shutil.rmtree(root)
    changes = [f"LABEL io.kernelpool.test={base.name}", "ENV LEFT_BY_THE_IMAGE=1", "ENV PATH=/bin"]
    answer = client.import_image_from_file(str(archive), repository=f"kptest-{os.urandom(6).hex()}", changes=changes)
    archive.unlink()
    return str(json.loads(answer.splitlines()[-1])["status"])


def _readable(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mode |= 0o044
    return member


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
