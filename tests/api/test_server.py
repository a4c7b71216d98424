"""The whole gateway as the command line runs it, with sandboxes in memory: start, refusal, drain, stop, clean-up."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kernelpool import backends, scratch, server
from kernelpool.auth.initial import TOKEN_FILE
from kernelpool.backends.base import Finding, SandboxSpec
from kernelpool.config import Settings
from kernelpool.errors import InvalidRequest, StartFailed
from kernelpool.sources import describe
from tests.fakes import FakeBackend, FakeSandbox

WORLD: dict[Path, dict[str, FakeSandbox]] = {}
"""The sandboxes of each state directory: they outlive the gateway."""
TOKEN = "a-token-for-tests-only"


class KeptBackend(FakeBackend):
    def __init__(self, state: Path, *_: object, **__: object) -> None:
        super().__init__()
        self.sandboxes = WORLD.setdefault(state, {})


class LeakyBackend(KeptBackend):
    async def check(self, spec: SandboxSpec) -> Sequence[Finding]:
        return [
            Finding("network", False, "the host's", "none", "Close it."),
            Finding("version", False, "old", "new", essential=False),
        ]


@pytest.fixture(autouse=True)
def fake_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Any = backends.BACKENDS
    monkeypatch.setitem(registry, "kept", f"{__name__}:KeptBackend")
    monkeypatch.setitem(registry, "leaky", f"{__name__}:LeakyBackend")


def settings_of(folder: Path, backend: str = "kept", **more: Any) -> Settings:
    pool = {"backend": backend, "ready": 1, "max_sessions": 3}
    return Settings.model_validate({"state_dir": folder, "port": 0, "pools": {"python": pool}, **more})


class Running:
    """A gateway in a task, what it said, and a client of it."""

    def __init__(
        self, task: asyncio.Task[None], stop: server.Stop, said: list[str], http: aiohttp.ClientSession
    ) -> None:
        self.task = task
        self.stop = stop
        self.said = said
        self.http = http

    @property
    def endpoint(self) -> str:
        return str(re.findall(r"https?://\S+", "\n".join(self.said))[0])

    async def run(
        self, code: str, identifier: str = "abcd-1", token: str = TOKEN, pool: str = "python"
    ) -> tuple[int, Any]:
        base = self.endpoint.rpartition("/")[0]
        url = f"{base}/{pool}/executions?api-version=2025-10-02-preview&identifier={identifier}"
        async with self.http.post(url, json={"code": code}, headers={"Authorization": f"Bearer {token}"}) as response:
            return response.status, await response.json()

    async def manage(self, method: str, pool: str, body: Any = None) -> tuple[int, Any]:
        url = f"{self.endpoint.rpartition('/')[0]}/{pool}"
        async with self.http.request(method, url, json=body, headers={"Authorization": f"Bearer {TOKEN}"}) as response:
            return response.status, await response.json()

    async def probe(self, path: str) -> int:
        async with self.http.get(self.endpoint.replace("/pools/python", path)) as response:
            return response.status

    async def finish(self) -> None:
        self.stop()
        await asyncio.wait_for(self.task, 60)


@asynccontextmanager
async def gateway_of(settings: Settings, serve: Any = server.serve) -> AsyncIterator[Running]:
    said: list[str] = []
    greeted = asyncio.Event()

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("curl "):
            greeted.set()

    stop = server.Stop()
    task = asyncio.create_task(serve(settings, say, stop, lambda sandbox: FakeBackend().connect(sandbox)))
    try:
        waiting = asyncio.create_task(greeted.wait())
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED, timeout=60)
        waiting.cancel()
        if task.done():
            await task
        async with aiohttp.ClientSession() as http:
            yield Running(task, stop, said, http)
    finally:
        stop()
        stop()
        if not task.done():
            await asyncio.wait((task,), timeout=60)
        asyncio.get_running_loop().remove_signal_handler(15)
        asyncio.get_running_loop().remove_signal_handler(2)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_the_curl_line_of_the_greeting_works_when_pasted(tmp_path: Path) -> None:
    async with gateway_of(settings_of(tmp_path)) as running:
        [line] = [line for line in running.said if line.startswith("curl ")]
        pasted = await asyncio.create_subprocess_shell(
            line, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        output, _ = await pasted.communicate()

    assert b'"executionResult":2' in output


async def test_the_token_is_shown_once_and_works_ever_after(tmp_path: Path) -> None:
    async with gateway_of(settings_of(tmp_path)) as first:
        [token] = re.findall(r"Token \(shown only now\): +(\S+)", "\n".join(first.said))
        await first.finish()
    async with gateway_of(settings_of(tmp_path)) as second:
        assert token not in "\n".join(second.said)
        assert (await second.run("1", token=token))[0] == 200
        assert (await second.run("1", token=token + "x"))[0] == 401


async def test_a_configured_token_is_neither_shown_nor_kept(tmp_path: Path) -> None:
    async with gateway_of(settings_of(tmp_path, token=TOKEN)) as running:
        assert (await running.run("1"))[0] == 200
        assert TOKEN not in "\n".join(running.said)

    assert not (tmp_path / TOKEN_FILE).exists()


async def test_a_stopped_gateway_leaves_its_sessions_to_the_next(tmp_path: Path) -> None:
    async with gateway_of(settings_of(tmp_path, token=TOKEN)) as first:
        await first.run("x = 41")
        await first.finish()
    async with gateway_of(settings_of(tmp_path, token=TOKEN)) as second:
        _, answer = await second.run("x + 1")

    assert answer["result"]["executionResult"] == 42


async def test_pools_made_and_changed_while_it_ran_are_there_after_a_restart_with_their_sessions(
    tmp_path: Path,
) -> None:
    async with gateway_of(settings_of(tmp_path, token=TOKEN)) as first:
        assert (await first.manage("PUT", "second", {"backend": "kept", "ready": 0}))[0] == 201
        assert (await first.manage("PATCH", "python", {"cooldown": 17}))[0] == 200
        await first.run("x = 41", pool="second")
        await first.finish()

    async with gateway_of(settings_of(tmp_path, token=TOKEN)) as again:
        assert (await again.run("x + 1", pool="second"))[1]["result"]["executionResult"] == 42
        assert (await again.manage("GET", "python"))[1]["settings"]["cooldown"] == 17
        assert any("pool python" in line and "pools/python.json" in line for line in again.said)


async def test_a_pool_that_would_not_isolate_is_not_made(tmp_path: Path) -> None:
    async with gateway_of(settings_of(tmp_path, token=TOKEN)) as running:
        status, answer = await running.manage("PUT", "second", {"backend": "leaky"})

        assert (status, answer["error"]["code"]) == (503, "SandboxStartFailed")
        assert (await running.manage("GET", "second"))[0] == 404
        assert not (tmp_path / "pools").exists()


async def test_a_stored_pool_that_cannot_be_read_keeps_the_gateway_from_starting(tmp_path: Path) -> None:
    (tmp_path / "pools").mkdir()
    (tmp_path / "pools" / "second.json").write_text('{"name": "second", "ready": "many"}')

    with pytest.raises(StartFailed, match=r"second\.json"):
        async with gateway_of(settings_of(tmp_path)):
            pass


async def test_sessions_are_destroyed_when_that_was_asked_for(tmp_path: Path) -> None:
    async with gateway_of(settings_of(tmp_path, token=TOKEN, stop_sessions=True)) as running:
        await running.run("x = 41")
        await running.finish()

    assert WORLD[tmp_path / "kept"] == {}


async def test_while_draining_callers_are_served_and_nobody_new_is_taken(tmp_path: Path) -> None:
    async with gateway_of(settings_of(tmp_path, token=TOKEN)) as running:
        await running.run("import time; go = False")
        call = asyncio.create_task(running.run("while not go: pass\n7"))
        [process] = [
            sandbox.process for sandbox in WORLD[tmp_path / "kept"].values() if sandbox.process.activation is not None
        ]
        async with asyncio.timeout(30):
            while process.status().running == 0:
                await asyncio.sleep(0.01)
        running.stop()
        async with asyncio.timeout(30):
            while await running.probe("/readyz") == 200:
                await asyncio.sleep(0.01)

        refused = await running.run("1", identifier="abcd-2")
        process.kernel._variables["go"] = True
        status, answer = await call
        await asyncio.wait_for(running.task, 60)

    assert refused[0] == 503
    assert refused[1]["error"]["code"] == "GatewayDraining"
    assert (status, answer["result"]["executionResult"]) == (200, 7)


async def test_a_second_signal_ends_the_waiting(tmp_path: Path) -> None:
    async with gateway_of(settings_of(tmp_path, token=TOKEN, drain_seconds=3600)) as running:
        call = asyncio.create_task(running.run("while True: pass"))
        async with asyncio.timeout(30):
            while not any(sandbox.process.status().running for sandbox in WORLD[tmp_path / "kept"].values()):
                await asyncio.sleep(0.01)
        running.stop()
        await asyncio.sleep(0)
        running.stop()

        await asyncio.wait_for(running.task, 60)
        with pytest.raises(aiohttp.ClientError):
            await call


async def test_a_backend_that_does_not_isolate_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="network"):
        async with gateway_of(settings_of(tmp_path, "leaky")):
            pass

    assert not (tmp_path / TOKEN_FILE).exists()  # nobody was shown a token, so none was made


async def test_a_backend_that_does_not_isolate_serves_when_told_so(tmp_path: Path) -> None:
    async with gateway_of(settings_of(tmp_path, "leaky", allow_insecure=True)) as running:
        assert await running.probe("/healthz") == 200
        assert any("DOES NOT HOLD" in line and "Close it." in line for line in running.said)


async def test_a_state_directory_has_one_gateway(tmp_path: Path) -> None:
    async with gateway_of(settings_of(tmp_path)):
        with pytest.raises(StartFailed, match="another gateway"):
            async with gateway_of(settings_of(tmp_path)):
                pass


async def test_a_port_that_is_taken_is_said_at_once(tmp_path: Path) -> None:
    async with gateway_of(settings_of(tmp_path / "a")) as running:
        port = int(running.endpoint.split(":")[2].split("/")[0])
        with pytest.raises(StartFailed, match=f":{port}"):
            async with gateway_of(settings_of(tmp_path / "b", port=port)):
                pass


@pytest.mark.parametrize("pool", [{"backend": "vax"}, {"backend": "kept", "runtime": "cobol"}])
async def test_what_does_not_exist_is_named_with_what_does(tmp_path: Path, pool: dict[str, str]) -> None:
    settings = Settings.model_validate({"state_dir": tmp_path, "port": 0, "pools": {"python": pool}})

    with pytest.raises(InvalidRequest, match=r"vax|cobol"):
        async with gateway_of(settings):
            pass


async def test_cleanup_destroys_what_a_gateway_left(tmp_path: Path) -> None:
    async with gateway_of(settings_of(tmp_path, token=TOKEN)) as running:
        await running.run("x = 41")
        await running.finish()
    assert WORLD[tmp_path / "kept"]

    count = await server.cleanup(settings_of(tmp_path), lambda line: None)

    assert count >= 1
    assert WORLD[tmp_path / "kept"] == {}
    assert list((tmp_path / "sessions").iterdir()) == []


async def test_a_command_has_a_gateway_beside_another_one_and_leaves_nothing(tmp_path: Path) -> None:
    async with gateway_of(settings_of(tmp_path)), AsyncExitStack() as stack:
        for folder in ("1", "2"):
            await stack.enter_async_context(gateway_of(settings_of(tmp_path, token=TOKEN), server.serve_command))
            await until(partial(WORLD.get, tmp_path / "scratch" / folder / "kept"))

    assert [WORLD[tmp_path / "scratch" / folder / "kept"] for folder in ("1", "2")] == [{}, {}]


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


async def left_by_a_command(settings: Settings) -> dict[str, FakeSandbox]:
    """As by one that was killed."""
    folder = settings.state_dir / "scratch/1"
    async with gateway_of(settings.model_copy(update={"state_dir": folder})) as running:
        await running.run("x = 41")
        await running.finish()
    assert WORLD[folder / "kept"]
    return WORLD[folder / "kept"]


async def test_a_command_finds_nothing_of_one_that_was_killed(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, token=TOKEN)
    sandboxes = await left_by_a_command(settings)
    old = set(sandboxes)

    async with gateway_of(settings, server.serve_command):
        await until(lambda: sandboxes.keys() - old)  # one of its own, which it has a moment after it greets
        assert old.isdisjoint(sandboxes)

    assert sandboxes == {}


async def test_cleanup_destroys_what_a_command_left_that_was_killed(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, token=TOKEN)
    sandboxes = await left_by_a_command(settings)

    async with gateway_of(settings.model_copy(update={"state_dir": tmp_path / "scratch/2"})):  # one that runs
        await until(lambda: WORLD[tmp_path / "scratch/2/kept"])
        await server.cleanup(settings, lambda line: None)
        assert WORLD[tmp_path / "scratch/2/kept"]

    assert sandboxes == {}


async def test_commands_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "MOST", 1)
    async with gateway_of(settings_of(tmp_path), server.serve_command):
        with pytest.raises(StartFailed, match="1 other commands"):
            async with gateway_of(settings_of(tmp_path), server.serve_command):
                pass


@pytest.mark.parametrize(
    ("more", "warns"),
    [({"host": "0.0.0.0"}, True), ({}, False), ({"host": "0.0.0.0", "trusted_proxies": ["10.0.0.1"]}, False)],
)
async def test_tokens_in_the_clear_are_warned_of(tmp_path: Path, more: dict[str, Any], warns: bool) -> None:
    async with gateway_of(settings_of(tmp_path, **more)) as running:
        assert any("in the clear" in line for line in running.said) == warns


async def test_the_doctor_reports_each_pool_also_beside_a_gateway(tmp_path: Path) -> None:
    async with gateway_of(settings_of(tmp_path)):
        findings = await server.doctor(settings_of(tmp_path, "leaky"), lambda line: None)

    assert [finding.name for finding in findings["python"]] == ["network", "version"]
    assert describe(findings["python"][0]) == ("network: DOES NOT HOLD (seen the host's, wanted none)\n    Close it.")
