"""The Python client against a real gateway: one suite for both of its faces, on good networks and on bad ones."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import subprocess
import sys
import tracemalloc
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kernelpool.client import (
    AsyncClient,
    CellOutput,
    CellState,
    Client,
    ConnectionBroken,
    Done,
    ExecutionState,
    FileNotFound,
    InvalidRequest,
    OutputEvent,
    PoolNotFound,
    RangeNotSatisfiable,
    Retries,
    SessionNotFound,
    StreamOutput,
    TryLater,
    Unauthorized,
    UnexpectedAnswer,
    Unreachable,
)
from kernelpool.client.profiles import Profile, save_profiles
from tests.e2e.faces import Threaded
from tests.e2e.gateways import TOKEN, Gateway
from tests.e2e.proxies import answer, canned, cutting

Connect = Callable[..., Any]


@pytest.fixture(params=["async", "sync"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Makes a client of either face."""

    def make(url: str, token: Any = TOKEN, **options: Any) -> Any:
        return (
            AsyncClient(url, token, **options) if request.param == "async" else Threaded(Client(url, token, **options))
        )

    return make


@pytest.fixture
async def client(gateway: Gateway, connect: Connect) -> AsyncIterator[Any]:
    async with connect(url_of(gateway)) as made:
        yield made


@pytest.fixture
async def session(client: Any) -> AsyncIterator[Any]:
    async with client.pool("python").session() as made:
        yield made


def url_of(gateway: Gateway) -> str:
    return f"http://127.0.0.1:{gateway.port}"


async def test_a_profile_leads_to_its_gateway(gateway: Gateway, tmp_path: Path) -> None:
    file = tmp_path / "profiles.toml"
    await asyncio.to_thread(save_profiles, {"work": Profile(url_of(gateway), TOKEN)}, file)

    async with await asyncio.to_thread(AsyncClient.from_profile, "work", file=file) as client:
        assert [pool.name for pool in await client.pools()] == ["python"]
    with await asyncio.to_thread(Client.from_profile, "work", file=file) as blocking:
        assert [pool.name for pool in await asyncio.to_thread(blocking.pools)] == ["python"]


async def test_state_stays_and_code_that_raises_is_a_result(session: Any) -> None:
    await session.run("x = 41")

    good, bad = await session.run("print('hi'); x + 1"), await session.run("1 / 0")

    assert (good.ok, good.stdout, good.result, good.cause) == (True, "hi\n", 42, "completed")
    assert (bad.ok, bad.status, bad.error.name) == (False, ExecutionState.FAILED, "ZeroDivisionError")
    assert "ZeroDivisionError" in bad.error.traceback
    assert bad.result is None


async def test_a_value_is_told_from_none_and_from_a_figure(session: Any) -> None:
    nothing, empty = await session.run("x = 1"), await session.run("''")
    figure = await session.run("import matplotlib.pyplot as p; p.plot([1, 2]); p.show(); 'text'")

    assert (nothing.result, empty.result) == (None, "")
    assert figure.result == "'text'"
    assert [image.format for image in figure.images] == ["png"]
    assert figure.images[0].data.startswith(b"\x89PNG")
    assert figure.images[0].files == figure.files


async def test_long_output_is_not_cut(session: Any) -> None:
    result = await session.run("print('x' * 100_000)")

    assert len(result.stdout) == 100_001
    assert not result.truncated


async def test_a_timeout_is_a_result_that_says_so(session: Any) -> None:
    result = await session.run("import time\nprint('before', flush=True)\ntime.sleep(60)", timeout=5)

    assert (result.cause, result.interrupted, result.stdout) == ("timed_out", True, "before\n")
    assert result.error.name == "Timeout"


async def test_a_command_runs_beside_the_interpreter(session: Any) -> None:
    text = await session.shell("echo out; echo err >&2; exit 3")
    words = await session.shell(["printf", "%s|", "a b", "$HOME"])
    typed = await session.shell("cat", stdin="typed")
    terminal = await session.shell("[ -t 1 ] && stty size", pty=True)

    assert (text.ok, text.exit_code, text.status, text.stdout, text.stderr) == (
        False,
        3,
        ExecutionState.FAILED,
        "out\n",
        "err\n",
    )
    assert (words.ok, words.exit_code, words.stdout) == (True, 0, "a b|$HOME|")
    assert (typed.stdout, terminal.stdout) == ("typed", "24 80\n")
    assert text.error is None


