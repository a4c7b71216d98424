"""What the Docker backend alone promises: what the engine is asked for, whom its containers belong to, its absence."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelpool.backends.base import Backend, RuntimeMetadata, Say
from kernelpool.backends.docker import events
from kernelpool.backends.docker.backend import DockerBackend
from kernelpool.backends.docker.engine import Engine
from kernelpool.backends.docker.events import pause_after
from kernelpool.backends.docker.image import Image
from kernelpool.backends.docker.pull import pull
from kernelpool.backends.docker.settings import DockerSettings
from kernelpool.errors import BackendUnavailable, InvalidRequest, PrepareFailed, StartFailed
from kernelpool.runtimes import Runtime
from tests.contract.relay import Relay
from tests.contract.sandboxes import ENGINE, SECRET, DockerKit, ElsewhereKit, GvisorKit, ask, missing_engine, spec

# The docker package leaves the socket of a connection that was refused to the garbage collector.
pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")]

KILL_THE_AGENT = "import os; os.kill(os.getppid(), 9)"


@pytest.fixture(autouse=True)
def no_sockets_left() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(scope="module", params=["docker", "elsewhere", "gvisor"])
def kit(request: pytest.FixtureRequest) -> Iterator[DockerKit]:
    if why := missing_engine(request.param):
        pytest.skip(why)
    kit = {"docker": DockerKit, "elsewhere": ElsewhereKit, "gvisor": GvisorKit}[request.param]()
    yield kit
    kit.close()


@pytest.fixture(scope="module")
def runc() -> Iterator[DockerKit]:
    """For what the engine does, whatever runs the containers."""
    if why := missing_engine("docker"):
        pytest.skip(why)
    kit = DockerKit()
    yield kit
    kit.close()


@pytest.fixture
async def relay(runc: DockerKit) -> AsyncIterator[Relay]:
    async with Relay(runc.base / "engine.sock", ENGINE.removeprefix("unix://")) as relay:
        yield relay
    async with runc.backend() as broom:
        for sandbox in await broom.adopt():
            await sandbox.destroy()


def inspected(kit: DockerKit) -> dict[str, Any]:
    """The only container of a kit."""
    [one] = kit.client.containers(all=True, filters={"label": kit.label})
    found: dict[str, Any] = kit.client.inspect_container(one["Id"])
    return found


async def test_the_engine_is_never_told_the_secret_of_an_agent(kit: DockerKit, backend: Backend) -> None:
    await backend.create(spec("0123456789ab"))

    assert SECRET not in json.dumps(inspected(kit))
    assert not [file for file in (kit.state / "run").rglob("*") if file.is_file()]
    assert SECRET in (kit.state / "sandboxes" / "0123456789ab.json").read_text()
    assert (kit.state / "sandboxes" / "0123456789ab.json").stat().st_mode & 0o777 == 0o600


async def test_nothing_can_be_made_or_removed_in_the_directory_that_is_shared_with_the_host(
    kit: DockerKit, backend: Backend
) -> None:
    if isinstance(kit, ElsewhereKit):
        pytest.skip("there is none")
    sandbox = await backend.create(spec("0123456789ab"))

    seen = await ask(
        sandbox,
        "import os, socket\n"
        "attempts = [lambda: open('/run/kp/x', 'w'), lambda: os.mkdir('/run/kp/x'),\n"
        "    lambda: os.symlink('/', '/run/kp/x'),\n"
        "    lambda: os.unlink('/run/kp/agent.sock'), lambda: os.rename('/run/kp/agent.sock', '/run/kp/x'),\n"
        "    lambda: os.chmod('/run/kp', 0o777), lambda: os.link('/run/kp/agent.sock', '/run/kp/x'),\n"
        "    lambda: socket.socket(socket.AF_UNIX).bind('/run/kp/x'), lambda: os.chown('/run/kp', 65532, 65532)]\n"
        "for attempt in attempts:\n"
        "    try: attempt(); print('done')\n"
        "    except OSError: print('refused')\n"
        "print(os.listdir('/run/kp'))\n",
    )

    assert seen.split("\n") == ["refused"] * 9 + ["['agent.sock']"]
    (own,) = (kit.state / "run").iterdir()
    assert (own / "0123456789ab").stat().st_mode & 0o777 == 0o755
    assert own.stat().st_mode & 0o777 == 0o700


HARDENED = {
    "NetworkMode": "none",
    "Privileged": False,
    "CapAdd": None,
    "CapDrop": ["ALL"],
    "ReadonlyRootfs": True,
    "IpcMode": "private",
    "PidMode": "",
    "UTSMode": "",
    "UsernsMode": "",
    "CgroupnsMode": "private",
    "Init": True,
    "Binds": None,
    "Devices": None,
    "DeviceRequests": None,
    "PortBindings": None,
    "VolumesFrom": None,
    "ShmSize": 64 << 20,
    "Memory": 128 << 20,
    "MemorySwap": 128 << 20,
    "NanoCpus": 1_000_000_000,
    "PidsLimit": 64,
    "OomScoreAdj": 500,
    "OomKillDisable": False,
    "LogConfig": {"Type": "none", "Config": {}},
    "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
    "AutoRemove": False,
    "Tmpfs": {
        "/tmp": "rw,nosuid,nodev,noexec,size=16777216,nr_inodes=3276,mode=1777",
        "/mnt/data": "rw,nosuid,nodev,exec,size=16777216,nr_inodes=3276,mode=0700,uid=65532,gid=65532",
    },
}


async def test_the_engine_is_asked_for_a_hardened_container(kit: DockerKit, backend: Backend) -> None:
    await backend.create(spec("0123456789ab"))

    container = inspected(kit)
    config, host = container["Config"], container["HostConfig"]
    seccomp = json.loads(host["SecurityOpt"][1].removeprefix("seccomp="))
    assert {name: host[name] for name in HARDENED} == HARDENED
    assert host["SecurityOpt"][0] == "no-new-privileges"
    assert seccomp["defaultAction"] == "SCMP_ACT_ERRNO"
    assert {limit["Name"]: limit["Hard"] for limit in host["Ulimits"]}.items() >= {
        "core": 0,
        "nofile": 4096,
        "sigpending": 1024,
    }.items()
    shared = [] if isinstance(kit, ElsewhereKit) else [("bind", "/run/kp", "rprivate")]
    mounts = [(mount["Type"], mount["Destination"], mount["Propagation"]) for mount in container["Mounts"]]
    assert mounts == shared
    assert config["User"] == "65532:65532"
    assert sorted(config["Env"]) == [
        "HOME=/mnt/data",
        "LANG=C.UTF-8",
        "LEFT_BY_THE_IMAGE",  # taken away
        "PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin",
    ]
    assert host["Runtime"] == ("runsc" if isinstance(kit, GvisorKit) else "runc")


async def test_a_container_says_whose_it_is(kit: DockerKit, backend: Backend) -> None:
    await backend.create(spec("0123456789ab"))

    labels = inspected(kit)["Config"]["Labels"]

    assert {name: value for name, value in labels.items() if not name.endswith(".test")} == {
        "io.kernelpool.gateway": (kit.state / "tag").read_text(),
        "io.kernelpool.sandbox": "0123456789ab",
        "io.kernelpool.pool": "contract",
        "io.kernelpool.fingerprint": "v1",
    }


async def test_what_another_gateway_made_on_the_engine_is_left_alone(kit: DockerKit, backend: Backend) -> None:
    sandbox = await backend.create(spec())

    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="kp-") as other:
        async with DockerBackend(Path(other), DockerSettings(host=ENGINE), prepare_image=kit.find) as second:
            assert list(await second.adopt()) == []

    assert await ask(sandbox, "print('alive')") == "alive"


async def test_a_kill_from_outside_is_noticed(kit: DockerKit, backend: Backend) -> None:
    sandbox = await backend.create(spec())
    waiting = asyncio.create_task(sandbox.wait_dead())

    await asyncio.to_thread(kit.client.kill, inspected(kit)["Id"])

    async with asyncio.timeout(60):
        assert await waiting == "its agent ended"


async def test_a_container_that_somebody_removes_is_noticed(kit: DockerKit, backend: Backend) -> None:
    before = kit.traces()
    sandbox = await backend.create(spec())

    await asyncio.to_thread(kit.client.remove_container, inspected(kit)["Id"], force=True)

    async with asyncio.timeout(60):
        assert await sandbox.wait_dead() in ("its container was removed", "its agent ended")
    await sandbox.destroy()
    assert kit.traces() == before


# --- the engine is away


async def test_a_death_that_was_not_heard_of_is_known_when_the_engine_is_back(
    runc: DockerKit, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The new stream tells nothing of the past: as after a long absence, or of an engine that has forgotten.
    monkeypatch.setattr(events, "_OVERLAP", -3600.0)
    async with runc.backend(settings=DockerSettings(host=relay.host)) as backend:
        doomed, other = await backend.create(spec()), await backend.create(spec())
        relay.cut()
        with contextlib.suppress(ConnectionError):
            await ask(doomed, KILL_THE_AGENT)
        assert await ask(other, "print('answers all the same')") == "answers all the same"

        await relay.mend()

        async with asyncio.timeout(60):
            assert await doomed.wait_dead() == "its agent ended"
        with contextlib.suppress(ConnectionError):
            await ask(other, KILL_THE_AGENT)
        async with asyncio.timeout(60):
            assert await other.wait_dead() == "its agent ended"


async def test_without_the_engine_nothing_starts_or_ends_and_that_is_said(runc: DockerKit, relay: Relay) -> None:
    before = runc.traces()
    async with runc.backend(settings=DockerSettings(host=relay.host)) as backend:
        await backend.adopt()
        sandbox = await backend.create(spec())
        relay.cut()

        async with asyncio.timeout(60):
            with pytest.raises(BackendUnavailable, match="Docker Engine"):
                await backend.create(spec())
            with pytest.raises(BackendUnavailable, match="Docker Engine"):
                await sandbox.destroy()
        await relay.mend()

        async with asyncio.timeout(60):
            while runc.traces() != before:
                await asyncio.sleep(0.05)
        await sandbox.destroy()
        assert await sandbox.wait_dead() == "destroyed"


@pytest.mark.parametrize("call", [b"/containers/create", b"/start "])
async def test_what_a_start_had_made_when_the_engine_went_away_goes_when_it_is_back(
    runc: DockerKit, relay: Relay, call: bytes
) -> None:
    before = runc.traces()
    async with runc.backend(settings=DockerSettings(host=relay.host)) as backend:
        await backend.adopt()
        relay.cut_before = call

        with pytest.raises(BackendUnavailable):
            await backend.create(spec())
        assert runc.traces() > before
        await relay.mend()

        async with asyncio.timeout(60):
            while runc.traces() != before:
                await asyncio.sleep(0.05)
        assert await ask(await backend.create(spec()), "print(1)") == "1"


async def test_what_an_overloaded_engine_did_not_remove_in_time_is_removed_later(runc: DockerKit, relay: Relay) -> None:
    before = runc.traces()
    async with runc.backend(settings=DockerSettings(host=relay.host)) as backend:  # to start one may take longer
        await backend.create(spec())
    async with runc.backend(settings=DockerSettings(host=relay.host, call_timeout=5)) as backend:
        [sandbox] = await backend.adopt()
        relay.deaf_to = b"DELETE "

        async with asyncio.timeout(60):
            with pytest.raises(BackendUnavailable):
                await sandbox.destroy()
        relay.deaf_to = b""

        async with asyncio.timeout(60):
            while runc.traces() != before:
                await asyncio.sleep(0.05)


async def test_the_engine_is_asked_for_few_containers_at_once(runc: DockerKit, relay: Relay) -> None:
    async with runc.backend(settings=DockerSettings(host=relay.host, start_concurrency=2)) as backend:
        sandboxes = await asyncio.gather(*(backend.create(spec()) for _ in range(6)))
        await asyncio.gather(*(sandbox.destroy() for sandbox in sandboxes))

    assert relay.most_at_once == 2


def test_the_pauses_between_attempts_grow_and_end_growing() -> None:
    longest = [pause_after(failures, 1.0) for failures in range(1, 100)]

    assert longest == sorted(longest)
    assert (longest[0], longest[-1]) == (0.1, 10.0)
    assert all(pause_after(failures, 0.0) == longest[failures - 1] / 2 for failures in range(1, 100))


async def test_no_engine_at_all_is_a_start_that_fails(kit: DockerKit) -> None:
    settings = DockerSettings(host=f"unix://{kit.base}/none.sock")

    with pytest.raises(StartFailed, match=r"no Docker Engine answers at unix://.*set docker\.host"):
        async with DockerBackend(kit.base / "none", settings):
            pass


async def test_an_engine_behind_ssh_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="neither unix:// nor tcp://"):
        async with DockerBackend(tmp_path / "state", DockerSettings(host="ssh://somewhere")):
            pass


# --- a gateway that is killed


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["_lay_out", "_create", "_run", "_seal"])
async def test_a_gateway_killed_in_the_middle_of_a_start_leaves_work_for_the_next_but_no_trace(
    runc: DockerKit, step: str, when: str
) -> None:
    before = runc.traces()

    await killed_in_the_middle_of_a_start(runc, f"start.Start.{step}", when)
    async with runc.backend() as backend:
        adopted = await backend.adopt()
        for sandbox in adopted:
            await sandbox.destroy()

    assert bool(adopted) == ((step, when) == ("_seal", "after"))
    assert runc.traces() == before


async def killed_in_the_middle_of_a_start(kit: DockerKit, step: str, when: str) -> None:
    """Has another process make a sandbox and be killed before or after `step`: `module.Class.method`."""
    module, kind, method = step.split(".")
    code = f"""
