"""Gateway: what callers get, what happens when they leave, and what the next gateway finds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from kernelpool.errors import (
    AgentFault,
    Conflict,
    ExecutionNotFound,
    GatewayDraining,
    InvalidIdentifier,
    InvalidIdentifierLength,
    InvalidRequest,
    PayloadTooLarge,
    PoolNotFound,
    SandboxLost,
    SandboxUnreachable,
    SessionNotFound,
)
from kernelpool.gateway import Gateway, PoolSource, Principal, Session, new_execution_id
from kernelpool.journal import Journal
from kernelpool.models import (
    AgentStatus,
    ExecuteRequest,
    Execution,
    ExecutionState,
    ResultOutput,
    StreamOutput,
    WorkspacePath,
)
from kernelpool.pool.settings import PoolSettings
from tests.fakes import METADATA, RUNTIME, FakeAgent, FakeBackend, FakeSandbox

pytestmark = pytest.mark.usefixtures("virtual_clock")

ANNA = Principal("anna", tenant="a")
BEN = Principal("ben", tenant="b")
FOREVER = "while True: pass"


@asynccontextmanager
async def gateway_of(backend: FakeBackend, state: Path, **settings: Any) -> AsyncIterator[Gateway]:
    """Leaves its sandboxes behind, as a killed gateway does."""
    pool = PoolSettings(**{"name": "default", "ready": 1, "max_ready_age": 10**6} | settings)
    source = PoolSource(pool, RUNTIME, backend, METADATA)
    clock = asyncio.get_running_loop().time
    async with (
        Journal(state) as journal,
        Gateway([source], backend.connect, journal, wall=lambda: 10**9 + clock()) as gateway,
    ):
        yield gateway


@pytest.fixture
async def backend(virtual_clock: None) -> AsyncIterator[FakeBackend]:
    backend = FakeBackend()
    yield backend
    backend.is_stuck = False
    for sandbox in list(backend.sandboxes.values()):
        await sandbox.destroy()
    await asyncio.sleep(1)


@pytest.fixture
async def gateway(backend: FakeBackend, tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway_of(backend, tmp_path) as gateway:
        yield gateway


def request(code: str, timeout: float = 60, id: str | None = None) -> ExecuteRequest:
    return ExecuteRequest(id or new_execution_id(), code, timeout)


async def run(gateway: Gateway, code: str, identifier: str = "user", who: Principal = ANNA) -> Execution:
    async with gateway.use(who, "default", identifier) as session:
        return await session.execute(request(code))


def sandbox_of(backend: FakeBackend, session: Session) -> FakeSandbox:
    return backend.sandboxes[session.info.sandbox]


def text(execution: Execution) -> str:
    return "".join(output.text for output in execution.outputs if isinstance(output, StreamOutput))


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


# --- sessions and executions


async def test_variables_persist_in_a_session(gateway: Gateway) -> None:
    await run(gateway, "x = 20")

    execution = await run(gateway, "x + 1")

    assert execution.state is ExecutionState.SUCCEEDED
    assert isinstance(execution.outputs[0], ResultOutput)
    assert execution.outputs[0].data == {"text/plain": "21"}


async def test_tenants_do_not_see_each_others_sessions(gateway: Gateway) -> None:
    await run(gateway, "x = 1", who=ANNA)

    assert (await run(gateway, "x", who=BEN)).state is ExecutionState.FAILED
    assert len(await gateway.list_sessions(ANNA, "default")) == 1
    async with gateway.find(BEN, "default", "user"):
        pass
    await gateway.stop_session(BEN, "default", "user")
    assert len(await gateway.list_sessions(ANNA, "default")) == 1
    assert await gateway.list_sessions(BEN, "default") == []


async def test_find_does_not_allocate(gateway: Gateway) -> None:
    with pytest.raises(SessionNotFound):
        async with gateway.find(ANNA, "default", "user"):
            pass


async def test_a_session_says_that_it_is_new_once(gateway: Gateway) -> None:
    async with gateway.use(ANNA, "default", "user") as first:
        assert first.is_new
    async with gateway.use(ANNA, "default", "user") as second:
        assert not second.is_new
        assert second.info.etag == first.info.etag


async def test_info_tells_when_a_session_was_used_and_when_it_ends(gateway: Gateway) -> None:
    await run(gateway, "1")
    (before,) = await gateway.list_sessions(ANNA, "default")
    await run(gateway, "time.sleep(30)")
    (after,) = await gateway.list_sessions(ANNA, "default")

    assert after.created_at == before.created_at
    assert after.last_accessed_at - before.last_accessed_at > 29
    assert after.expires_at - after.last_accessed_at == pytest.approx(300)


async def test_a_session_in_use_was_used_just_now(gateway: Gateway) -> None:
    async with gateway.use(ANNA, "default", "user") as session:
        before = session.info
        await asyncio.sleep(200)

        assert session.info.last_accessed_at - before.last_accessed_at == pytest.approx(200)
        assert session.info.expires_at - before.expires_at == pytest.approx(200)


async def test_sessions_are_listed_oldest_first(gateway: Gateway) -> None:
    for identifier in ("zzzz", "aaaa", "mmmm"):
        await run(gateway, "1", identifier)

    assert [info.identifier for info in await gateway.list_sessions(ANNA, "default")] == ["zzzz", "aaaa", "mmmm"]


async def test_a_pool_tells_its_numbers(gateway: Gateway) -> None:
    await run(gateway, "1")
    await asyncio.sleep(1)

    info = gateway.pool(ANNA, "default")

    assert (info.ready, info.starting, info.sessions, info.settings.max_sessions) == (1, 0, 1, 10)
    assert gateway.pools(ANNA) == [info]
    assert await gateway.metadata(ANNA, "default") == METADATA


async def test_an_unknown_pool_is_not_found(gateway: Gateway) -> None:
    with pytest.raises(PoolNotFound, match="'other'"):
        gateway.pool(ANNA, "other")
    with pytest.raises(PoolNotFound):
        async with gateway.use(ANNA, "other", "user"):
            pass


@pytest.mark.parametrize("identifier", ["abcd", "a" * 128, "user@example.com", "|-&^%$#(){}[];<>", "a/../b?c=d'\"`~"])
async def test_identifiers_that_azure_takes_are_taken(gateway: Gateway, identifier: str) -> None:
    async with gateway.use(ANNA, "default", identifier) as session:
        assert session.info.identifier == identifier


@pytest.mark.parametrize(
    ("identifier", "error"),
    [
        ("", InvalidIdentifierLength),
        ("abc", InvalidIdentifierLength),
        ("a" * 129, InvalidIdentifierLength),
        ("a b c", InvalidIdentifier),
        ("abcd\n", InvalidIdentifier),
        ("abc\\d", InvalidIdentifier),
        ("übel", InvalidIdentifier),
        ("abc\0", InvalidIdentifier),
    ],
)
async def test_other_identifiers_are_refused(gateway: Gateway, identifier: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        async with gateway.use(ANNA, "default", identifier):
            pass


async def test_a_timeout_above_the_limit_is_refused_and_the_limit_named(gateway: Gateway) -> None:
    async with gateway.use(ANNA, "default", "user") as session:
        for attempt in (session.execute(request("1", 221)), session.submit(request("1", 221))):
            with pytest.raises(InvalidRequest, match="at most 220 seconds"):
                await attempt


async def test_the_same_id_runs_once(gateway: Gateway) -> None:
    async with gateway.use(ANNA, "default", "user") as session:
        await session.execute(request("n = 0"))
        once = request("n += 1", id="once")
        first, second = await asyncio.gather(session.execute(once), session.execute(once))

        assert first == second == await session.execution("once")
        assert text(await session.execute(request("print(n)"))) == "1\n"


async def test_events_come_as_they_happen_and_can_be_resumed(gateway: Gateway) -> None:
    async with gateway.use(ANNA, "default", "user") as session:
        events = [event async for event in session.events(request("print('a'); time.sleep(5); print('b')", id="e"))]
        resumed = [event async for event in session.events("e", after=1)]

        kinds = [event.kind for event in events if event is not None]
        assert kinds == ["state", "output", "output", "state", "done"]
        assert resumed == events[2:]
        with pytest.raises(ExecutionNotFound):
            _ = [event async for event in session.events("unknown")]


# --- callers who leave


async def start(gateway: Gateway, id: str, *, code: str = FOREVER) -> asyncio.Task[Execution]:
    async def call() -> Execution:
        async with gateway.use(ANNA, "default", "user") as session:
            return await session.execute(request(code, id=id))

    task = asyncio.create_task(call())
    await asyncio.sleep(1)
    return task


async def state_of(gateway: Gateway, id: str) -> ExecutionState:
    async with gateway.find(ANNA, "default", "user") as session:
        return (await session.execution(id)).state


async def test_a_caller_who_leaves_stops_what_only_he_was_waiting_for(gateway: Gateway) -> None:
    call = await start(gateway, "e")

    call.cancel()
    await asyncio.sleep(1)

    assert await state_of(gateway, "e") is ExecutionState.CANCELED


async def test_what_somebody_else_waits_for_runs_on(gateway: Gateway) -> None:
    leaver, stayer = await start(gateway, "e"), await start(gateway, "e")

    leaver.cancel()
    await asyncio.sleep(1)
    assert await state_of(gateway, "e") is ExecutionState.RUNNING

    stayer.cancel()
    await asyncio.sleep(1)
    assert await state_of(gateway, "e") is ExecutionState.CANCELED


async def test_what_somebody_watches_runs_until_nobody_does(gateway: Gateway) -> None:
    call = await start(gateway, "e")
    watched = asyncio.Event()

    async def watch() -> None:
        async with gateway.find(ANNA, "default", "user") as session:
            async for _ in session.events("e"):
                watched.set()

    watcher = asyncio.create_task(watch())
    await watched.wait()
    call.cancel()
    await asyncio.sleep(5)
    assert await state_of(gateway, "e") is ExecutionState.RUNNING

    watcher.cancel()
    await asyncio.sleep(5)

    assert await state_of(gateway, "e") is ExecutionState.CANCELED


async def test_a_watcher_who_leaves_stops_nothing_that_a_caller_waits_for(gateway: Gateway) -> None:
    call = await start(gateway, "e")
    async with gateway.find(ANNA, "default", "user") as session:
        events = session.events("e")
        await anext(aiter(events))
        assert isinstance(events, AsyncGenerator)
        await events.aclose()
    await asyncio.sleep(5)

    assert await state_of(gateway, "e") is ExecutionState.RUNNING
    call.cancel()


async def test_an_agent_that_never_answers_a_call_keeps_nobody_for_ever(
    backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def execute(self: FakeAgent, request: ExecuteRequest) -> Execution:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(FakeAgent, "execute", execute)
    async with gateway_of(backend, tmp_path, queue_size=0, max_timeout=100, start_timeout=10) as gateway:
        call = await start(gateway, "e")
        await asyncio.sleep(100 + 4 * 3 + 10 + 30 - 2)
        assert not call.done()
        await asyncio.sleep(2)

        with pytest.raises(AgentFault, match="within 152 s"):
            await call


async def test_a_change_of_a_pool_breaks_no_call_of_a_session_that_is_there(
    backend: FakeBackend, tmp_path: Path
) -> None:
    async with gateway_of(backend, tmp_path, max_timeout=600, start_timeout=10) as gateway:
        async with gateway.use(ANNA, "default", "user") as session:
            await session.submit(ExecuteRequest("first", "import time; time.sleep(500)", 600))
        tight = gateway.source_of("default").settings.model_copy(update={"queue_size": 0, "max_timeout": 60.0})
        gateway.change_pool(PoolSource(tight, RUNTIME, backend, METADATA))

        execution = await run(gateway, "print(1)")

    assert text(execution) == "1\n"


async def test_closing_with_discard_leaves_nothing_while_pools_come_and_go(
    backend: FakeBackend, tmp_path: Path
) -> None:
    sources = [PoolSource(PoolSettings(name=name, ready=1), RUNTIME, backend, METADATA) for name in "abc"]
    async with Journal(tmp_path) as journal, Gateway(sources, backend.connect, journal) as gateway:
        for name in "abc":
            async with gateway.use(ANNA, name, "user"):
                pass
        closing = asyncio.create_task(gateway.close_pool("c"))
        await gateway.aclose(discard=True)
        await closing
    await asyncio.sleep(1)

    assert backend.sandboxes == {}


async def test_what_was_submitted_runs_on_whoever_leaves(gateway: Gateway) -> None:
    async with gateway.use(ANNA, "default", "user") as session:
        await session.submit(request("time.sleep(20)", id="e"))
    waiter = await start(gateway, "e")
    waiter.cancel()
    await asyncio.sleep(30)

    assert await state_of(gateway, "e") is ExecutionState.SUCCEEDED


async def test_a_stream_that_is_left_can_be_taken_up_again(gateway: Gateway) -> None:
    async with gateway.use(ANNA, "default", "user") as session:
        async for event in session.events(request("print('a'); time.sleep(5); print('b')", id="e")):
            if event is not None and event.kind == "output":
                break
        rest = [event async for event in session.events("e", after=event.seq)]  # type: ignore[union-attr]

        assert [event.kind for event in rest if event is not None] == ["output", "state", "done"]


async def test_a_cancel_that_overtakes_its_request_is_sent_again(backend: FakeBackend, gateway: Gateway) -> None:
    async with gateway.use(ANNA, "default", "user") as session:
        call = asyncio.create_task(session.execute(request(FOREVER, id="e")))
        await asyncio.sleep(0)
        call.cancel()  # before the agent has seen it
        await asyncio.sleep(0.1)
        sandbox_of(backend, session).process.submit(request(FOREVER, id="e"))  # now it has
        await asyncio.sleep(2)

        assert (await session.execution("e")).state is ExecutionState.CANCELED


# --- sandboxes that die


async def test_a_death_ends_the_call_and_the_next_one_is_told_what_was_lost(
    backend: FakeBackend, gateway: Gateway
) -> None:
    call = await start(gateway, "e")
    async with gateway.find(ANNA, "default", "user") as session:
        sandbox_of(backend, session).process.die("out of memory")

    with pytest.raises(SandboxLost, match="The session ended: its sandbox died: out of memory"):
        await call
    first, second = await run(gateway, "1"), await run(gateway, "2")
    assert "out of memory" in (first.state_lost_before or "")
    assert second.state_lost_before is None


async def test_a_sandbox_that_does_not_answer_is_destroyed(backend: FakeBackend, gateway: Gateway) -> None:
    async with gateway.use(ANNA, "default", "user") as session:
        sandbox = sandbox_of(backend, session)
        sandbox.process.silent = True

        with pytest.raises(SandboxLost, match="does not answer"):
            await session.list_files(WorkspacePath.parse(""))
    await asyncio.sleep(1)

    assert sandbox.id not in backend.sandboxes
    assert await gateway.list_sessions(ANNA, "default") == []


async def test_a_connection_that_breaks_costs_a_call_and_not_the_session(
    backend: FakeBackend, gateway: Gateway
) -> None:
    await run(gateway, "x = 41")
    async with gateway.use(ANNA, "default", "user") as session:
        sandbox_of(backend, session).process.breaks = 1

        with pytest.raises(SandboxUnreachable):
            await session.execute(request("x + 1"))

        assert (await session.execute(request("print(x + 1)"))).outputs[0] == StreamOutput("stdout", "42\n")


async def test_a_stop_ends_what_runs_and_says_so(gateway: Gateway) -> None:
    call = await start(gateway, "e")

    await gateway.stop_session(ANNA, "default", "user")

    with pytest.raises(SandboxLost, match="it was stopped"):
        await call


# --- files


async def test_files_go_up_and_come_down(gateway: Gateway) -> None:
    path = WorkspacePath.parse("a/b.txt")
    async with gateway.use(ANNA, "default", "user") as session:
        assert (await session.write_file(path, chunks(b"hello ", b"world"))).size == 11
        async with session.read_file(path, 6) as content:
            assert b"".join([chunk async for chunk in content.chunks]) == b"world"
        assert [info.path for info in await session.list_files(WorkspacePath.parse("a"))] == ["a/b.txt"]
        assert (await session.file_info(path)).name == "b.txt"
        await session.delete_file(path)
        assert await session.list_files(WorkspacePath.parse("")) == []


async def test_an_upload_past_the_limit_is_cut_off_and_costs_nobody_the_session(
    backend: FakeBackend, tmp_path: Path
) -> None:
    async with (
        gateway_of(backend, tmp_path, max_upload=10) as gateway,
        gateway.use(ANNA, "default", "user") as session,
    ):
        with pytest.raises(PayloadTooLarge, match="10 bytes"):
            await session.write_file(WorkspacePath.parse("f"), chunks(b"123456", b"7890x"))

        assert await session.list_files(WorkspacePath.parse("")) == []


async def test_an_uploader_who_breaks_off_does_not_look_like_a_dead_sandbox(gateway: Gateway) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError("the client has gone")

    async with gateway.use(ANNA, "default", "user") as session:
        with pytest.raises(ConnectionResetError):
            await session.write_file(WorkspacePath.parse("f"), broken())

        assert await session.list_files(WorkspacePath.parse("")) == []


# --- draining


async def test_draining_refuses_new_work_and_waits_for_callers(gateway: Gateway) -> None:
    call = await start(gateway, "e", code="time.sleep(20); print('done')")
    draining = asyncio.create_task(gateway.drain(60))
    await asyncio.sleep(1)

    with pytest.raises(GatewayDraining):
        async with gateway.use(ANNA, "default", "other"):
            pass
    with pytest.raises(GatewayDraining):
        await run(gateway, "1")
    assert await state_of(gateway, "e") is ExecutionState.RUNNING
    assert await draining == 0
    assert text(await call) == "done\n"


async def test_draining_does_not_wait_for_ever(gateway: Gateway) -> None:
    call = await start(gateway, "e")

    assert await gateway.drain(10) == 1
    call.cancel()


async def test_a_call_that_outlasts_the_gateway_costs_nobody_the_session(backend: FakeBackend, tmp_path: Path) -> None:
    async with gateway_of(backend, tmp_path) as first:
        call = await start(first, "e", code="time.sleep(20); print('done')")

    with pytest.raises(GatewayDraining, match="the session goes on"):
        await call
    async with gateway_of(backend, tmp_path) as second:
        await asyncio.sleep(30)
        assert await state_of(second, "e") is ExecutionState.SUCCEEDED


async def test_who_leaves_a_gateway_that_has_closed_stops_nothing(backend: FakeBackend, tmp_path: Path) -> None:
    async with gateway_of(backend, tmp_path) as first:
        call = await start(first, "e", code="time.sleep(20); print('done')")
        await first.aclose()
        call.cancel()

    async with gateway_of(backend, tmp_path) as second:
        await asyncio.sleep(30)
        assert await state_of(second, "e") is ExecutionState.SUCCEEDED


# --- the next gateway


async def test_a_new_gateway_goes_on_with_sessions_files_and_running_code(backend: FakeBackend, tmp_path: Path) -> None:
    async with gateway_of(backend, tmp_path) as first:
        await run(first, "x = 42")
        async with first.use(ANNA, "default", "user") as session:
            await session.write_file(WorkspacePath.parse("f"), chunks(b"kept"))
            await session.submit(request("time.sleep(20); y = x + 1", id="e"))
        (before,) = await first.list_sessions(ANNA, "default")

    async with gateway_of(backend, tmp_path) as second:
        (after,) = await second.list_sessions(ANNA, "default")
        assert (after.etag, after.sandbox, after.created_at) == (before.etag, before.sandbox, before.created_at)
        assert await state_of(second, "e") is ExecutionState.RUNNING
        await asyncio.sleep(30)
        assert text(await run(second, "print(y)")) == "43\n"
        async with second.find(ANNA, "default", "user") as session:
            assert not session.is_new
            assert (await session.file_info(WorkspacePath.parse("f"))).size == 4


async def test_a_new_gateway_starts_nothing_when_the_old_ready_sandboxes_will_do(
    backend: FakeBackend, tmp_path: Path
) -> None:
    async with gateway_of(backend, tmp_path, ready=3):
        await asyncio.sleep(1)
    async with gateway_of(backend, tmp_path, ready=3) as second:
        await asyncio.sleep(1)

        assert second.pool(ANNA, "default").ready == 3
        assert len(backend.created) == 3


async def test_ready_sandboxes_of_other_settings_are_replaced_and_sessions_kept(
    backend: FakeBackend, tmp_path: Path
) -> None:
    async with gateway_of(backend, tmp_path) as first:
        await run(first, "x = 1")
        await asyncio.sleep(1)
    old = [id for id, sandbox in backend.sandboxes.items() if sandbox.process.activation is None]

    async with gateway_of(backend, tmp_path, limits={"memory": "2Gi"}) as second:
        await asyncio.sleep(1)

        assert not set(old) & set(backend.sandboxes)
        assert (await run(second, "x")).state is ExecutionState.SUCCEEDED


async def test_a_used_sandbox_without_a_record_is_never_handed_to_anybody(backend: FakeBackend, tmp_path: Path) -> None:
    async with gateway_of(backend, tmp_path) as first:
        await run(first, "x = 1")
        (info,) = await first.list_sessions(ANNA, "default")
    (tmp_path / "sessions" / f"{info.sandbox}.json").unlink()

    async with gateway_of(backend, tmp_path):
        assert info.sandbox not in backend.sandboxes


async def test_a_corrupt_record_costs_its_session_and_nothing_else(backend: FakeBackend, tmp_path: Path) -> None:
    async with gateway_of(backend, tmp_path) as first:
        await run(first, "x = 1", "user")
        await run(first, "x = 2", "other")
        sandbox = {info.identifier: info.sandbox for info in await first.list_sessions(ANNA, "default")}
    (tmp_path / "sessions" / f"{sandbox['user']}.json").write_text("{")
    # The sandbox would like to be somebody else's next one.
    process = backend.sandboxes[sandbox["user"]].process
    process.activation = None

    async with gateway_of(backend, tmp_path) as second:
        assert sandbox["user"] not in backend.sandboxes
        assert [info.identifier for info in await second.list_sessions(ANNA, "default")] == ["other"]
        assert not (tmp_path / "sessions" / f"{sandbox['user']}.json").exists()


async def test_of_two_records_of_one_identifier_the_newer_one_counts(backend: FakeBackend, tmp_path: Path) -> None:
    """The older sandbox was being destroyed when the gateway was killed, and the identifier was in use again."""
    async with gateway_of(backend, tmp_path) as first:
        await run(first, "x = 'old'", "old!")
        await asyncio.sleep(1)
        await run(first, "x = 'new'", "user")
        sandbox = {info.identifier: info.sandbox for info in await first.list_sessions(ANNA, "default")}
    file = tmp_path / "sessions" / f"{sandbox['old!']}.json"
    file.write_text(file.read_text().replace("old!", "user"))
    # The old one would like to be somebody else's next one.
    backend.sandboxes[sandbox["old!"]].process.activation = None

    async with gateway_of(backend, tmp_path) as second:
        assert sandbox["old!"] not in backend.sandboxes
        assert not file.exists()
        execution = await run(second, "print(x)")
        assert (text(execution), execution.state_lost_before) == ("new\n", None)


@pytest.mark.parametrize("how", ["dead", "silent"])
async def test_a_session_that_did_not_survive_is_remembered(backend: FakeBackend, tmp_path: Path, how: str) -> None:
    async with gateway_of(backend, tmp_path) as first:
        await run(first, "x = 1")
        (info,) = await first.list_sessions(ANNA, "default")
    if how == "dead":
        backend.sandboxes[info.sandbox].process.die("out of memory")
    else:
        backend.sandboxes[info.sandbox].process.silent = True

    async with gateway_of(backend, tmp_path) as second:
        assert await second.list_sessions(ANNA, "default") == []
        assert info.sandbox not in backend.sandboxes
        assert "when the gateway started again" in ((await run(second, "1")).state_lost_before or "")
        assert len(list((tmp_path / "sessions").iterdir())) == 1


async def test_a_session_that_idled_away_while_no_gateway_ran_ends_at_once(
    backend: FakeBackend, tmp_path: Path
) -> None:
    async with gateway_of(backend, tmp_path, cooldown=5) as first:
        await run(first, "x = 1")
    await asyncio.sleep(100)

    async with gateway_of(backend, tmp_path, cooldown=5) as second:
        await asyncio.sleep(0.1)
        assert await second.list_sessions(ANNA, "default") == []


async def test_sandboxes_of_a_pool_that_is_no_more_are_destroyed(backend: FakeBackend, tmp_path: Path) -> None:
    async with gateway_of(backend, tmp_path, name="old") as first, first.use(ANNA, "old", "user"):
        await asyncio.sleep(1)
    old = set(backend.sandboxes)
    assert len(old) == 2

    async with gateway_of(backend, tmp_path):
        assert not old & set(backend.sandboxes)
        assert list((tmp_path / "sessions").iterdir()) == []


async def test_a_stopped_session_whose_sandbox_could_not_be_destroyed_does_not_come_back(
    backend: FakeBackend, tmp_path: Path
) -> None:
    async with gateway_of(backend, tmp_path) as first:
        await run(first, "x = 1")
        backend.is_stuck = True
        await first.stop_session(ANNA, "default", "user")
    backend.is_stuck = False

    async with gateway_of(backend, tmp_path) as second:
        assert await second.list_sessions(ANNA, "default") == []
        execution = await run(second, "x")
        assert (execution.state, execution.state_lost_before) == (ExecutionState.FAILED, None)


async def test_a_sandbox_cannot_say_whose_session_it_is(backend: FakeBackend, tmp_path: Path) -> None:
    async with gateway_of(backend, tmp_path) as first:
        await run(first, "x = 'anna'", who=ANNA)
        (info,) = await first.list_sessions(ANNA, "default")
    assert not {"session", "identifier", "tenant"} & {field.name for field in fields(AgentStatus)}

    async with gateway_of(backend, tmp_path) as second:
        assert [found.sandbox for found in await second.list_sessions(ANNA, "default")] == [info.sandbox]
        assert await second.list_sessions(BEN, "default") == []


async def test_closing_with_discard_leaves_nothing(backend: FakeBackend, tmp_path: Path) -> None:
    async with gateway_of(backend, tmp_path) as gateway:
        await run(gateway, "1")
        await asyncio.sleep(1)

        await gateway.aclose(discard=True)

    assert backend.sandboxes == {}
    assert list((tmp_path / "sessions").iterdir()) == []


async def test_a_sandbox_is_activated_once(backend: FakeBackend, gateway: Gateway) -> None:
    async with gateway.use(ANNA, "default", "user") as session:
        activation = sandbox_of(backend, session).process.activation
        assert activation is not None

        with pytest.raises(Conflict):
            sandbox_of(backend, session).process.activate(activation)
