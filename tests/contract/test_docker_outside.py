"""A Docker sandbox that may have the outside network gets that and nothing on the way to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kernelpool.backends.base import Sandbox
from kernelpool.backends.docker import outside
from kernelpool.backends.docker.backend import DockerBackend
from kernelpool.backends.docker.engine import Engine
from kernelpool.backends.docker.outside import Outside, refuse_unproven
from kernelpool.backends.egress import host_addresses
from kernelpool.egress.policy import OUTSIDE
from kernelpool.errors import InvalidRequest
from tests.contract.sandboxes import DockerKit, ask, spec
from tests.contract.test_egress import ATTEMPT
from tests.engine import image_of

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def kit() -> Iterator[DockerKit]:
    kit = DockerKit()
    image_of("net")
    yield kit
    kit.close()


@pytest.fixture
async def backend(kit: DockerKit) -> AsyncIterator[DockerBackend]:
    async with kit.backend() as backend:
        yield backend
    async with kit.backend() as broom:
        for sandbox in await broom.adopt():
            await sandbox.destroy()


async def made(backend: DockerBackend) -> Sandbox:
    return await backend.create(replace(spec(), egress=OUTSIDE))


async def test_one_that_starts_while_the_last_one_goes_has_its_network(
    backend: DockerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, ensured = await made(backend), asyncio.Event()

    async def ensure(engine: Engine, tag: str) -> Outside:
        found = await outside.ensure(engine, tag)
        ensured.set()
        return found

    async def forget(engine: Engine, tag: str) -> None:
        """At the worst moment, where there is one."""
        starting = asyncio.create_task(made(backend))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await ensured.wait()
        await outside.forget(engine, tag)
        started.set_result(starting)

    started: asyncio.Future[asyncio.Task[Sandbox]] = asyncio.get_running_loop().create_future()
    monkeypatch.setattr("kernelpool.backends.docker.account.ensure", ensure)
    monkeypatch.setattr("kernelpool.backends.docker.account.forget", forget)

    await last.destroy()
    sandbox = await (await started)

    assert await ask(sandbox, "print(1)") == "1"


async def test_only_the_public_internet_can_be_reached_from_a_container(backend: DockerBackend) -> None:
    sandbox, other = await made(backend), await made(backend)
    theirs = await ask(other, "import socket; print(socket.gethostbyname(socket.gethostname()))")
    own = [str(network.network_address) for network in host_addresses(Path("/proc/net/fib_trie").read_text())]
    with socket.create_server(("0.0.0.0", 0)) as canary:
        port = canary.getsockname()[1]
        inside = ["10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "168.63.129.16", theirs]
        code = ATTEMPT.replace("interface: client.setsockopt", "False: client.setsockopt") + (
            f"tcp = [attempt(a, {port}, b'', socket.SOCK_STREAM) for a in {inside + own!r}]\n"
            f"udp = [attempt(a, {port}, b'', socket.SOCK_DGRAM) for a in {inside + own!r}]\n"
            f"host = attempt('127.0.0.1', {port}, b'', socket.SOCK_STREAM)\n"
            "six = attempt('2001:db8::1', 9, b'', socket.SOCK_DGRAM)\n"
            "public = attempt('198.51.100.9', 9, b'', socket.SOCK_DGRAM)\n"
            "print(json.dumps([tcp, udp, host, six, public, sorted(n for _, n in socket.if_nameindex())]))\n"
        )

        tcp, udp, host, six, public, interfaces = json.loads(await ask(sandbox, code, timeout=100))

        canary.settimeout(0)
        with pytest.raises(BlockingIOError):
            canary.accept()
    assert own
    assert interfaces == ["eth0", "lo"]
    assert "passed" not in tcp
    assert set(udp) == {"refused"}
    assert host == "refused"
    assert six == "refused"
    assert public == "passed"


async def test_code_in_a_container_has_no_right_to_its_network(backend: DockerBackend) -> None:
    sandbox = await made(backend)

    answer = await ask(
        sandbox,
        "import fcntl, os, socket, struct\n"
        "s = socket.socket(); request = struct.pack('16sh22x', b'eth0', 0)\n"
        "def attempt(call):\n"
        "    try: call(); return 'done'\n"
        "    except OSError: return 'refused'\n"
        "print(attempt(lambda: fcntl.ioctl(s, 0x8914, request)),\n"
        "      attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)),\n"
        "      attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 255)),\n"
        "      attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)))\n"
        "print(os.path.exists('/proc/1/root/opt/holder'), len([p for p in os.listdir('/proc') if p.isdigit()]) < 8)\n",
    )

    assert answer.split() == ["refused"] * 4 + ["False", "True"]


async def test_a_holder_has_no_rights_once_the_sandbox_is_there(kit: DockerKit, backend: DockerBackend) -> None:
    sandbox = await made(backend)
    [holder] = [one for one in kit.client.containers(filters={"label": kit.label}) if one["Names"][0].endswith("-net")]
    pid = kit.client.inspect_container(holder["Id"])["State"]["Pid"]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{children[0]}/status").read_text().splitlines() if ":\t" in line
    )

    assert sandbox.egress == OUTSIDE
    assert status["Uid"].split() == ["65532"] * 4
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"] == "1"


async def test_the_bridge_goes_with_the_last_sandbox_that_is_on_it(kit: DockerKit, backend: DockerBackend) -> None:
    before = kit.traces()
    sandbox = await made(backend)
    assert [trace for trace in kit.traces() if trace.startswith("network ")]
    await sandbox.destroy()

    assert kit.traces() == before


async def test_an_adopted_sandbox_keeps_its_network_and_its_filter(kit: DockerKit) -> None:
    before = kit.traces()
    async with kit.backend() as backend:
        await made(backend)
    async with kit.backend() as backend:
        [sandbox] = await backend.adopt()
        code = ATTEMPT + "print(attempt('10.1.2.3', 9, b'', socket.SOCK_DGRAM), attempt('198.51.100.9', 9, b'', 2))"
        answer = await ask(sandbox, code)
        policy = sandbox.egress
        await sandbox.destroy()

    assert answer.split() == ["refused", "passed"]
    assert policy == OUTSIDE
    assert kit.traces() == before


async def test_a_sandbox_whose_holder_ends_is_dead(kit: DockerKit, backend: DockerBackend) -> None:
    sandbox = await made(backend)
    [holder] = [one for one in kit.client.containers(filters={"label": kit.label}) if one["Names"][0].endswith("-net")]
    kit.client.kill(holder["Id"])

    assert await sandbox.wait_dead() == "its network's holder ended"


@pytest.mark.parametrize("runtime", ["runsc", "kata", "crun", "youki", "runc-gvisor"])
def test_a_runtime_that_the_filter_is_not_known_to_hold_is_refused(runtime: str) -> None:
    info = {"DefaultRuntime": "runc", "Runtimes": {"runc": {"path": "runc"}, runtime: {"path": f"/usr/bin/{runtime}"}}}

    refuse_unproven(spec(), info)
    with pytest.raises(InvalidRequest, match=f"egress = true cannot be given with the oci_runtime {runtime}"):
        refuse_unproven(replace(spec(), oci_runtime=runtime), info)
    with pytest.raises(InvalidRequest, match="no packet filter"):
        refuse_unproven(spec(), {**info, "DefaultRuntime": runtime})
    with pytest.raises(InvalidRequest, match="no packet filter"):
        refuse_unproven(spec(), {"DefaultRuntime": "runc", "Runtimes": {"runc": {"path": f"/usr/bin/{runtime}"}}})