import asyncio, inspect, os, signal
from kernelpool.backends.docker import {module}
from tests.contract import sandboxes

original = getattr({module}.{kind}, {method!r})

def die(*args):
    if {when!r} == "after":
        original(*args)
    os.kill(os.getpid(), signal.SIGKILL)

async def die_later(*args):
    if {when!r} == "after":
        await original(*args)
    os.kill(os.getpid(), signal.SIGKILL)

setattr({module}.{kind}, {method!r}, die_later if inspect.iscoroutinefunction(original) else die)

async def main():
    kit = sandboxes.DockerKit.at({str(kit.base)!r}, {kit.image!r}, {kit.host!r})
    async with kit.backend() as backend:
        await backend.create(sandboxes.spec())

asyncio.run(main())
"""

    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("text", ["", "{}", '{"id": 1', "null", '{"id": "other"}'])
async def test_a_record_that_makes_no_sense_is_removed_with_its_container(runc: DockerKit, text: str) -> None:
    before = runc.traces()
    async with runc.backend() as backend:
        sandbox = await backend.create(spec())
    (runc.state / "sandboxes" / f"{sandbox.id}.json").write_text(text)

    async with runc.backend() as backend:
        assert list(await backend.adopt()) == []

    assert runc.traces() == before


# --- what is refused


async def test_a_runtime_that_the_engine_has_not_is_refused_and_those_it_has_are_named(runc: DockerKit) -> None:
    async with runc.backend() as backend:
        with pytest.raises(InvalidRequest, match=r"no oci_runtime 'kata', only .*runc"):
            await backend.check(replace(spec(), oci_runtime="kata"))


async def test_gpus_are_refused_where_there_are_none(runc: DockerKit) -> None:
    before = runc.traces()
    async with runc.backend() as backend:
        with pytest.raises(InvalidRequest, match="gpus"):
            await backend.check(replace(spec(), gpus="all"))

    assert runc.traces() == before


async def test_an_image_with_volumes_is_refused_since_nothing_limits_them(runc: DockerKit) -> None:
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w").close()
    name = f"kptest-{os.urandom(6).hex()}"
    runc.client.import_image_from_data(empty.getvalue(), repository=name, changes=["VOLUME /data"])

    async def find(engine: Engine, runtime: Runtime, say: Say) -> Image:
        return Image(name, RuntimeMetadata("python", "3", (), 0.0, "standin", "0"))

    try:
        async with DockerBackend(runc.state, DockerSettings(host=ENGINE), prepare_image=find) as backend:
            with pytest.raises(PrepareFailed, match="volumes"):
                await backend.prepare(spec().runtime, lambda _: None)
    finally:
        runc.client.remove_image(name)


@pytest.fixture
def silent_registry() -> Iterator[str]:
    """An image of a registry that takes connections and says nothing; engines believe those on localhost by HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"localhost:{listener.getsockname()[1]}/image:1"