async def test_a_command_out_of_time_or_canceled_has_no_exit_code(session: Any) -> None:
    late = await session.shell("echo on; sleep 60", timeout=5)
    async for event in session.stream_shell("echo on; sleep 60", id="watched"):
        if isinstance(event, OutputEvent):
            await session.execution("watched").cancel()
    canceled = event.result

    assert (late.exit_code, late.status, late.cause, late.stdout) == (None, ExecutionState.FAILED, "timed_out", "on\n")
    assert (late.error.name, late.seconds) == ("Timeout", 5)
    assert (canceled.exit_code, canceled.status) == (None, ExecutionState.CANCELED)


async def test_what_happens_is_told_while_it_happens(session: Any) -> None:
    code = "import time\nprint('first', flush=True)\nwhile not __import__('os').path.exists('go'): time.sleep(0.01)\n7"
    seen = []
    async for event in session.stream(code):
        seen.append(event)
        if isinstance(event, OutputEvent) and isinstance(event.output, StreamOutput):
            await session.files.upload(b"", "go")

    assert isinstance(seen[-1], Done)
    assert seen[-1].result.result == 7
    assert [event.id for event in seen] == sorted({event.id for event in seen})


def text_of(event: OutputEvent) -> str:
    assert isinstance(event.output, StreamOutput)
    return event.output.text


async def test_a_stream_that_breaks_is_taken_up_where_it_was(gateway: Gateway, connect: Connect) -> None:
    code = (
        "import os, time\nfor n in range(10):\n    print(f'tick{n}', flush=True)\n    time.sleep(0.05)\n"
        "    while not os.path.exists('go'): time.sleep(0.01)"
    )
    async with cutting(gateway.port, at=b"tick5") as proxy, connect(proxy.url) as client:
        async with client.pool("python").session() as session:
            events: list[Any] = []
            async for event in session.stream(code):
                events.append(event)
                # Not before: one that breaks ere anything has come is sent again, for nobody knows that it was taken.
                if isinstance(event, OutputEvent) and text_of(event) == "tick0\n":
                    await asyncio.to_thread(gateway.session(session.identifier).upload, "go", b"")

        assert proxy.left == 0
        assert proxy.received.count(b"POST ") == 1
    text = "".join(text_of(event) for event in events if isinstance(event, OutputEvent))
    assert text == "".join(f"tick{n}\n" for n in range(10))


async def test_what_may_have_arrived_before_a_break_does_not_run_twice(gateway: Gateway, connect: Connect) -> None:
    async with cutting(gateway.port, at=b"", times=2) as proxy, connect(proxy.url) as client:
        async with client.pool("python").session() as session:
            first = await session.run("runs = globals().get('runs', 0) + 1; runs")
            second = await session.run("runs")

        assert proxy.received.count(b"POST ") == 4
    assert (first.result, second.result) == (1, 1)


COUNT_RUNS = "runs = globals().get('runs', 0) + 1"
NOTEBOOK: dict[str, Any] = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {},
    "cells": [
        {"cell_type": "code", "id": id, "metadata": {}, "source": source, "outputs": [], "execution_count": None}
        for id, source in [
            ("a", COUNT_RUNS),
            ("b", "print('tick'); runs * n"),
            ("c", "1 / 0"),
        ]
    ],
}


