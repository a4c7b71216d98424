"""The implementations of `Agent` that the contract suite runs against: the real program, and the fake."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from kernelpool.agents import Agent, HttpAgent
from kernelpool.backends.base import UnixAddress
from kernelpool.models import AgentConfig
from tests.fakes import FakeAgent, FakeProcess

REPOSITORY = Path(__file__).parents[2]
BOOT = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); {{}}from kernelpool.agent.main import main; main()"
LAUNCHER = REPOSITORY / "kernels" / "python" / "launch.py"
SHELL_LAUNCHER = REPOSITORY / "kernels" / "shell" / "launch.py"


def kernel_argv(launcher: Path = LAUNCHER) -> tuple[str, ...]:
    return (sys.executable, "-Xfrozen_modules=off", str(launcher), "-f", "{connection_file}")


@asynccontextmanager
async def real_agent(*, launcher: Path = LAUNCHER, first: str = "", **settings: object) -> AsyncIterator[HttpAgent]:
    """The agent's program outside of any sandbox, with a kernel of ours, in directories of its own. `first` is Python
    that it begins with."""
    with tempfile.TemporaryDirectory(prefix="kp-") as folder, tempfile.TemporaryDirectory(prefix="kp-") as workspace:
        env = {"HOME": workspace, "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        env |= {"MPLCONFIGDIR": f"{folder}/mpl", "IPYTHONDIR": f"{folder}/ipython"}
        config = AgentConfig(
            secret="secret",
            kernel_argv=kernel_argv(launcher),
            kernel_env=env,
            workspace=workspace,
            runtime_dir=folder,
            **settings,  # type: ignore[arg-type]
        )
        file, sock = Path(folder, "config.json"), f"{folder}/agent.sock"
        file.write_text(json.dumps(asdict(config)))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-c", BOOT.format(first), "--listen", f"unix:{sock}", "--config", str(file)
        )
        agent = HttpAgent(UnixAddress(sock), "secret")
        try:
            await agent.wait_ready(60)
            yield agent
        finally:
            await agent.aclose()
            with suppress(ProcessLookupError):
                process.terminate()
            async with asyncio.timeout(60):
                await process.wait()
            await asyncio.to_thread(_kill_kernels, folder)


def _kill_kernels(folder: str) -> None:
    """In a sandbox they go with its process 1; here they outlive an agent that was killed."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            if folder.encode() in file.read_bytes():
                os.kill(int(file.parent.name), signal.SIGKILL)


@asynccontextmanager
async def fake_agent(**_settings: object) -> AsyncIterator[Agent]:
    agent = FakeAgent(FakeProcess())
    yield agent
    await agent.aclose()


AGENTS: dict[str, Callable[..., AbstractAsyncContextManager[Agent]]] = {"real": real_agent, "fake": fake_agent}
