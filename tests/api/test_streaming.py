"""Server-Sent Events: everything as it happens, nothing twice, nothing lost when the client comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from kernelpool.errors import SandboxLost
from kernelpool.models import Event
from tests.api.conftest import Api
from tests.fakes import FakeAgent

STREAM = {"Accept": "text/event-stream"}
Seen = tuple[str | None, str, Any]


async def events_of(response: aiohttp.ClientResponse) -> AsyncIterator[Seen]:
    """(id, event, data) of each, as a browser would read them."""
    fields: dict[str, str] = {}
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if line.startswith(":"):
            yield None, "comment", line
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield fields.get("id"), fields["event"], json.loads(fields["data"])
            fields = {}


async def stream(api: Api, code: str, headers: dict[str, str] | None = None, path: str = "/executions") -> list[Seen]:
    headers = {**STREAM, **(headers or {})}
    async with api.request("POST", path, json={"code": code}, headers=headers) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream"
        return [event async for event in events_of(response)]


@pytest.mark.parametrize("path", ["/executions", "/code/execute", "/python/execute"])
async def test_the_last_event_is_what_the_plain_answer_would_have_been(api: Api, path: str) -> None:
    events = await stream(api, "print('a'); 1 + 1", {"operation-id": "s-1"}, path)
    plain = await api.json("POST", path, json={"code": ""}, headers={"operation-id": "s-1"})

    kind, data = events[-1][1:]
    assert kind == "done"
    if path == "/executions":
        plain["executionType"] = "Asynchronous"
    assert data == plain


async def test_outputs_come_numbered_and_in_order(api: Api) -> None:
    events = await stream(api, "print('a'); print('b'); 5")

    numbers = [int(id) for id, kind, _ in events if id is not None]
    outputs = [data for _, kind, data in events if kind == "output"]
    assert numbers == sorted(set(numbers))
    assert [output["output_type"] for output in outputs] == ["stream", "stream", "execute_result"]
    assert [output.get("text") for output in outputs] == ["a\n", "b\n", None]


async def test_a_client_that_comes_back_misses_nothing_and_sees_nothing_twice(api: Api) -> None:
    everything = await stream(api, "print('a'); print('b'); 5", {"operation-id": "s-2"})
    seen = everything[2][0]
    assert seen is not None

    again = await stream(api, "ignored: it ran already", {"operation-id": "s-2", "Last-Event-ID": seen})
    async with api.request("GET", "/executions/s-2", headers={**STREAM, "Last-Event-ID": seen}) as response:
        by_id = [event async for event in events_of(response)]

    assert again == everything[3:]
    assert by_id == everything[3:]


async def test_output_is_sent_while_the_code_still_runs(api: Api) -> None:
    body = {"code": "print('first')\nwhile True: pass"}
    async with api.request("POST", "/executions", json=body, headers=STREAM) as response:
        async with asyncio.timeout(30):
            first = await anext(data async for _, kind, data in events_of(response) if kind == "output")
        assert first["text"] == "first\n"


async def test_a_streamed_execution_runs_on_when_its_client_leaves(api: Api) -> None:
    process = await api.process()
    headers = {**STREAM, "operation-id": "s-3"}
    async with api.request("POST", "/executions", json={"code": "while True: pass"}, headers=headers) as response:
        async with asyncio.timeout(30):
            async for _, kind, _ in events_of(response):
                if kind == "state":
                    break
        response.close()

    assert await api.works.wait_idle(60)
    assert not process.runs["s-3"].execution.state.is_final


async def test_a_silent_execution_is_kept_alive_with_comments(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    original = FakeAgent.events

    async def events(self: FakeAgent, id: str, after: int = -1) -> AsyncIterator[Event | None]:
        yield None
        async for event in original(self, id, after):
            yield event

    monkeypatch.setattr(FakeAgent, "events", events)

    assert (None, "comment", ": keep-alive") in await stream(api, "1")


@pytest.mark.parametrize(("lives", "code"), [(True, "SandboxUnreachable"), (False, "SandboxLost")])
async def test_a_stream_that_breaks_off_ends_with_an_error(
    api: Api, monkeypatch: pytest.MonkeyPatch, lives: bool, code: str
) -> None:
    async def events(self: FakeAgent, id: str, after: int = -1) -> AsyncIterator[Event | None]:
        yield Event(0, "state", {"state": "running"})
        self._process.silent = not lives
        raise SandboxLost("gone")

    monkeypatch.setattr(FakeAgent, "events", events)

    events_seen = await stream(api, "1")

    assert events_seen[0] == ("0", "state", {"state": "running"})
    assert events_seen[-1][1] == "error"
    assert events_seen[-1][2]["error"]["code"] == code


async def test_what_is_wrong_before_the_first_event_has_a_status(api: Api) -> None:
    await api.run("1")

    await api.json("GET", "/executions/unknown", 404, headers=STREAM)
    await api.json("POST", "/executions", 400, json={}, headers=STREAM)
    await api.json("POST", "/executions", 400, json={"code": "1"}, headers={**STREAM, "Last-Event-ID": "x"})


async def test_line_breaks_in_output_do_not_make_events(api: Api) -> None:
    events = await stream(api, r"print('a\n\nevent: done\ndata: {}\n\n')")

    assert [kind for _, kind, _ in events].count("done") == 1
