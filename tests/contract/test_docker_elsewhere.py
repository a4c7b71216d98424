"""Sandboxes on an engine that shares no directory with the gateway: the way to them, and what an absence costs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from kernelpool.agents import HttpAgent
from kernelpool.backends.base import Sandbox
from kernelpool.backends.container import ContainerSpec
from kernelpool.backends.docker import lines
from kernelpool.backends.docker.lines import RELAY_USER
from kernelpool.backends.docker.settings import DockerSettings
from kernelpool.egress.policy import OUTSIDE, EgressPolicy
from kernelpool.errors import AgentFault, BackendUnavailable, InvalidRequest, SandboxLost, StartFailed
from tests.contract.forwarder import Forwarder
from tests.contract.relay import Relay
from tests.contract.sandboxes import ENGINE, SECRET, DockerKit, ElsewhereKit, ask, missing_engine, spec
from tests.contract.test_docker import KILL_THE_AGENT, inspected, killed_in_the_middle_of_a_start

# The docker package leaves the socket of a connection that was refused to the garbage collector.
pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")]


@pytest.fixture(autouse=True)
def no_sockets_left() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(scope="module")
def kit() -> Iterator[ElsewhereKit]:
    if why := missing_engine("elsewhere"):
        pytest.skip(why)
    kit = ElsewhereKit()
    yield kit
    kit.close()


@pytest.fixture(autouse=True)
async def nothing_left(kit: ElsewhereKit) -> AsyncIterator[None]:
    """Whatever a test that fails left alive is removed."""
    yield
    async with kit.backend() as broom:
        for sandbox in await broom.adopt():
            await sandbox.destroy()


@pytest.fixture
async def relay(kit: ElsewhereKit) -> AsyncIterator[Relay]:
    async with Relay(kit.base / "engine.sock", ENGINE.removeprefix("unix://")) as relay:
        yield relay


@pytest.fixture
def cuttable(kit: ElsewhereKit, relay: Relay) -> Iterator[DockerSettings]:
    """The engine by way of the relay."""
    forwarder = Forwarder(str(relay.path))
    yield DockerSettings(host=forwarder.host)
    forwarder.close()


async def broken(sandbox: Sandbox) -> str:
    """How a call of its agent ends that cannot be answered."""
    agent = HttpAgent(sandbox.address, sandbox.secret)
    try:
        await agent.status()
    except (BackendUnavailable, SandboxLost, AgentFault) as error:
        return type(error).__name__
    finally:
        await agent.aclose()
    return "answered"


# --- the engine is away


async def test_an_engine_that_is_away_costs_no_sandbox_and_is_not_taken_for_its_death(
    kit: ElsewhereKit, relay: Relay, cuttable: DockerSettings
) -> None:
    async with kit.backend(settings=cuttable) as backend:
        await backend.adopt()
        sandbox = await backend.create(spec())
        assert await ask(sandbox, "open('/mnt/data/x', 'w').write('kept')") == ""
        relay.cut()

        async with asyncio.timeout(60):
            while await broken(sandbox) != "BackendUnavailable":
                await asyncio.sleep(0.05)
        await relay.mend()

        async with asyncio.timeout(60):
            while await broken(sandbox) == "BackendUnavailable":
                await asyncio.sleep(0.05)
        assert await ask(sandbox, "print(open('/mnt/data/x').read())") == "kept"
        await sandbox.destroy()


async def test_an_engine_that_does_not_answer_soon_counts_as_away(
    kit: ElsewhereKit, relay: Relay, cuttable: DockerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_SOON", 0.3)
    async with kit.backend(settings=cuttable.model_copy(update={"call_timeout": 10})) as backend:
        sandbox = await backend.create(spec())
        pid = _relay_of(kit)
        assert pid
        relay.deaf_to = b"/exec"

        os.kill(pid, signal.SIGKILL)

        async with asyncio.timeout(60):
            while await broken(sandbox) != "BackendUnavailable":
                await asyncio.sleep(0.05)
        relay.deaf_to = b""
        async with asyncio.timeout(60):
            while await broken(sandbox) == "BackendUnavailable":
                await asyncio.sleep(0.05)
        assert await ask(sandbox, "print(1)") == "1"
        await sandbox.destroy()


async def test_a_sandbox_that_is_dead_is_not_taken_for_an_engine_that_is_away(
    kit: ElsewhereKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_SOON", 60.0)  # a busy engine may take its time, and counts as away then
    async with kit.backend() as backend:
        sandbox = await backend.create(spec())

        with contextlib.suppress(ConnectionError):
            await ask(sandbox, KILL_THE_AGENT)

        assert await broken(sandbox) == "SandboxLost"
        async with asyncio.timeout(60):
            assert await sandbox.wait_dead() == "its agent ended"
        await sandbox.destroy()


async def test_a_relay_that_somebody_kills_is_replaced(kit: ElsewhereKit) -> None:
    async with kit.backend() as backend:
        sandbox = await backend.create(spec())
        assert await ask(sandbox, "print(1)") == "1"
        pid = _relay_of(kit)
        assert pid

        os.kill(pid, signal.SIGKILL)

        # What comes before the gateway has heard of it may still be carried by the old line, and breaks.
        async with asyncio.timeout(60):
            while await _answer(sandbox, "print(2)") != "2":
                await asyncio.sleep(0.05)
        assert _relay_of(kit) not in (0, pid)
        await sandbox.destroy()


async def _answer(sandbox: Sandbox, code: str) -> str:
    """Nothing when the connection broke."""
    with contextlib.suppress(ConnectionError):
        return await ask(sandbox, code)
    return ""


def _relay_of(kit: ElsewhereKit) -> int:
    """Its process on this machine, or 0."""
    [one] = kit.client.containers(filters={"label": kit.label})
    uid = int(RELAY_USER.partition(":")[0])
    for process in kit.client.top(one["Id"], "-eo pid,uid")["Processes"]:
        if int(process[1]) == uid:
            return int(process[0])
    return 0


# --- the way to a sandbox


async def test_code_can_neither_stop_the_relay_nor_read_what_it_passes(kit: ElsewhereKit) -> None:
    async with kit.backend() as backend:
        sandbox = await backend.create(spec())

        seen = await ask(
            sandbox,
            "import os, signal\n"
            "pids = [pid for pid in os.listdir('/proc') if pid.isdigit()]\n"
            "relays = [pid for pid in pids if os.stat(f'/proc/{pid}').st_uid == 65533]\n"
            "print(len(relays))\n"
            "own = f'/proc/{relays[0]}'\n"
            "for attempt in (lambda: os.kill(int(relays[0]), signal.SIGSTOP), lambda: os.kill(int(relays[0]), 9),\n"
            "                lambda: open(f'{own}/mem', 'rb'), lambda: os.listdir(f'{own}/fd'),\n"
            "                lambda: open(f'{own}/fd/0', 'rb'), lambda: open(f'{own}/environ', 'rb').read()):\n"
            "    try: attempt(); print('done')\n"
            "    except OSError: print('refused')\n",
        )

        assert seen.split() == ["1"] + ["refused"] * 6
        await sandbox.destroy()


async def test_what_the_engine_knows_of_a_relay_holds_no_secret(kit: ElsewhereKit) -> None:
    async with kit.backend() as backend:
        sandbox = await backend.create(spec())
        facts = inspected(kit)

        [run] = [kit.client.exec_inspect(id) for id in facts["ExecIDs"]]

        assert run["ProcessConfig"]["user"] == RELAY_USER
        assert run["ProcessConfig"]["privileged"] is False
        assert SECRET not in str(run)
        assert facts["HostConfig"]["NetworkMode"] == "none"
        assert not facts["HostConfig"]["PortBindings"]
        await sandbox.destroy()


async def test_gvisor_is_reached_by_a_line_too(kit: ElsewhereKit) -> None:
    if why := missing_engine("gvisor"):
        pytest.skip(why)
    async with kit.backend() as backend:
        sandbox = await backend.create(replace(spec(), oci_runtime="runsc"))

        assert inspected(kit)["HostConfig"]["Runtime"] == "runsc"
        assert await ask(sandbox, "print(6 * 7)") == "42"
        await sandbox.destroy()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["_create", "_run", "_answered", "_seal"])
async def test_a_gateway_killed_in_the_middle_of_a_start_elsewhere_leaves_no_trace(
    kit: ElsewhereKit, step: str, when: str
) -> None:
    before = kit.traces()

    await killed_in_the_middle_of_a_start(kit, f"elsewhere.StartElsewhere.{step}", when)
    async with kit.backend() as backend:
        adopted = await backend.adopt()
        for sandbox in adopted:
            await sandbox.destroy()

    assert bool(adopted) == ((step, when) == ("_seal", "after"))
    assert kit.traces() == before


# --- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def _certificates(authority: trustme.CA, folder: Path) -> Path:
    """As `DOCKER_CERT_PATH` names them."""
    client = authority.issue_cert("gateway.example")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    client.private_key_pem.write_to_path(folder / "key.pem")
    for pem in client.cert_chain_pems:
        pem.write_to_path(folder / "cert.pem", append=True)
    return folder


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[str]:
    """Where the engine speaks TLS, and wants a certificate of who asks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    forwarder = Forwarder(ENGINE.removeprefix("unix://"), context)
    yield forwarder.host
    forwarder.close()


