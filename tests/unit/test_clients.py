"""Who is told what: routing, what is missed and told again, and that all of it is bounded. No kernel, no socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from kernelpool.agent import requests as module
from kernelpool.agent.client import Client
from kernelpool.agent.clients import MAX_CLIENTS, MAX_REMEMBERED, Clients
from kernelpool.errors import TooManyConnections
from kernelpool.protocol.framing import WireMessage, read_head
from kernelpool.protocol.messages import Codec, Message
from tests.jupyter import Told

ids = iter(range(10**6))


def message(kind: str, parent: str = "", speaker: str = "the kernel's", **content: Any) -> Message:
    """As the codec reads one off the kernel's socket."""
    id = f"m{next(ids)}"
    header = {"msg_id": id, "msg_type": kind, "session": speaker}
    parents = {"msg_id": parent, "msg_type": "x"} if parent else {}
    parts = tuple(json.dumps(part).encode() for part in (header, parents, {}, content))
    return Message(kind, parent, content, msg_id=id, session=speaker, parts=parts)


def ask(clients: Clients, client: Client, id: str, kind: str = "complete_request", channel: str = "shell") -> Any:
    header = json.dumps({"msg_id": id, "msg_type": kind, "session": client.key}).encode()
    wire = WireMessage(channel, header, b"{}", b"{}", b"{}")
    return clients.ask(client, wire, read_head(header))


async def told(client: Client) -> list[Told]:
    """What it is told now."""
    found: list[Told] = []
    frames = client.frames()
    with_end = asyncio.ensure_future(anext(frames))
    while True:
        done, _ = await asyncio.wait({with_end}, timeout=0.05)
        if not done:
            with_end.cancel()
            await asyncio.gather(with_end, return_exceptions=True)
            return found
        found.append(Told.read(with_end.result()))
        with_end = asyncio.ensure_future(anext(frames))


def kinds(found: list[Told]) -> list[str]:
    return [one.kind for one in found]


async def test_nothing_is_kept_for_nobody() -> None:
    clients = Clients(1 << 20, 1000)
    clients.heard("iopub", message("stream", name="stdout", text="x" * 1000))
    clients.say("status", {"execution_state": "idle"})
    assert "0 entries" in repr(clients)

    nameless = clients.connect("", None)
    clients.heard("iopub", message("stream", name="stdout", text="x" * 1000))
    assert "1 entries" in repr(clients)
    clients.disconnect(nameless)

    assert "0 entries" in repr(clients)


async def test_a_reply_goes_to_who_asked_once_and_on_its_channel_only() -> None:
    clients = Clients(1 << 20, 1000)
    one, two = clients.connect("one", None), clients.connect("two", None)
    ask(clients, one, "q")

    clients.heard("control", message("complete_reply", "q"))  # forged: it was asked on the shell
    clients.heard("shell", message("complete_reply", "nobody's"))
    clients.heard("shell", message("complete_reply", "q", mine=1))
    clients.heard("shell", message("complete_reply", "q", mine=2))

    assert [one.content for one in await told(one)] == [{"mine": 1}]
    assert await told(two) == []


async def test_input_is_asked_only_for_what_is_open() -> None:
    clients = Clients(1 << 20, 1000)
    one, two = clients.connect("one", None), clients.connect("two", None)
    ask(clients, one, "q", "execute_request")

    clients.heard("stdin", message("input_request", "another", prompt=""))
    assert not clients.may_answer_input(one)
    clients.heard("stdin", message("input_request", "q", prompt=""))

    assert not clients.may_answer_input(two)
    assert [clients.may_answer_input(one), clients.may_answer_input(one)] == [True, False]
    assert kinds(await told(one)) == ["input_request"]


async def test_a_restart_is_not_told_twice_though_it_may_not_have_arrived() -> None:
    """Clients connect anew when they hear of one: they would do so for ever."""
    clients = Clients(1 << 20, 1000)
    client = clients.connect("s", None)
    clients.say("status", {"execution_state": "restarting"}, once=True)
    clients.say("status", {"execution_state": "idle"})
    assert [one.state for one in await told(client)] == ["restarting", "idle"]
    clients.disconnect(client)

    again = clients.connect("s", None)

    assert [one.state for one in await told(again)] == ["idle"]


async def test_who_was_away_hears_of_the_restart() -> None:
    clients = Clients(1 << 20, 1000)
    clients.disconnect(clients.connect("s", None))
    clients.say("status", {"execution_state": "restarting"}, once=True)

    assert [one.state for one in await told(clients.connect("s", None))] == ["restarting"]


async def test_what_we_say_ourselves_is_of_the_kernels_own_session() -> None:
    """To clients another session is another kernel: they drop what they have not handled of the one before."""
    clients = Clients(2000, 1000)
    clients.heard("iopub", message("status", speaker="before"))  # nobody is there to hear it
    client = clients.connect("s", None)
    clients.say("status", {"execution_state": "busy"})
    said = await told(client)
    for _ in range(10):
        clients.heard("iopub", message("stream", speaker="after", name="stdout", text="x" * 1000))
    clients.say("status", {"execution_state": "idle"})

    noted = await told(client)

    assert [each.speaker for each in said] == ["before"]
    assert "left out" in str(noted[0].content)
    assert {each.speaker for each in noted} == {"after"}


