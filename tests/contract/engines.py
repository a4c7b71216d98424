"""A Docker Engine of a test's own, which it may kill. Without networks, and away from the machine's."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import docker
import docker.errors

_SECONDS = 60


class OwnEngine:
    def __init__(self, *, live_restore: bool) -> None:
        # Short, for the sockets in it.
        self.base = Path(tempfile.mkdtemp(prefix="kpd-", dir="/var/tmp"))
        self._live_restore = live_restore
        self._containerd: subprocess.Popen[bytes] | None = None
        self._dockerd: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"unix://{self.base}/docker.sock"

    async def start(self) -> None:
        """Again too, after `kill`."""
        if self._containerd is None:
            self._containerd = self._run(
                ["containerd", *self._places(root="c-root", state="c-state", address="c.sock", config="c.toml")]
            )
            await self._until(lambda: (self.base / "c.sock").exists(), self._containerd)
        self._dockerd = self._run(
            [
                # In a network of its own: it would delete the bridge of the machine's engine.
                *("unshare", "--net", "dockerd", "-H", self.host, f"--containerd={self.base}/c.sock"),
                *self._places(
                    **{"config-file": "daemon.json", "data-root": "data", "exec-root": "exec", "pidfile": "pid"}
                ),
                f"--live-restore={str(self._live_restore).lower()}",
                *("--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"),
            ]
        )
        await self._until(self._answers, self._dockerd)

    async def kill(self) -> None:
        """The engine, as by SIGKILL; what runs the containers lives on."""
        assert self._dockerd is not None
        await _end(self._dockerd, signal.SIGKILL)

    async def close(self) -> None:
        for process in (self._dockerd, self._containerd):
            if process is not None:
                await _end(process, signal.SIGTERM)
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in reversed([point for point in points if point.startswith(f"{self.base}/")]):
            await asyncio.to_thread(subprocess.run, ["umount", "-l", point], check=False)
        await asyncio.to_thread(shutil.rmtree, self.base)

    def _places(self, **names: str) -> list[str]:
        for name in ("daemon.json", "c.toml"):
            (self.base / name).write_text("{}" if name.endswith("json") else "")
        return [f"--{option}={self.base / name}" for option, name in names.items()]

    def _run(self, argv: list[str]) -> subprocess.Popen[bytes]:
        with open(self.base / "log", "ab") as log:
            return subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)

    async def _until(self, holds: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        async with asyncio.timeout(_SECONDS):
            while not await asyncio.to_thread(holds):
                assert process.poll() is None, (self.base / "log").read_text()[-2000:]
                await asyncio.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with contextlib.closing(docker.APIClient(self.host, version="auto")) as client:
                return bool(client.ping())
        except docker.errors.DockerException:
            return False


async def _end(process: subprocess.Popen[bytes], number: int) -> None:
    process.send_signal(number)
    await asyncio.to_thread(process.wait, _SECONDS)
