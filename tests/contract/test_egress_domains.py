"""A sandbox that may reach some domains gets to these, by the proxy, and has no other way out of itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kernelpool.agent import forwarder
from kernelpool.backends.base import Backend, Sandbox, SandboxSpec
from kernelpool.egress.decisions import Decision
from kernelpool.egress.doors import SOCKET_INSIDE
from kernelpool.egress.policy import NOTHING, EgressPolicy
from kernelpool.egress.proxy import Proxy
from kernelpool.errors import StartFailed
from tests.contract.sandboxes import ElsewhereKit, Kit, ask, spec
from tests.egress import InProcess, Names, Outside, loopback_is_public, outside

# The forwarder as the program of its own that it also is, and the standard library's client behind it.
THROUGH = f"""
import json, os, socket, subprocess, sys, time, urllib.error, urllib.request
open("/tmp/forwarder.py", "w").write({Path(forwarder.__file__).read_text()!r})
program = subprocess.Popen([sys.executable, "-I", "-S", "/tmp/forwarder.py", {SOCKET_INSIDE!r}])
os.environ.update({forwarder.environment()!r})
def until_open():
    for _ in range(2000):
        try: return socket.create_connection(("127.0.0.1", 3128), 5).close()
        except ConnectionRefusedError: time.sleep(0.02)
until_open()
def get(url):
    try: return urllib.request.urlopen(url, timeout=20).read().decode()
    except urllib.error.HTTPError as error: return f"{{error.code}} {{error.read().decode()}}"
    except OSError as error: return str(error)
def tunnel(host, port):
    connection = socket.create_connection(("127.0.0.1", 3128), 20)
    connection.sendall(f"CONNECT {{host}}:{{port}} HTTP/1.1\\r\\nHost: {{host}}\\r\\n\\r\\n".encode())
    return connection.recv(4096).decode().splitlines()[0]
"""

DIRECT = """
import json, socket
def attempt(call):
    try: call(); return "passed"
    except OSError as error: return type(error).__name__ + " " + str(error.errno)
