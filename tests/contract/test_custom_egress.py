"""Custom containers are held to the same policies, by their holder: from their first instruction on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kernelpool.backends.base import Sandbox, SandboxSpec, UnixAddress
from kernelpool.backends.container import KNOCK_SOCKET, ContainerSpec
from kernelpool.egress.policy import OUTSIDE, EgressPolicy
from kernelpool.egress.proxy import Proxy
from tests.contract.sandboxes import DockerKit, ask, spec
from tests.contract.test_egress import ATTEMPT
from tests.contract.test_egress_domains import DIRECT
from tests.egress import InProcess, Names, loopback_is_public, outside
from tests.engine import base_image, image_of

pytestmark = pytest.mark.engine

PORT = 8080
# Runs each piece of Python that a connection sends, as the stand-in of agents does.
PROGRAM = f"""
import os, socket, subprocess, sys, threading
first = os.environ.get("FIRST")
first = subprocess.run([sys.executable, "-c", first], stdout=-1, stderr=-2, text=True).stdout if first else ""
def serve(connection):
    with connection:
        code = b"".join(iter(lambda: connection.recv(65536), b""))
        done = subprocess.run([sys.executable, "-c", code.decode()], stdout=-1, stderr=-2)
        connection.sendall(done.stdout + f"[{{done.returncode}}]".encode())
os.environ["SAID"] = first
listener = socket.create_server(("127.0.0.1", {PORT}))
while True:
    threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
"""
GET = """
import json, urllib.error, urllib.request
def get(url):
    try: return urllib.request.urlopen(url, timeout=20).read().decode()
    except urllib.error.HTTPError as error: return f"{error.code} {error.read().decode()}"
    except OSError as error: return str(error)
"""


@pytest.fixture(scope="module")
def kit() -> Iterator[DockerKit]:
    kit = DockerKit()
    image_of("net")
    yield kit
    kit.close()


def custom(kit: DockerKit, policy: EgressPolicy, first: str = "") -> SandboxSpec:
    command = ("python3", "-c", PROGRAM)
    container = ContainerSpec(base_image(kit.client), PORT, command, env={"FIRST": first} if first else {})
    return replace(spec(), container=container, egress=policy)


async def until_up(sandbox: Sandbox) -> None:
    assert isinstance(sandbox.address, UnixAddress)
    knock = str(Path(sandbox.address.path).with_name(KNOCK_SOCKET))
    async with asyncio.timeout(60):
        while True:
            reader, writer = await asyncio.open_unix_connection(knock)
            up = await reader.read()
            writer.close()
            if up:
                return
            await asyncio.sleep(0.05)


async def test_a_custom_container_reaches_its_list_from_its_first_instruction_on(kit: DockerKit) -> None:
    before = kit.traces()
    async with outside().running() as server:
        policy = EgressPolicy.of([f"a.test:{server.port}"])
        url = f"http://a.test:{server.port}/"
        async with Proxy(Names(a_test=["127.0.0.1"]), loopback_is_public, lambda _: None) as proxy:
            keeper = InProcess(proxy)
            async with kit.backend(keeper) as backend:
                sandbox = await backend.create(custom(kit, policy, first=GET + f"print(get({url!r}), end='')"))
                await until_up(sandbox)
                answer = await ask(
                    sandbox,
                    GET + f"import os\nprint(json.dumps([os.environ['SAID'], get({url!r}), get('http://b.test/')]))",
                )
                direct = await ask(sandbox, DIRECT)
                await sandbox.destroy()

    first, allowed, refused = json.loads(answer)
    assert first == allowed == "hi"
    assert refused.startswith("403 b.test at port 80 is not among the domains")
    attempts, lookup, interfaces = json.loads(direct)
    assert {attempt.split()[-1] for attempt in attempts} <= {"101", "99", "22"}
    assert lookup.startswith("gaierror")
    assert interfaces == ["lo"]
    assert kit.traces() == before


async def test_a_custom_container_with_the_outside_network_is_behind_the_filter(kit: DockerKit) -> None:
    before = kit.traces()
    async with kit.backend() as backend:
        sandbox = await backend.create(custom(kit, OUTSIDE))
        await until_up(sandbox)
        places = ("10.1.2.3", "169.254.169.254", "198.51.100.9")
        code = ATTEMPT + f"print(*[attempt(a, 9, b'', socket.SOCK_DGRAM) for a in {places!r}])"
        answer = await ask(sandbox, code)
        await sandbox.destroy()

    assert answer.split() == ["refused", "refused", "passed"]
    assert kit.traces() == before