async def test_a_notebook_is_run_and_what_its_session_ran_is_a_notebook_again(session: Any) -> None:
    heard: list[Any] = []

    done = await session.run_notebook(NOTEBOOK, parameters={"n": 2}, cell_timeout=30, on_cell=heard.append)

    assert (done.ok, done.executed, done.cell, done.cause) == (False, 4, "c", "raised")
    assert done.message == "ZeroDivisionError: division by zero"
    assert [cell["id"] for cell in done.notebook["cells"]][1:] == ["a", "b", "c"]
    assert done.notebook["cells"][2]["outputs"][1]["data"]["text/plain"] == "2"
    states = [(each.index, each.state) for each in heard if isinstance(each, CellState) and each.state != "queued"]
    assert states == [(n, state) for n in range(4) for state in ("running", "failed" if n == 3 else "succeeded")]
    shown: Any = next(each.event for each in heard if isinstance(each, CellOutput))
    assert shown.output.text == "tick\n"
    assert [cell["source"] for cell in (await session.notebook())["cells"]][1] == COUNT_RUNS
    assert [(each.origin, each.cell) for each in await session.executions()][1:] == [
        ("notebook", cell) for cell in "abc"
    ]
    with pytest.raises(InvalidRequest, match="nbformat 3 or 4"):
        await session.run_notebook({"cells": []})


async def test_a_run_of_a_notebook_that_breaks_is_taken_up_and_runs_nothing_twice(
    gateway: Gateway, connect: Connect
) -> None:
    async with cutting(gateway.port, at=b"tick") as proxy, connect(proxy.url) as client:
        async with client.pool("python").session() as session:
            done = await session.run_notebook(NOTEBOOK, parameters={"n": 1})

        assert proxy.left == 0
    assert done.notebook["cells"][2]["outputs"][1]["data"]["text/plain"] == "1"


async def test_who_is_canceled_cancels_a_cell_that_it_has_not_heard_of(gateway: Gateway) -> None:
    notebook = {**NOTEBOOK, "cells": [{**NOTEBOOK["cells"][0], "source": "import time; time.sleep(600)"}]}
    async with cutting(gateway.port, at=b"", times=0) as proxy, AsyncClient(proxy.url, TOKEN) as client:
        proxy.silent_after = b"/notebook?"
        async with client.pool("python").session() as session:
            await session.run("1")
            running = asyncio.create_task(session.run_notebook(notebook))
            async with asyncio.timeout(60):
                while len(executions := await session.executions()) < 2:
                    await asyncio.sleep(0.01)

            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

            assert (await session.execution(executions[1].id).poll()).status is ExecutionState.CANCELED


async def test_without_retries_a_break_is_told(gateway: Gateway, connect: Connect) -> None:
    async with cutting(gateway.port, at=b"") as proxy, connect(proxy.url, retries=Retries(0)) as client:
        with pytest.raises(ConnectionBroken):
            await client.pools()


@pytest.mark.parametrize(("retries", "passes"), [(Retries(), True), (Retries(0), False)])
async def test_a_busy_gateway_is_asked_again_when_it_says(connect: Connect, retries: Retries, passes: bool) -> None:
    body = json.dumps({"error": {"code": "GatewayDraining", "message": "soon", "traceId": "t", "remedy": "Wait."}})
    busy = answer("503 Service Unavailable", body.encode(), "Retry-After: 1")
    fine = answer("200 OK", b'{"value": []}')
    async with canned([busy, fine]) as (url, heads), connect(url, retries=retries) as client:
        if passes:
            assert await client.pools() == []
        else:
            with pytest.raises(TryLater, match="soon") as caught:
                await client.pools()
            error = caught.value
            assert (error.code, error.status, error.retry_after) == ("GatewayDraining", 503, 1.0)
            assert (error.remedy, error.trace_id) == ("Wait.", "t")

    assert len(heads) == (2 if passes else 1)


@pytest.mark.parametrize(
    "said",
    [
        answer("200 OK", b"<html>"),
        answer("200 OK", b'{"other": 1}'),
        answer("302 Found", b"", "Location: http://127.0.0.1:9/"),
        answer("200 OK", b"[" * 100_000),
    ],
)
async def test_what_is_no_gateway_is_told_as_such_and_gets_no_second_request(connect: Connect, said: bytes) -> None:
    async with canned([said]) as (url, heads), connect(url) as client:
        with pytest.raises(UnexpectedAnswer):
            await client.pools()

    assert len(heads) == 1


async def test_an_answer_without_end_is_not_kept(connect: Connect) -> None:
    async with canned([answer("200 OK", b" " * 3000)]) as (url, _), connect(url, max_answer=1000) as client:
        with pytest.raises(UnexpectedAnswer, match="1000 bytes"):
            await client.pools()
        with pytest.raises(UnexpectedAnswer):
            await client.pool("python").session("abcd-1").run("1")


