"""What a command wrote before it ended is all there, also when the agent is held up just then."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import tty

from kernelpool.agent.pipes import LINGER, Transcript


async def test_a_terminal_is_read_to_its_end_by_an_agent_that_is_held_up() -> None:
    screen, terminal = os.openpty()
    tty.setraw(terminal)
    os.set_blocking(terminal, False)
    heard: list[str] = []
    transcript = Transcript({"stdout": screen}, lambda _name, text: heard.append(text))
    written = 0
    with contextlib.suppress(BlockingIOError):  # when it is full
        while True:
            written += os.write(terminal, b"x" * 1000)

    asyncio.get_running_loop().call_soon(time.sleep, 2 * LINGER)
    await transcript.settle()

    # Something in the background still has the terminal, so that no end is seen.
    assert len("".join(heard)) == written
    os.close(terminal)
    transcript.close()


async def test_a_terminal_to_which_somebody_goes_on_writing_is_not_read_for_ever() -> None:
    screen, terminal = os.openpty()
    transcript = Transcript({"stdout": screen}, lambda *_: None)
    process = await asyncio.create_subprocess_exec("yes", stdout=terminal)

    await asyncio.wait_for(transcript.settle(), 60)

    process.kill()
    await process.wait()
    os.close(terminal)
    transcript.close()
