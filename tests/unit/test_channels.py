"""A channel of a kernel that ends: all that had been sent is handed on before its end is told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from kernelpool.agent.channels import RECEIVE_MARK, Channel

Context = zmq.Context[zmq.Socket[bytes]]


@pytest.fixture
def context() -> Iterator[Context]:
    context: Context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.mark.parametrize("count", [0, 1, RECEIVE_MARK - 10])
async def test_the_end_is_told_after_all_that_came_before_it(context: Context, tmp_path: Path, count: int) -> None:
    endpoint = f"ipc://{tmp_path}/s"
    heard: list[list[bytes]] = []
    channel = Channel(context, zmq.DEALER, endpoint, heard.append)
    kernel: Context = zmq.Context()
    socket = kernel.socket(zmq.DEALER)
    socket.bind(endpoint)
    socket.send(b"here")
    async with asyncio.timeout(10):
        while not heard:
            await asyncio.sleep(0)
    assert not channel.gone.done()

    # From here on the loop stands still until the kernel's end is closed.
    for number in range(count):
        socket.send(str(number).encode())
    socket.close(linger=2000)
    kernel.term()

    async with asyncio.timeout(10):
        await channel.gone
    channel.close()
    assert [int(text) for (text,) in heard[1:]] == list(range(count))


async def test_a_channel_that_never_met_its_kernel_closes_too(context: Context, tmp_path: Path) -> None:
    channel = Channel(context, zmq.SUB, f"ipc://{tmp_path}/nobody", lambda _frames: None)
    await asyncio.sleep(0)

    channel.close()
    channel.close()

    assert not channel.gone.done()