async def test_all_that_goes_to_an_engine_with_tls_goes_through_its_tls(
    kit: DockerKit, authority: trustme.CA, secure: str, tmp_path: Path
) -> None:
    settings = DockerSettings(host=secure, tls_verify=True, cert_path=_certificates(authority, tmp_path))
    async with kit.backend(settings=settings) as backend:
        sandbox = await backend.create(spec())

        assert await ask(sandbox, "print('x' * 300_000)") == "x" * 300_000
        await sandbox.destroy()


async def test_an_engine_of_another_authority_gets_nothing(kit: DockerKit, secure: str, tmp_path: Path) -> None:
    settings = DockerSettings(host=secure, tls_verify=True, cert_path=_certificates(trustme.CA(), tmp_path))

    with pytest.raises(StartFailed, match="no Docker Engine answers"):
        async with kit.backend(settings=settings):
            pass


# --- what is not to be had


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"egress": OUTSIDE}, "egress = true"),
        ({"egress": EgressPolicy.of(["example.com"])}, "list of domains"),
        ({"container": ContainerSpec("nginx", 80)}, "custom containers"),
    ],
)
async def test_what_only_an_engine_here_has_is_refused_by_name(
    kit: ElsewhereKit, wanted: dict[str, Any], told: str
) -> None:
    before = kit.traces()
    async with kit.backend() as backend:
        for call in (backend.check, backend.create):
            with pytest.raises(InvalidRequest, match=rf"{told}.*docker\.run_dir.*docker\.host"):
                await call(replace(spec(), **wanted))

    assert kit.traces() == before


async def test_an_image_of_a_custom_container_is_not_fetched_for_nothing(kit: ElsewhereKit) -> None:
    async with kit.backend() as backend:
        with pytest.raises(InvalidRequest, match="custom containers"):
            await backend.prepare_container(ContainerSpec("nginx", 80), None, lambda _: None)
