"""A channel of a kernel that ends: all that had been sent is handed on before its end is told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from kernelpool.agent.channels import RECEIVE_MARK, Channel, Channels

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
    async with asyncio.timeout(30):
        while not heard:
            await asyncio.sleep(0)
    assert not channel.gone.done()

    # From here on the loop stands still until the kernel's end is closed.
    for number in range(count):
        socket.send(str(number).encode())
    socket.close(linger=30_000)
    kernel.term()

    async with asyncio.timeout(30):
        await channel.gone
    channel.close()
    assert [int(text) for (text,) in heard[1:]] == list(range(count))


async def test_a_channel_that_never_met_its_kernel_closes_too(context: Context, tmp_path: Path) -> None:
    channel = Channel(context, zmq.SUB, f"ipc://{tmp_path}/nobody", lambda _frames: None)
    await asyncio.sleep(0)

    channel.close()
    channel.close()

    assert not channel.gone.done()


async def test_stdin_is_connected_when_a_question_over_it_arrives(context: Context, tmp_path: Path) -> None:
    base = f"ipc://{tmp_path}/k-"
    heard: list[list[bytes]] = []
    channels = Channels(
        context, base, on_shell=heard.append, on_iopub=heard.append, on_stdin=heard.append, on_control=heard.append
    )
    shell, stdin = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    shell.bind(f"{base}1")
    async with asyncio.timeout(30):
        await channels.shell.connected
        assert not channels.stdin.connected.done()  # which is late

        stdin.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an error, where it would be lost in silence
        stdin.bind(f"{base}3")
        await channels.stdin.connected
        channels.send("shell", [b"a cell"])
        while not shell.poll(0):
            await asyncio.sleep(0)
        name, _ = shell.recv_multipart()
        stdin.send_multipart([name, b"name?"])
        while not heard:
            await asyncio.sleep(0)

    for each in (channels, shell, stdin):
        each.close()
    assert heard == [[b"name?"]]
