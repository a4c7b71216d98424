"""What every backend promises of the life and death of a sandbox."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from kernelpool.backends.base import Backend
from kernelpool.errors import StartFailed
from tests.contract.sandboxes import SECRET, Kit, ask, spec

KILL_THE_AGENT = "import os; os.kill(os.getppid(), 9)"
LEAVE_A_CHILD = """
import os, time
if os.fork() == 0:
    for fd in range(3): os.close(fd)
    time.sleep(1000)
"""


async def test_a_destroyed_sandbox_leaves_nothing(kit: Kit, backend: Backend) -> None:
    before = kit.traces()
    sandbox = await backend.create(spec())
    assert await ask(sandbox, "print(6 * 7)") == "42"
    alive = kit.traces()

    await sandbox.destroy()

    assert alive > before
    assert kit.traces() == before


async def test_destroy_may_be_called_again_and_by_several_at_once(kit: Kit, backend: Backend) -> None:
    before = kit.traces()
    sandbox = await backend.create(spec())

    await asyncio.gather(*(sandbox.destroy() for _ in range(5)))
    await sandbox.destroy()

    assert kit.traces() == before
    assert await sandbox.wait_dead() == "destroyed"


async def test_a_caller_who_leaves_does_not_stop_a_removal(kit: Kit, backend: Backend) -> None:
    before = kit.traces()
    sandbox = await backend.create(spec())
    leaving = asyncio.create_task(sandbox.destroy())
    await asyncio.sleep(0)

    leaving.cancel()
    await asyncio.wait([leaving])
    await sandbox.destroy()

    assert leaving.cancelled()
    assert kit.traces() == before


async def test_what_code_left_running_goes_with_its_sandbox(kit: Kit, backend: Backend) -> None:
    before = kit.traces()
    sandbox = await backend.create(spec())
    survivor = (
        "import os, signal, time\n"
        "for number in range(1, 32):\n"
        "    if number not in (9, 17, 19): signal.signal(number, signal.SIG_IGN)\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        for fd in range(3): os.close(fd)\n"
        "        time.sleep(1000)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    assert await ask(sandbox, survivor) == ""

    await sandbox.destroy()

    assert kit.traces() == before


async def test_a_start_that_is_cancelled_leaves_nothing(kit: Kit, backend: Backend) -> None:
    before = kit.traces()
    for seconds in (0, 0.001, 0.02, 0.04, 0.06, 0.08, 0.1):
        starting = asyncio.create_task(backend.create(spec()))
        await asyncio.wait([starting], timeout=seconds)

        starting.cancel()
        await asyncio.wait([starting])

        if not starting.cancelled():
            await starting.result().destroy()
        assert kit.traces() == before


async def test_an_id_that_is_taken_is_refused_and_its_owner_lives_on(backend: Backend) -> None:
    sandbox = await backend.create(spec("0123456789ab"))

    with pytest.raises(StartFailed):
        await backend.create(spec("0123456789ab"))

    assert await ask(sandbox, "print('alive')") == "alive"


async def test_the_end_of_the_agent_is_the_end_of_the_sandbox(backend: Backend) -> None:
    sandbox = await backend.create(spec())
    waiters = [asyncio.create_task(sandbox.wait_dead()) for _ in range(2)]
    await ask(sandbox, LEAVE_A_CHILD)

    with contextlib.suppress(ConnectionError):
        await ask(sandbox, KILL_THE_AGENT)

    async with asyncio.timeout(60):
        assert await asyncio.gather(*waiters) == ["its agent ended"] * 2
        assert await sandbox.wait_dead() == "its agent ended"


async def test_sandboxes_are_found_again_after_the_gateway_was_killed(kit: Kit, backend: Backend) -> None:
    await backend.__aexit__(None, None, None)
    kit.abandon("abcdefabcdef")

    async with kit.backend() as second:
        adopted = await second.adopt()

        assert [sandbox.id for sandbox in adopted] == ["abcdefabcdef"]
        [sandbox] = adopted
        assert (sandbox.pool, sandbox.fingerprint, sandbox.secret) == ("contract", "v1", SECRET)
        assert await ask(sandbox, "print('still here')") == "still here"
        with contextlib.suppress(ConnectionError):
            await ask(sandbox, KILL_THE_AGENT)
        async with asyncio.timeout(60):
            assert await sandbox.wait_dead() == "its agent ended"


async def test_dead_sandboxes_are_swept_up_by_the_next_gateway(kit: Kit, backend: Backend) -> None:
    before = kit.traces()
    sandbox = await backend.create(spec())
    with contextlib.suppress(ConnectionError):
        await ask(sandbox, KILL_THE_AGENT)
    await sandbox.wait_dead()
    await backend.__aexit__(None, None, None)
    assert kit.traces() > before

    async with kit.backend() as second:
        assert list(await second.adopt()) == []

    assert kit.traces() == before


async def test_leaving_the_backend_kills_no_sandbox(kit: Kit, backend: Backend) -> None:
    sandbox = await backend.create(spec())

    await backend.__aexit__(None, None, None)

    async with kit.backend() as second:
        [found] = await second.adopt()
        assert found.id == sandbox.id
        assert await ask(found, "print('alive')") == "alive"


async def test_two_gateways_do_not_share_their_sandboxes(kit: Kit, backend: Backend) -> None:
    with pytest.raises(StartFailed, match="another gateway"):
        async with kit.backend():
            pass


async def test_many_start_at_once(kit: Kit, backend: Backend) -> None:
    before = kit.traces()

    sandboxes = await asyncio.gather(*(backend.create(spec()) for _ in range(6)))
    answers = await asyncio.gather(*(ask(sandbox, "print(1 + 1)") for sandbox in sandboxes))
    await asyncio.gather(*(sandbox.destroy() for sandbox in sandboxes))

    assert answers == ["2"] * 6
    assert kit.traces() == before


async def test_code_that_eats_memory_is_killed_and_the_agent_lives(memory_is_limited: None, backend: Backend) -> None:
    sandbox = await backend.create(spec())
    free = _available_memory()

    answer = await ask(sandbox, "x = []\nwhile True: x.append(bytearray(1 << 20))")

    assert answer.endswith("[-9]")
    assert await ask(sandbox, "print('alive')") == "alive"
    async with asyncio.timeout(60):  # others on this machine take some as well, for a while
        while _available_memory() <= free - (256 << 20):
            await asyncio.sleep(0.1)


async def test_memory_that_no_resource_limit_counts_is_limited_too(memory_is_limited: None, backend: Backend) -> None:
    sandbox = await backend.create(spec())

    answer = await ask(
        sandbox,
        "import os\n"
        "fds = [os.memfd_create(str(number)) for number in range(64)]\n"
        "for fd in fds:\n"
        "    for _ in range(16): os.write(fd, bytes(1 << 20))\n",
    )

    assert answer.endswith("[-9]")


async def test_a_sandbox_without_memory_for_its_agent_says_so(memory_is_limited: None, backend: Backend) -> None:
    sandbox = await backend.create(spec(workspace=1 << 30))
    fill = (
        "import os\n"
        "open(f'/proc/{os.getppid()}/oom_score_adj', 'w').write('1000')\n"
        "try:\n"
        "    file = open('/mnt/data/x', 'wb')\n"
        "    while True: file.write(bytes(1 << 20))\n"
        "except OSError: pass\n"
    )

    with contextlib.suppress(ConnectionError):
        await ask(sandbox, fill)

    async with asyncio.timeout(60):
        assert await sandbox.wait_dead() == "out of memory"


async def test_a_fork_bomb_stays_in_its_sandbox(kit: Kit, backend: Backend) -> None:
    before = kit.traces()
    bombed, other = await asyncio.gather(backend.create(spec()), backend.create(spec()))
    bomb = asyncio.create_task(ask(bombed, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"))
    async with asyncio.timeout(60):
        while kit.shows_processes and len([one for one in kit.traces() - before if one.startswith("process")]) < 50:
            await asyncio.sleep(0.05)

    answer = await ask(other, "print(1 + 1)")
    await bombed.destroy()
    await other.destroy()
    await asyncio.wait([bomb])

    assert answer == "2"
    assert kit.traces() == before


@pytest.mark.parametrize(("place", "size"), [("/mnt/data", 16 << 20), ("/tmp", 16 << 20), ("/dev/shm", 64 << 20)])
async def test_a_full_disk_is_an_error_of_the_code_that_fills_it(backend: Backend, place: str, size: int) -> None:
    sandbox = await backend.create(spec(memory=256 << 20))

    answer = await ask(
        sandbox,
        "import errno\n"
        "written = 0\n"
        "try:\n"
        f"    file = open('{place}/x', 'wb', buffering=0)\n"
        "    while True: written += file.write(bytes(1 << 20))\n"
        "except OSError as error: print(errno.errorcode[error.errno], written)\n",
    )

    assert answer == f"ENOSPC {size}"


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no MemAvailable")