async def test_errors_say_what_they_are(client: Any, gateway: Gateway, connect: Connect) -> None:
    session = client.pool("python").session(f"none-{uuid.uuid4().hex}")
    with pytest.raises(SessionNotFound):
        await session.info()
    with pytest.raises(PoolNotFound):
        await client.pool("nope").info()
    with pytest.raises(InvalidRequest, match="2 characters"):
        await client.pool("python").session("ab").run("1")
    with pytest.raises(InvalidRequest, match="timeoutInSeconds"):
        await session.run("1", timeout=1e6)
    async with connect(url_of(gateway), "a-wrong-token") as stranger:
        with pytest.raises(Unauthorized) as caught:
            await stranger.pools()
    assert caught.value.trace_id
    async with connect("http://127.0.0.1:1") as nobody:
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
            await nobody.pools()


async def test_an_execution_goes_on_alone_until_it_is_waited_for_or_canceled(session: Any) -> None:
    execution = await session.submit("import time\nwhile True: time.sleep(0.05)")
    waiting = await session.submit("5")

    with pytest.raises(TimeoutError):
        await execution.wait(timeout=0.2)
    canceled = await execution.cancel()

    assert canceled.status is ExecutionState.CANCELED
    assert (await waiting.wait()).result == 5
    assert [event async for event in waiting.events()][-1].result.result == 5


async def test_who_is_canceled_cancels_the_code(gateway: Gateway) -> None:
    async with AsyncClient(url_of(gateway), TOKEN) as client, client.pool("python").session() as session:
        id = str(uuid.uuid4())
        running = asyncio.create_task(session.run("import time\nopen('on', 'w')\ntime.sleep(100)", id=id))
        while not await session.files.list():
            await asyncio.sleep(0.01)

        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

        assert (await session.execution(id).poll()).status is ExecutionState.CANCELED


NAMES = ["a/content", "content", "upload", "x y%20+?#&=;.txt", "дом/ü'\"<>.txt", "a/b/c", "100%", "-", "[red]", "~"]


async def test_files_keep_their_names_however_odd(session: Any) -> None:
    for name in NAMES:
        assert (await session.files.upload(name.encode(), name)).path == name

    assert {file.path for file in await session.files.list(recursive=True) if not file.is_directory} == set(NAMES)
    for name in NAMES:
        assert await session.files.read(name) == name.encode()
        assert (await session.files.info(name)).size == len(name.encode())
    seen = await session.run(
        "import os; sorted(os.path.relpath(os.path.join(d, f)) for d, _, fs in os.walk('.') for f in fs)"
    )
    assert ast.literal_eval(seen.result) == sorted(NAMES)
    for name in NAMES:
        await session.files.delete(name)
        with pytest.raises(FileNotFound):
            await session.files.info(name)


async def test_names_that_lead_elsewhere_are_not_even_sent(session: Any) -> None:
    for name in ("../x", "/etc/passwd", "a\x00b", "", "."):
        with pytest.raises(InvalidRequest):
            await session.files.read(name)


async def test_parts_of_a_file_are_asked_for_as_in_a_slice(session: Any) -> None:
    data = bytes(range(100))
    await session.files.upload(data, "data")

    for start, stop in ((10, 20), (90, None), (-5, None), (None, 7), (99, 200)):
        assert await session.files.read("data", start=start, stop=stop) == data[start:stop]
    with pytest.raises(RangeNotSatisfiable):
        await session.files.read("data", start=100)
    with pytest.raises(InvalidRequest):
        await session.files.read("data", start=5, stop=5)


async def test_files_travel_from_and_to_paths_and_open_files(session: Any, tmp_path: Path) -> None:
    source, target = tmp_path / "in.bin", tmp_path / "out.bin"
    source.write_bytes(b"0123456789" * 1000)

    assert (await session.files.upload(source)).path == "in.bin"
    with source.open("rb") as file:
        file.seek(9990)
        assert (await session.files.upload(file, "tail")).size == 10
    sink = io.BytesIO()
    assert await session.files.download("tail", sink) == 10
    await session.files.download("in.bin", target)

    assert sink.getvalue() == b"0123456789"
    assert target.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.bin", "out.bin"]