async def test_a_pull_that_nobody_waits_for_any_more_is_given_up_at_once(runc: DockerKit, silent_registry: str) -> None:
    async with Engine(DockerSettings(host=ENGINE)) as engine:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await pull(engine, silent_registry)


async def test_a_pull_of_which_nothing_comes_ends(
    runc: DockerKit, silent_registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernelpool.backends.docker.pull.SILENCE", 0.5)

    async with Engine(DockerSettings(host=ENGINE)) as engine:
        with pytest.raises(PrepareFailed, match=r"nothing came of it for 0\.5 s"):
            await pull(engine, silent_registry)


async def test_the_user_of_sandboxes_cannot_be_the_gateways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65532)

    with pytest.raises(StartFailed, match="65532"):
        async with DockerBackend(tmp_path, DockerSettings(host=ENGINE)):
            pass


async def test_a_run_directory_with_too_long_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="too long"):
        async with DockerBackend(tmp_path, DockerSettings(host=ENGINE, run_dir=tmp_path / ("x" * 100))):
            pass


async def test_a_run_directory_that_is_somebody_elses_is_refused_and_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)

    with pytest.raises(StartFailed, match="others may write"):
        async with DockerBackend(tmp_path / "state", DockerSettings(host=ENGINE, run_dir=tmp_path)):
            pass

    assert tmp_path.stat().st_mode & 0o7777 == 0o1777
