"""What operators see of requests: metrics by route, one trace id everywhere, log lines that know where they belong."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kernelpool.api import make_application
from kernelpool.api.edge import EdgePolicy
from kernelpool.api.routes import template
from kernelpool.gateway import Principal
from kernelpool.models import AgentStatus, ExecuteRequest
from kernelpool.telemetry import Telemetry
from kernelpool.telemetry.audit import Entry
from kernelpool.telemetry.logs import ContextFilter, JsonFormatter
from kernelpool.telemetry.metrics import CollectorRegistry, Metrics
from kernelpool.telemetry.tracing import Tracing
from tests.api.conftest import TOKEN, Api, api_of, multipart
from tests.fakes import FakeAgent

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Kept:
    """An audit log in memory."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def record(self, entry: Entry) -> None:
        self.entries.append(entry)

    @property
    def said(self) -> list[tuple[str, str, int]]:
        return [(entry.action.value, entry.outcome, entry.size) for entry in self.entries]


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
async def watched(tmp_path: Path, kept: Kept) -> AsyncIterator[Api]:
    metrics = Metrics(CollectorRegistry())
    async with api_of(
        tmp_path, telemetry=Telemetry(metrics, Tracing(), kept), metrics=metrics, max_upload=1 << 20
    ) as api:
        yield api