async def test_confirming_nonsense_changes_nothing() -> None:
    clients = Clients(1 << 20, 1000)
    client = clients.connect("s", None)
    for _ in range(3):
        clients.say("status", {"execution_state": "idle"})
    await told(client)

    for count in (2, 1, 0, -5):
        client.confirm(count)
    clients.disconnect(client)

    assert len(await told(clients.connect("s", None))) == 1


async def test_what_is_lost_is_counted_and_what_ends_things_is_not() -> None:
    clients = Clients(100_000, 1000)
    client = clients.connect("s", None)
    ask(clients, client, "q", "execute_request")
    for number in range(1000):
        clients.heard("iopub", message("stream", "q", name="stdout", text=f"{number}" + "x" * 1000))
    clients.heard("shell", message("execute_reply", "q", status="ok"))
    clients.heard("iopub", message("status", "q", execution_state="idle"))

    found = await told(client)

    assert "messages of the kernel were left out" in found[0].content["text"]
    lost = int(found[0].content["text"].split()[0].lstrip("["))
    assert found[0].parent["msg_id"] == "q"
    assert lost + len(found) - 1 == 1002
    assert kinds(found)[-2:] == ["execute_reply", "status"]


async def test_clients_and_those_who_may_come_back_are_bounded() -> None:
    clients = Clients(1 << 20, 1000)
    here = [clients.connect(f"s{number}", None) for number in range(MAX_CLIENTS)]
    with pytest.raises(TooManyConnections):
        clients.connect("another", None)
    clients.connect("s0", None)  # takes a place that there is

    for client in here:
        clients.disconnect(client)
    for number in range(2 * MAX_REMEMBERED):
        clients.disconnect(clients.connect(f"later{number}", None))

    assert f"{MAX_REMEMBERED} away" in repr(clients)


async def test_too_many_open_requests_are_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OPEN", 2)
    clients = Clients(1 << 20, 1000)
    client = clients.connect("s", None)
    assert [ask(clients, client, id) is not None for id in ("a", "b", "c")] == [True, True, False]

    found = await told(client)

    assert kinds(found) == ["status", "complete_reply", "status"]
    assert {one.parent["msg_id"] for one in found} == {"c"}


async def test_what_was_asked_of_a_kernel_that_is_gone_ends_but_not_what_waits_for_the_next() -> None:
    clients = Clients(1 << 20, 1000)
    client = clients.connect("s", None)
    for id in ("lost", "kept"):
        ask(clients, client, id)

    clients.lose("it died", ["kept"])
    clients.heard("shell", message("complete_reply", "kept", status="ok"))

    replies = {one.parent["msg_id"]: one.content["status"] for one in await told(client) if one.channel == "shell"}
    assert replies == {"lost": "error", "kept": "ok"}


HEADER = b'{"msg_id": "m", "msg_type": "x"}'


def sent(*parts: bytes) -> Message:
    """As the agent reads it."""
    codec = Codec(b"key", "session")
    return codec.decode(codec.sign(parts))


@pytest.mark.parametrize("raw", [b'{"a": NaN}', b'{"a": "\xff"}', b'{"a": -Infinity, "b": 1e999}', b'{"a": "\\ud800"}'])
def test_clients_see_json_whatever_the_kernel_sent(raw: bytes) -> None:
    *_, content = sent(HEADER, b"{}", b"{}", raw).relayed()
    _, parent, metadata, _ = Message("x", "", {}, parts=(HEADER, b"[]", b"nonsense", b"{}")).relayed()

    json.loads(content, parse_constant=lambda name: pytest.fail(name)).__str__().encode()
    assert (parent, metadata) == (b"{}", b"{}")


@pytest.mark.parametrize("raw", [b'{ "a":1e308 }', '{"a": "Infinity NaN 1e999 é"}'.encode(), b'{"a": "\\u00e9"}'])
def test_what_is_proper_json_is_passed_on_byte_for_byte(raw: bytes) -> None:
    assert sent(HEADER, b"{}", raw, raw).relayed() == (HEADER, b"{}", raw, raw)


async def test_what_the_kernel_never_answers_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OPEN", 2)
    clients = Clients(1 << 20, 1000)
    client = clients.connect("s", None)

    for id in ("a", "b", "c", "d"):
        assert ask(clients, client, id) is not None
        clients.heard("iopub", message("status", id, execution_state="idle"))

    clients.heard("shell", message("complete_reply", "d"))
    assert kinds(await told(client)) == ["status"] * 4 + ["complete_reply"]


async def test_what_waits_for_the_kernel_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OPEN_BYTES", 1000)
    clients = Clients(1 << 20, 1000)
    client = clients.connect("s", None)

    def upload(id: str, size: int) -> Any:
        header = json.dumps({"msg_id": id, "msg_type": "comm_msg"}).encode()
        wire = WireMessage("shell", header, b"{}", b"{}", b"{}", (b"x" * size,))
        return clients.ask(client, wire, read_head(header)) is not None

    assert upload("large", 2000)  # one passes, whatever its size
    assert not upload("another", 1)
    clients.heard("iopub", message("status", "large", execution_state="idle"))
    assert [upload("a", 100), upload("b", 700), upload("c", 700)] == [True, True, False]
    clients.heard("iopub", message("status", "b", execution_state="idle"))
    assert upload("d", 700)