class Endless(io.RawIOBase):
    """So many bytes, which are nowhere; it cannot be sought in."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int = -1) -> bytes:
        count = min(size, self.left)
        self.left -= count
        return bytes(count)


class Sink:
    def __init__(self) -> None:
        self.size = 0

    def write(self, data: bytes) -> None:
        self.size += len(data)


async def test_large_files_pass_through_little_memory(session: Any) -> None:
    size = 100 << 20
    sink = Sink()
    tracemalloc.start()
    try:
        await session.files.upload(Endless(size), "large")
        await session.files.download("large", sink)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert sink.size == size
    assert peak < 16 << 20


async def test_a_download_that_breaks_off_leaves_nothing_and_is_not_mixed(
    gateway: Gateway, connect: Connect, session: Any, tmp_path: Path
) -> None:
    await session.files.upload(bytes(4 << 20) + b"the end", "file")
    (tmp_path / "file").write_bytes(b"before")
    async with cutting(gateway.port, at=b"the end") as proxy, connect(proxy.url) as client:
        files = client.pool("python").session(session.identifier).files
        with pytest.raises(ConnectionBroken):
            await files.download("file", tmp_path / "file")

    assert (tmp_path / "file").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


async def test_a_session_ends_with_its_block_unless_somebody_may_come_back(client: Any) -> None:
    pool = client.pool("python")
    name = f"kept-{uuid.uuid4().hex}"
    async with pool.session() as own:
        await own.run("1")
    async with pool.session(name) as kept:
        await kept.run("1")

    alive = {session.identifier for session in await client.sessions("python")}
    assert name in alive
    assert own.identifier not in alive
    async with pool.session(name, stop_at_exit=True):
        pass
    with pytest.raises(SessionNotFound):
        await pool.session(name).info()
    await pool.session(name).stop()  # once more is no error


async def test_pools_and_what_they_run_on_are_described(client: Any) -> None:
    (pool,) = [pool for pool in await client.pools() if pool.name == "python"]
    metadata = await client.metadata("python")

    assert (pool.runtime, pool.max_sessions) == ("python", 40)
    assert metadata.language == "python"
    assert "numpy" in metadata.packages


async def test_pools_are_made_changed_and_deleted(client: Any) -> None:
    name = f"made-{uuid.uuid4().hex[:8]}"
    made = await client.create_pool(name, {"ready": 0, "max_sessions": 3})
    changed = await client.update_pool(name, {"max_sessions": 2})

    assert (made.name, made.max_sessions, changed.max_sessions) == (name, 3, 2)
    assert changed.settings["max_sessions"] == 2
    await client.delete_pool(name)
    with pytest.raises(PoolNotFound):
        await client.pool(name).info()


async def test_a_token_that_changes_is_asked_for_each_time(gateway: Gateway, connect: Connect) -> None:
    tokens = ["a-wrong-token"]
    async with connect(url_of(gateway), lambda: tokens.pop() if tokens else TOKEN) as client:
        with pytest.raises(Unauthorized):
            await client.pools()
        assert await client.pools()


def test_importing_the_client_loads_nothing_of_the_gateway() -> None:
    code = "import sys, kernelpool.client; print([m for m in ('tornado', 'aiohttp', 'pydantic') if m in sys.modules])"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


async def test_a_pool_is_made_used_changed_and_deleted(client: Any) -> None:
    settings = {"ready": 0, "max_sessions": 2, "warmup": False, "allocation_timeout": 120}
    made = await client.create_pool("made", {**settings, "limits": {"memory": "512Mi"}})
    assert made.settings["limits"]["memory"] == 512 << 20
    try:
        async with client.pool("made").session() as session:
            await session.run("x = 41")
            await client.update_pool("made", {"limits": {"memory": "768Mi"}})
            assert (await session.run("print(x + 1)")).stdout == "42\n"
    finally:
        await client.delete_pool("made")

    assert [pool.name for pool in await client.pools()] == ["python"]
    with pytest.raises(PoolNotFound):
        await client.pool("made").session().run("1")