@pytest.fixture
def lines() -> Any:
    """Parsed log lines of all that is said from now on, as they stand on stderr."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(ContextFilter())
    root = logging.getLogger()
    root.addHandler(handler)
    level = root.level
    root.setLevel("DEBUG")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.removeHandler(handler)
    root.setLevel(level)


async def scrape(api: Api) -> dict[str, float]:
    """`name{label="value",…}` → number."""
    async with api.http.get(
        f"http://127.0.0.1:{api.port}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}
    ) as response:
        assert response.status == 200
        text = await response.text()
    families = text_string_to_metric_families(text)
    return {
        s.name + "{" + ",".join(f'{k}="{v}"' for k, v in sorted(s.labels.items())) + "}": s.value
        for family in families
        for s in family.samples
    }


async def test_metrics_want_a_token_as_all_else(watched: Api) -> None:
    async with watched.http.get(f"http://127.0.0.1:{watched.port}/metrics") as response:
        assert response.status == 401


async def test_what_happened_is_counted(watched: Api) -> None:
    await until(lambda: watched.gateway.pool(Principal("test"), "python").ready)
    await watched.run("1 + 1")
    await watched.run("1 / 0")
    await watched.json("POST", "/files", **multipart(b"x" * 1000, name="a.txt"))
    async with watched.request("GET", "/files/a.txt/content") as response:
        await response.read()
    await watched.json("GET", "/files/missing", 404)

    seen = await scrape(watched)

    assert seen['kernelpool_allocation_seconds_count{pool="python",start="warm"}'] == 1
    assert seen['kernelpool_executions_total{outcome="succeeded",pool="python"}'] == 1
    assert seen['kernelpool_executions_total{outcome="failed",pool="python"}'] == 1
    assert seen['kernelpool_file_bytes_total{direction="in",pool="python"}'] == 1000
    assert seen['kernelpool_file_bytes_total{direction="out",pool="python"}'] == 1000
    assert seen['kernelpool_refusals_total{code="FileNotFound"}'] == 1
    assert seen['kernelpool_http_received_bytes_total{http_route="/pools/{pool}/files"}'] > 1000
    assert seen['kernelpool_http_sent_bytes_total{http_route="/pools/{pool}/files/{name}/content"}'] == 1000
    assert seen['kernelpool_sessions{age="under 1m",pool="python"}'] == 1
    assert seen['kernelpool_pool_executing{pool="python"}'] == 1
    status = 'http_request_method="POST",http_response_status_code="200",http_route="/pools/{pool}/executions"'
    assert seen[f"http_server_request_duration_seconds_count{{{status}}}"] == 2


async def test_an_execution_that_is_polled_counts_once(watched: Api) -> None:
    await watched.run("1", body={"executionType": "Asynchronous"}, headers={"operation-id": "one"})
    for _ in range(20):
        if (await watched.json("GET", "/executions/one"))["status"] == "Succeeded":
            break
        await asyncio.sleep(0)
    await watched.json("GET", "/executions/one")
    await watched.run("1", headers={"operation-id": "one"})

    assert (await scrape(watched))['kernelpool_executions_total{outcome="succeeded",pool="python"}'] == 1


async def test_paths_that_nobody_made_are_one_series(watched: Api) -> None:
    for number in range(20):
        await watched.json("GET", f"/made/up/{number}", 404)

    counts = [name for name in await scrape(watched) if "duration_seconds_count" in name]
    assert len([name for name in counts if "{tail}" in name]) == 1
    assert not [name for name in counts if "made/up" in name]


def test_templates_have_nothing_of_a_regular_expression() -> None:
    application = make_application_for_its_routes()

    templates = {template(rule.matcher.regex.pattern) for rule in application.wildcard_router.rules}

    assert "/pools/{pool}/executions/{execution}/cancel" in templates
    assert "/pools/{pool}/.management/getSession" in templates
    assert not [text for text in templates if not re.fullmatch(r"[A-Za-z{}/.]+", text)]


def make_application_for_its_routes() -> Any:
    collaborators: Any = SimpleNamespace(edge=EdgePolicy())
    return make_application(collaborators, bool, Metrics(CollectorRegistry()))


@pytest.mark.parametrize("route", ["/files/missing", "/nowhere"])
async def test_the_callers_trace_is_the_trace(watched: Api, lines: Any, route: str) -> None:
    answer = await watched.json("GET", route, 404, headers={"traceparent": TRACEPARENT, "tracestate": "a=b"})

    assert answer["error"]["traceId"] == TRACE
    await until(lambda: [line for line in lines() if line["event"] == "request"])  # after the answer
    (access,) = [line for line in lines() if line["event"] == "request"]
    assert access["trace_id"] == TRACE


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "nonsense",
        TRACEPARENT.upper(),
        TRACEPARENT.replace("00-", "ff-", 1),
        TRACEPARENT + "-more",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"{TRACEPARENT}, {TRACEPARENT}",
        "00-" + "a" * 5000,
    ],
)
async def test_a_trace_context_that_is_none_is_ignored(watched: Api, bad: str) -> None:
    answer = await watched.json("GET", "/nowhere", 404, headers={"traceparent": bad})

    assert re.fullmatch("[0-9a-f]{32}", answer["error"]["traceId"])
    assert answer["error"]["traceId"] not in (TRACE, "0" * 32)


async def test_requests_of_one_connection_do_not_share_a_trace(watched: Api) -> None:
    traced = await watched.json("GET", "/nowhere", 404, headers={"traceparent": TRACEPARENT})
    ids = [(await watched.json("GET", "/nowhere", 404))["error"]["traceId"] for _ in range(3)]

    assert len({traced["error"]["traceId"], *ids}) == 4


async def test_lines_say_which_trace_pool_and_session_they_belong_to(watched: Api, lines: Any) -> None:
    await watched.run("1")
    process = await watched.process()

    def submit(request: ExecuteRequest) -> Any:
        logging.getLogger("test").info("from inside")
        return type(process).submit(process, request)

    process.submit = submit  # type: ignore[method-assign]
    await watched.run("2", headers={"traceparent": TRACEPARENT})

    (line,) = [line for line in lines() if line["event"] == "from inside"]
    assert process.activation is not None
    assert (line["trace_id"], line["pool"], line["session"]) == (TRACE, "python", process.activation.session)


async def test_the_end_of_a_session_is_not_part_of_the_call_that_began_it(watched: Api, lines: Any) -> None:
    await watched.run("1", headers={"traceparent": TRACEPARENT})
    (await watched.process()).die()

    await until(lambda: [line for line in lines() if line["event"] == "session ended"])

    (line,) = [line for line in lines() if line["event"] == "session ended"]
    assert "trace_id" not in line


async def test_the_agent_is_told_the_trace(watched: Api) -> None:
    await watched.run("1", headers={"traceparent": TRACEPARENT})

    [run] = (await watched.process()).runs.values()
    assert (run.request.traceparent or "").split("-")[1] == TRACE


async def test_an_upload_belongs_to_its_request(watched: Api, kept: Kept, lines: Any) -> None:
    """The body arrives in the connection's task, not in the request's own."""
    upload = multipart(b"x", name="a.txt")
    upload["headers"]["traceparent"] = TRACEPARENT
    await watched.run("1")
    process = await watched.process()
    process.touch = lambda: logging.getLogger("test").info("touched")  # type: ignore[method-assign]

    await watched.json("POST", "/files", **upload)

    assert TRACE in {line.get("trace_id") for line in lines() if line["event"] == "touched"}


async def test_who_did_what_is_audited(watched: Api, kept: Kept) -> None:
    await watched.run("1 + 1")
    await watched.run("1 / 0")
    await watched.json("POST", "/files", **multipart(b"x" * 1000, name="a.txt"))
    async with watched.request("GET", "/files/a.txt/content") as response:
        await response.read()
    async with watched.request("DELETE", "/files/a.txt"):
        pass
    await watched.json("DELETE", "/files/a.txt", 404)
    async with watched.request("DELETE", "/session"):
        pass
    await watched.json("DELETE", "/session", 404)

    assert kept.said == [
        ("execute", "succeeded", 5),
        ("execute", "failed", 5),
        ("upload", "succeeded", 1000),
        ("download", "succeeded", 1000),
        ("delete_file", "succeeded", 0),
        ("delete_file", "FileNotFound", 0),
        ("session_stop", "succeeded", 0),
        ("session_stop", "NoSessionFoundError", 0),
    ]
    assert {(entry.tenant, entry.principal, entry.pool) for entry in kept.entries} == {("default", "token", "python")}
    assert len({entry.session for entry in kept.entries}) == 2  # the one, and none
    assert "abcd-1" not in repr(kept.entries)


async def test_whoever_is_not_let_in_is_audited(watched: Api, kept: Kept) -> None:
    await watched.json("GET", "/files", 401, headers={"Authorization": "Bearer wrong"})

    assert kept.said == [("denied", "Unauthorized", 0)]


async def test_an_execution_that_was_submitted_has_a_line_then_and_one_when_its_end_is_learned(
    watched: Api, kept: Kept
) -> None:
    await watched.run("1")
    async with watched.request(
        "POST", "/executions", json={"code": "1/0"}, headers={"Accept": "text/event-stream", "operation-id": "mine"}
    ) as response:
        await response.read()
    await watched.json("GET", "/executions/mine")

    lines = [(entry.action, entry.outcome) for entry in kept.entries if entry.execution == "mine"]
    assert lines == [("execute", "queued"), ("execute", "failed")]


async def test_nothing_of_a_deleted_pool_stays_in_the_metrics(watched: Api) -> None:
    root, headers = f"http://127.0.0.1:{watched.port}/pools/second", {"Authorization": f"Bearer {TOKEN}"}
    async with watched.http.put(root, json={"backend": "fake", "ready": 1}, headers=headers) as response:
        assert response.status == 201
    url = f"{root}/executions?api-version=2025-10-02-preview&identifier=abcd-1"
    async with watched.http.post(url, json={"code": "1"}, headers=headers) as response:
        assert response.status == 200
    assert [line for line in await scrape(watched) if 'pool="second"' in line]

    async with watched.http.delete(root, headers=headers) as response:
        assert response.status == 204

    assert not [line for line in await scrape(watched) if 'pool="second"' in line]


async def test_a_session_that_ends_during_a_scrape_is_left_out(watched: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """More sessions than are asked at once: the last one is gone when its turn comes."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with watched.http.patch(
        watched.base, json={"max_sessions": 30, "start_concurrency": 20}, headers=headers
    ) as response:
        assert response.status == 200
    processes = [await watched.process(f"abcd-{number:02}") for number in range(17)]
    asked, go, status = asyncio.Event(), asyncio.Event(), FakeAgent.status

    async def slow(self: FakeAgent) -> AgentStatus:
        if self._process in processes[:16]:
            asked.set()
            await go.wait()
        return await status(self)

    monkeypatch.setattr(FakeAgent, "status", slow)
    scraping = asyncio.create_task(scrape(watched))
    await asked.wait()
    async with watched.request("DELETE", "/session", identifier="abcd-16") as response:
        assert response.status == 204
    go.set()

    assert [line for line in await scraping if line.startswith("kernelpool_pool_executing")]