def tcp(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(5); client.connect((address, 53))
def udp(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client: client.connect((address, 53)); client.send(b"x")
places = ("8.8.8.8", "169.254.169.254", "10.0.0.1", "168.63.129.16", "2606:4700::1111", "fe80::1%1")
print(json.dumps([[attempt(lambda: way(place)) for way in (tcp, udp) for place in places],
                  attempt(lambda: socket.getaddrinfo("a.test", 80)), sorted(n for _, n in socket.if_nameindex())]))
"""

UNREACHABLE = {"101", "113", "99", "22"}
"""No network, no host (as gVisor says it), no such address."""


@dataclass(slots=True)
class World:
    backend: Backend
    keeper: InProcess
    server: Outside
    told: list[Decision]

    def spec(self, *domains: str) -> SandboxSpec:
        return replace(spec(), egress=EgressPolicy.of(domain.format(port=self.server.port) for domain in domains))


@pytest.fixture
def kit(kit: Kit) -> Kit:
    if isinstance(kit, ElsewhereKit):
        pytest.skip("an engine elsewhere gives no egress, which is refused by name")
    return kit


@asynccontextmanager
async def world_of(kit: Kit) -> AsyncIterator[World]:
    told: list[Decision] = []
    names = Names(a_test=["127.0.0.1"], inside_test=["10.0.0.1"])
    async with outside().running() as server, Proxy(names, loopback_is_public, told.append) as proxy:
        keeper = InProcess(proxy)
        async with kit.backend(keeper) as backend:
            yield World(backend, keeper, server, told)
            for sandbox in await backend.adopt():
                await sandbox.destroy()


async def made(world: World, *domains: str) -> Sandbox:
    return await world.backend.create(world.spec(*domains))


async def test_a_sandbox_reaches_what_is_on_its_list_and_is_told_why_it_reaches_nothing_else(kit: Kit) -> None:
    async with world_of(kit) as world:
        sandbox = await made(world, "a.test:{port}", "inside.test")
        port = world.server.port
        answer = await ask(
            sandbox,
            THROUGH + f"print(json.dumps([get('http://a.test:{port}/'), get('http://b.test/'), "
            f"get('http://inside.test/'), tunnel('a.test', {port}), tunnel('b.test', 443), "
            "get('https://b.test/')])); program.kill()",
        )
        await sandbox.destroy()

    allowed, refused, inside, tunnel, no_tunnel, no_https = json.loads(answer)
    assert allowed == "hi"
    assert refused.startswith("403 b.test at port 80 is not among the domains that this session may reach")
    assert inside.startswith("403 inside.test stands for 10.0.0.1, which is not on the public internet")
    assert tunnel == "HTTP/1.1 200 Connection established"
    assert no_tunnel.startswith("HTTP/1.1 403 b.test at port 443")
    assert "b.test at port 443 is not among the domains" in no_https
    assert {decision.sandbox for decision in world.told} == {sandbox.id}


@pytest.mark.parametrize("domains", [(), ("a.test:{port}",)])
async def test_there_is_no_other_way_out_not_even_dns(kit: Kit, domains: tuple[str, ...]) -> None:
    async with world_of(kit) as world:
        sandbox = await made(world, *domains)
        attempts, lookup, interfaces = json.loads(await ask(sandbox, DIRECT))
        await sandbox.destroy()

    assert {attempt.split()[-1] for attempt in attempts} <= UNREACHABLE, attempts
    assert lookup.startswith("gaierror")
    assert interfaces == ["lo"]


async def test_without_a_list_there_is_no_door(kit: Kit) -> None:
    async with world_of(kit) as world:
        sandbox = await made(world)
        answer = await ask(sandbox, f"import os; print(os.path.exists({SOCKET_INSIDE!r}))")
        await sandbox.destroy()

        assert answer == "False"
        assert world.keeper.opened == {}
        assert sandbox.egress == NOTHING


async def test_code_cannot_put_anything_in_the_place_of_its_door(kit: Kit) -> None:
    async with world_of(kit) as world:
        sandbox = await made(world, "a.test")
        answer = await ask(
            sandbox,
            "import os\n"
            "def attempt(call):\n"
            "    try: call(); return 'done'\n"
            "    except OSError: return 'refused'\n"
            f"path = {SOCKET_INSIDE!r}\n"
            "print(*[attempt(call) for call in (lambda: os.unlink(path), lambda: os.rename(path, path + 'x'),\n"
            "    lambda: open(path + 'y', 'w'), lambda: os.chmod(os.path.dirname(path), 0o777))])\n",
        )
        await sandbox.destroy()

    assert answer.split() == ["refused"] * 4


async def test_an_adopted_sandbox_has_its_way_out_again_with_the_policy_that_it_was_made_with(kit: Kit) -> None:
    before = kit.traces()
    async with outside().running() as server:
        policy = EgressPolicy.of([f"a.test:{server.port}"])
        code = THROUGH + f"print(get('http://a.test:{server.port}/')); program.kill()"
        async with (
            Proxy(Names(a_test=["127.0.0.1"]), loopback_is_public, lambda _: None) as proxy,
            kit.backend(InProcess(proxy)) as backend,
        ):
            sandbox = await backend.create(replace(spec(), egress=policy))
            assert await ask(sandbox, code) == "hi"

        # Between two gateways there is nobody to ask.
        async with Proxy(Names(a_test=["127.0.0.1"]), loopback_is_public, lambda _: None) as proxy:
            keeper = InProcess(proxy)
            async with kit.backend(keeper) as backend:
                [adopted] = await backend.adopt()
                answer = await ask(adopted, code)
                await adopted.destroy()

    assert answer == "hi"
    assert keeper.opened == {adopted.id: policy}
    assert adopted.egress == policy
    assert kit.traces() == before


async def test_a_list_is_refused_where_there_is_no_proxy(kit: Kit) -> None:
    before = kit.traces()
    async with kit.backend() as backend:
        with pytest.raises(StartFailed, match="no proxy"):
            await backend.create(replace(spec(), egress=EgressPolicy.of(["a.test"])))

    assert kit.traces() == before


async def test_two_sandboxes_are_told_apart(kit: Kit) -> None:
    async with world_of(kit) as world:
        one, two = await asyncio.gather(made(world, "a.test:{port}"), made(world, "b.test"))
        code = THROUGH + f"print(get('http://a.test:{world.server.port}/')[:3]); program.kill()"
        answers = await asyncio.gather(ask(one, code), ask(two, code))
        await asyncio.gather(one.destroy(), two.destroy())

    assert list(answers) == ["hi", "403"]
