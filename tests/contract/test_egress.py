"""A sandbox that may have the outside network gets that and nothing on the way to it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kernelpool.backends import egress
from kernelpool.backends.bubblewrap import BubblewrapBackend
from kernelpool.backends.egress import NetworkProgram, find_programs, host_addresses
from kernelpool.backends.processes import Process
from kernelpool.backends.records import ProcessId
from kernelpool.backends.sandboxed import BubblewrapSandbox
from kernelpool.egress.policy import OUTSIDE
from kernelpool.errors import StartFailed
from tests.contract.sandboxes import BubblewrapKit, ask, spec

PROGRAMS = {program.name: program for program in find_programs()}

ATTEMPT = """
import json, socket
def attempt(address, port, interface, kind):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as client:
        client.settimeout(5)
        try:
            if interface: client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface)
            client.connect((address, port))
            if kind == socket.SOCK_DGRAM: client.send(b"x")
        except TimeoutError: return "lost"
        except OSError: return "refused"
        return "passed"
"""


@pytest.fixture(scope="module")
def kit() -> Iterator[BubblewrapKit]:
    kit = BubblewrapKit()
    yield kit
    kit.close()


@pytest.fixture(params=["pasta", "slirp4netns"])
async def backend(
    kit: BubblewrapKit, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[BubblewrapBackend]:
    if request.param not in PROGRAMS:
        pytest.skip(f"{request.param} is not installed")
    if os.geteuid() != 0 and not os.access("/dev/net/tun", os.W_OK):
        pytest.skip("ordinary users may not open /dev/net/tun on this machine")
    program: NetworkProgram = PROGRAMS[request.param]
    monkeypatch.setattr(egress, "find_programs", lambda: [program])
    async with kit.backend() as backend:
        yield backend
        for sandbox in list(backend._sandboxes.values()):
            await sandbox.destroy()


async def _create(backend: BubblewrapBackend) -> BubblewrapSandbox:
    sandbox = await backend.create(replace(spec(), egress=OUTSIDE))
    assert isinstance(sandbox, BubblewrapSandbox)
    return sandbox


async def _has_ended(id: ProcessId | None) -> bool:
    process = await asyncio.to_thread(Process.open, id)
    if process is None:
        return True
    process.close()
    return False


async def test_only_the_public_internet_can_be_reached(backend: BubblewrapBackend) -> None:
    sandbox = await _create(backend)
    own = [str(network.network_address) for network in host_addresses(Path("/proc/net/fib_trie").read_text())]
    with socket.create_server(("0.0.0.0", 0)) as canary:
        port = canary.getsockname()[1]
        inside = ["10.0.2.2", "10.0.2.3", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "168.63.129.16"]
        code = ATTEMPT + (
            f"tcp = [attempt(a, {port}, i, socket.SOCK_STREAM) for a in {inside + own!r} for i in (b'', b'tap0')]\n"
            f"udp = [attempt(a, {port}, i, socket.SOCK_DGRAM) for a in {inside + own!r} for i in (b'', b'tap0')]\n"
            f"host = [attempt('127.0.0.1', {port}, i, socket.SOCK_STREAM) for i in (b'', b'tap0')]\n"
            f"six = attempt('2001:db8::1', 9, b'tap0', socket.SOCK_DGRAM)\n"
            "public = attempt('198.51.100.9', 9, b'', socket.SOCK_DGRAM)\n"
            "print(json.dumps([tcp, udp, host, six, public]))\n"
        )

        tcp, udp, host, six, public = json.loads(await ask(sandbox, code, timeout=100))

        canary.settimeout(0)
        with pytest.raises(BlockingIOError):
            canary.accept()
    assert own
    assert "passed" not in tcp + host
    assert set(udp) == {"refused"}
    assert six == "refused"
    assert public == "passed"


async def test_loopback_works_inside(backend: BubblewrapBackend) -> None:
    sandbox = await _create(backend)

    answer = await ask(
        sandbox,
        "import socket\n"
        "for family, address in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1')):\n"
        "    server = socket.create_server((address, 0), family=family)\n"
        "    socket.create_connection(server.getsockname()[:2], 5)\n"
        "print('connected')\n",
    )

    assert answer == "connected"


async def test_code_cannot_change_the_network_that_it_has(backend: BubblewrapBackend) -> None:
    sandbox = await _create(backend)

    answer = await ask(
        sandbox,
        "import fcntl, socket, struct\n"
        "s = socket.socket(); request = struct.pack('16sh22x', b'tap0', 0)\n"
        "try: fcntl.ioctl(s, 0x8914, request); print('down')\n"
        "except PermissionError: print('refused')\n"
        "try: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12); print('filter')\n"
        "except OSError: print('refused')\n",
    )

    assert answer.split() == ["refused", "refused"]


async def test_the_network_ends_with_its_sandbox(kit: BubblewrapKit, backend: BubblewrapBackend) -> None:
    before = kit.traces()
    sandbox = await _create(backend)
    network = sandbox.record.network
    assert not await _has_ended(network)

    with pytest.raises((ConnectionError, AssertionError)):
        assert await ask(sandbox, "import os; os.kill(os.getppid(), 9)") == "impossible"
    await sandbox.wait_dead()
    ended = await _has_ended(network)
    await sandbox.destroy()

    assert ended
    assert kit.traces() == before


async def test_the_network_of_an_adopted_sandbox_goes_with_it(kit: BubblewrapKit, backend: BubblewrapBackend) -> None:
    before = kit.traces()
    sandbox = await _create(backend)
    network = sandbox.record.network
    await backend.__aexit__(None, None, None)

    async with kit.backend() as second:
        [adopted] = await second.adopt()
        await adopted.destroy()

    assert network is not None
    assert await _has_ended(network)
    assert kit.traces() == before


async def test_egress_is_refused_where_no_program_can_give_it(
    kit: BubblewrapKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress, "find_programs", list)

    async with kit.backend() as backend:
        with pytest.raises(StartFailed, match="install the package passt"):
            await backend.create(replace(spec(), egress=OUTSIDE))


def test_addresses_of_the_host_are_read_off_the_kernels_table() -> None:
    text = (
        "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 192.0.2.0\n        /24 link UNICAST\n     |-- 192.0.2.2\n"
        "        /32 host LOCAL\nLocal:\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 192.0.2.2\n"
        "        /32 host LOCAL\n     |-- 192.0.2.255\n        /32 link BROADCAST\n"
    )

    assert [str(network) for network in host_addresses(text)] == ["192.0.2.2/32"]