async def test_changes_of_pools_are_audited(watched: Api, kept: Kept) -> None:
    for method, path, status in (("PUT", "second", 201), ("DELETE", "second", 204)):
        url, headers = f"http://127.0.0.1:{watched.port}/pools/{path}", {"Authorization": f"Bearer {TOKEN}"}
        body = {"backend": "fake", "ready": 0} if method == "PUT" else None
        async with watched.http.request(method, url, json=body, headers=headers) as response:
            assert response.status == status

    entries = [(entry.action, entry.outcome, entry.principal, entry.pool) for entry in kept.entries]
    assert entries == [(f"pool_{what}", "succeeded", "token", "second") for what in ("put", "delete")]


async def test_keys_that_are_handed_out_are_audited(watched: Api, kept: Kept) -> None:
    pool = "/subscriptions/s/resourceGroups/g/providers/Microsoft.App/sessionPools/python"
    for what in ("fetchMcpServerCredentials", "rotateMcpServerCredentials"):
        url = f"http://127.0.0.1:{watched.port}{pool}/{what}?api-version=2025-02-02-preview"
        async with watched.http.request("POST", url, headers={"Authorization": f"Bearer {TOKEN}"}) as response:
            assert response.status == 200

    entries = [(entry.action, entry.outcome, entry.pool) for entry in kept.entries]
    assert entries == [("pool_key_fetch", "succeeded", "python"), ("pool_key_renew", "succeeded", "python")]


async def test_a_client_that_leaves_is_counted_as_such(watched: Api, kept: Kept) -> None:
    await watched.run("1")
    body = b'{"code": "import time; time.sleep(9)"}'
    head = (
        "POST /pools/python/executions?api-version=2025-10-02-preview&identifier=abcd-1 HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    _, writer = await asyncio.open_connection("127.0.0.1", watched.port)
    writer.write(head.encode() + body)
    process = await watched.process()
    await until(lambda: len(process.runs) == 2)

    writer.close()

    await until(lambda: ("execute", "client_left", 26) in kept.said)
    assert [name for name in await scrape(watched) if '"499"' in name]


async def until(holds: Any) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.001)
