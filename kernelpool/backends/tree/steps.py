"""How a build goes forward: threads and commands that end with it, directories that appear whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from kernelpool.backends.base import Say
from kernelpool.errors import PrepareFailed

P = ParamSpec("P")
T = TypeVar("T")

PART_PREFIX = ".part-"
LOCK_NAME = ".lock"
LOCK_SECONDS = 3600.0
COMMAND_SECONDS = 1800.0
TAIL_LINES = 15
MAX_LINE = 1 << 20


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `asyncio.to_thread`, but a cancelled caller leaves only after the thread has: what comes next may then remove
    the files that the thread was writing. So `function` should take seconds, not minutes."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


async def run(
    argv: Sequence[str],
    what: str,
    *,
    cwd: Path,
    env: Mapping[str, str],
    check: bool = True,
    heard: Callable[[str], None] | None = None,
) -> None:
    """Run to the end, in a process group that dies with a cancelled build; `heard` gets each line of its output.

    Raises `PrepareFailed` with `what`, and the last lines as its note, when it fails (unless not `check`) or takes too
    long.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=cwd,
        env=dict(env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=MAX_LINE,
        start_new_session=True,
        umask=0o022,
    )
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            assert process.stdout is not None
            async for line in process.stdout:
                text = line.decode(errors="replace").rstrip()
                tail.append(text)
                if heard is not None:
                    heard(text)
            code = await process.wait()
    except TimeoutError:
        raise PrepareFailed(f"{what} took more than {COMMAND_SECONDS:g} s") from None
    finally:
        await _end(process)
    if check and code != 0:
        told = "\n".join(tail).replace(str(cwd), "")
        failure = PrepareFailed(f"{what} failed (exit code {code})")
        failure.add_note(told)
        raise failure


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@contextlib.asynccontextmanager
async def exclusive(shelf: Path, say: Say) -> AsyncIterator[None]:
    """One builder at a time per state directory, also between gateways. The lock ends with the process."""
    descriptor = await in_thread(os.open, shelf / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _try_lock(descriptor):
            say("waiting for another gateway that is preparing runtimes")
            await _poll_lock(descriptor)
        yield
    finally:
        os.close(descriptor)


async def _poll_lock(descriptor: int) -> None:
    # flock has no form that waits and can be cancelled; a build takes minutes, so a look twice a second is enough.
    try:
        async with asyncio.timeout(LOCK_SECONDS):
            while not _try_lock(descriptor):  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.5)
    except TimeoutError:
        raise PrepareFailed(f"another gateway has been preparing runtimes for {LOCK_SECONDS:g} s") from None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.asynccontextmanager
async def beside(final: Path) -> AsyncIterator[Path]:
    """A new directory that becomes `final` in one step when the block ends well, and is removed when it does not."""
    part = Path(await in_thread(tempfile.mkdtemp, prefix=PART_PREFIX, dir=final.parent))
    try:
        yield part
        await in_thread(_publish, part, final)
    except BaseException:
        await in_thread(shutil.rmtree, part, ignore_errors=True)
        raise


def _publish(part: Path, final: Path) -> None:
    part.chmod(0o755)
    # The rename must not reach the disk before the files do: a tree that exists is taken to be whole.
    os.sync()
    part.rename(final)


def remove_leftovers(shelf: Path) -> None:
    """What a builder that was killed left behind. Call with the lock held."""
    for part in shelf.glob(PART_PREFIX + "*"):
        shutil.rmtree(part, ignore_errors=True)
