"""The Jupyter surface over sandboxes in memory: kernels are sessions, and every client finds what it looks for."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kernelpool.api.jupyter import channels as channels_module
from kernelpool.api.jupyter.relay import ENDED, NOT_A_FRAME, REPLACED
from kernelpool.auth.authenticator import Authenticator
from kernelpool.auth.initial import digest_of, load_or_make_token
from kernelpool.auth.keyring import KeyRing
from kernelpool.auth.keys import KeyStore
from kernelpool.auth.principal import Role
from kernelpool.gateway import Principal
from kernelpool.protocol.framing import V1, WireMessage, decode_v1, encode_v1, read_head, read_object
from kernelpool.quotas import Quotas, QuotaSettings
from kernelpool.telemetry import Telemetry
from kernelpool.telemetry.metrics import CollectorRegistry, Metrics
from kernelpool.telemetry.tracing import Tracing
from tests.api.conftest import TOKEN, Api, api_of
from tests.api.test_telemetry import Kept, lines, scrape
from tests.fakes import FakeBackend

__all__ = ["lines"]
NO_UUID = "00000000-0000-0000-0000-000000000000"
HEADERS = {"Authorization": f"token {TOKEN}"}


async def ask(api: Api, method: str, path: str, status: int = 200, **rest: Any) -> Any:
    rest = {"headers": HEADERS, **rest}
    async with api.http.request(method, f"http://127.0.0.1:{api.port}{path}", **rest) as response:
        text = await response.text()
        assert response.status == status, text
        return json.loads(text) if text else None


async def kernel_of(api: Api, **body: Any) -> dict[str, Any]:
    kernel: dict[str, Any] = await ask(api, "POST", "/api/kernels", 201, json=body)
    return kernel


def message(kind: str, content: Any = None, **header: Any) -> dict[str, Any]:
    header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "session": "s", "version": "5.3", "username": "", **header}
    return {"header": header, "parent_header": {}, "metadata": {}, "content": content or {}}


def binary(channel: str, fields: dict[str, Any], buffers: tuple[bytes, ...] = ()) -> bytes:
    parts = [json.dumps(fields[name]).encode() for name in ("header", "parent_header", "metadata", "content")]
    return encode_v1(WireMessage(channel, parts[0], parts[1], parts[2], parts[3], buffers))


class Client:
    """One that speaks the newer framing."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def send(self, kind: str, content: Any = None, channel: str = "shell") -> str:
        fields = message(kind, content)
        await self.socket.send_bytes(binary(channel, fields))
        return str(fields["header"]["msg_id"])

    async def next(self) -> WireMessage:
        return decode_v1(await self.socket.receive_bytes(timeout=60))

    async def until(self, kind: str, parent: str | None = None) -> list[WireMessage]:
        """All up to that one, which may have to answer that parent."""
        seen = []
        while True:
            seen.append(await self.next())
            wanted = parent is None or read_object(seen[-1].parent_header).get("msg_id") == parent
            if read_head(seen[-1].header).msg_type == kind and wanted:
                return seen

    async def run(self, code: str) -> list[WireMessage]:
        """Up to the idle that ends it."""
        id = await self.send("execute_request", {"code": code})
        seen = []
        replied = idle = False
        while not (replied and idle):
            seen.append(await self.next())
            head, content = read_head(seen[-1].header), read_object(seen[-1].content)
            replied |= head.msg_type == "execute_reply" and read_head(seen[-1].parent_header).msg_id == id
            idle |= content.get("execution_state") == "idle" and read_head(seen[-1].parent_header).msg_id == id
        return seen


@asynccontextmanager
async def connected(api: Api, kernel: str, base: str = "", **query: str) -> AsyncIterator[Client]:
    url = f"http://127.0.0.1:{api.port}{base}/api/kernels/{kernel}/channels"
    async with api.http.ws_connect(url, params=query, headers=HEADERS, protocols=(V1,), max_msg_size=0) as socket:
        assert socket.protocol == V1
        yield Client(socket)


def kinds(messages: list[WireMessage]) -> list[str]:
    return [read_head(message.header).msg_type for message in messages]


def text_of(messages: list[WireMessage]) -> str:
    found = [read_object(each.content) for each in messages if read_head(each.header).msg_type == "stream"]
    return "".join(each["text"] for each in found)


# --- kernels


async def test_a_kernel_is_a_session_and_a_session_a_kernel(api: Api) -> None:
    await api.run("x = 41", identifier="from-rest")
    [listed] = await ask(api, "GET", "/api/kernels")

    async with connected(api, listed["id"]) as client:
        answer = await client.run("x + 1")

    assert listed["identifier"] == "from-rest"
    assert '"42"' in str([each.content for each in answer])
    assert uuid.UUID(listed["id"])


async def test_a_kernel_made_here_is_used_over_rest(api: Api) -> None:
    kernel = await kernel_of(api)

    async with connected(api, kernel["id"]) as client:
        await client.run("y = 5")
    answer = await api.run("y", identifier=kernel["identifier"])

    assert answer["result"]["executionResult"] == 5


async def test_its_identifier_can_be_chosen_and_names_one_session(api: Api) -> None:
    env = {"KERNEL_KERNELPOOL_IDENTIFIER": "mine-1", "KERNEL_WORKING_DIR": "/etc"}

    first, second = await kernel_of(api, env=env), await kernel_of(api, env=env, path=None)

    assert first["id"] == second["id"]
    assert first["identifier"] == "mine-1"


async def test_the_list_is_of_the_callers_own_and_survives_a_restart_of_the_kernel(api: Api) -> None:
    first, second = await kernel_of(api), await kernel_of(api)

    restarted = await ask(api, "POST", f"/api/kernels/{first['id']}/restart")
    listed = await ask(api, "GET", "/api/kernels")

    assert [each["id"] for each in listed] == [first["id"], second["id"]]
    assert restarted["id"] == first["id"]
    assert {type(each["connections"]) for each in listed} == {int}
    for each in listed:  # as jupyter_server's GatewayClient reads it
        datetime.strptime(each["last_activity"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)


async def test_delete_ends_the_session(api: Api) -> None:
    kernel = await kernel_of(api)

    await ask(api, "DELETE", f"/api/kernels/{kernel['id']}", 204)

    await ask(api, "GET", f"/api/kernels/{kernel['id']}", 404)
    await api.json("GET", "/session", 404, identifier=kernel["identifier"])


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b""),  # smolagents
        ({"Content-Type": "application/octet-stream"}, b""),  # autogen
        ({"Content-Type": "text/plain;charset=UTF-8"}, b'{"name": "python"}'),  # @jupyterlab/services under Node
        ({"Content-Type": "application/json"}, b'{"name": null, "path": null, "env": null, "kernel_id": null}'),
        ({}, b'{"name": "python3"}'),  # notebooks from elsewhere
    ],
)
async def test_a_body_is_read_whatever_it_is_called(api: Api, headers: dict[str, str], body: bytes) -> None:
    kernel = await ask(
        api,
        "POST",
        "/api/kernels?1795383002310",
        201,
        headers={**HEADERS, **headers},
        data=body,
        skip_auto_headers=("Content-Type",),
    )

    assert kernel["name"] == "python"


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"[]", 400, "JSON object"),
        (b"{", 400, "not valid JSON"),
        (b'{"name": 5}', 400, "name"),
        (b'{"name": "fortran"}', 404, "there are: python"),
        (b'{"env": []}', 400, "env"),
        (b'{"env": {"KERNEL_KERNELPOOL_IDENTIFIER": 5}}', 400, "KERNEL_KERNELPOOL_IDENTIFIER"),
        (b'{"env": {"KERNEL_KERNELPOOL_IDENTIFIER": "a"}}', 400, "identifier"),
    ],
)
async def test_what_is_wrong_with_it_is_named_where_jupyters_clients_look(
    api: Api, body: bytes, status: int, word: str
) -> None:
    answer = await ask(api, "POST", "/api/kernels", status, data=body)

    assert word in answer["message"]
    assert answer["reason"] == answer["error"]["code"]


async def test_kernelspecs_are_the_pools_with_the_logos_of_their_runtime(api: Api) -> None:
    specs = await ask(api, "GET", "/api/kernelspecs")
    one = await ask(api, "GET", "/pools/python/jupyter/api/kernelspecs/python")

    spec = specs["kernelspecs"]["python"]
    assert specs["default"] == "python"
    assert spec["spec"]["argv"] == []
    assert spec["spec"]["language"] == "python"
    assert spec["resources"]["logo-svg"] == "/kernelspecs/python/logo-svg.svg"
    assert one["resources"]["logo-svg"] == "/pools/python/jupyter/kernelspecs/python/logo-svg.svg"
    for resource in (*spec["resources"].values(), *one["resources"].values()):
        async with api.http.get(f"http://127.0.0.1:{api.port}{resource}", headers=HEADERS) as response:
            assert response.status == 200
            assert response.content_type in ("image/svg+xml", "image/png")
    await ask(api, "GET", "/kernelspecs/python/launch.py", 404)
    await ask(api, "GET", "/kernelspecs/other/logo-svg.svg", 404)


async def test_a_base_url_has_one_pool(tmp_path: Path) -> None:
    async with api_of(tmp_path, pools=("python", "other")) as api:
        await ask(api, "POST", "/pools/other/jupyter/api/kernels", 201)
        kernel = await ask(api, "POST", "/api/kernels", 201)
        below = "/pools/other/jupyter/api"

        assert list((await ask(api, "GET", f"{below}/kernelspecs"))["kernelspecs"]) == ["other"]
        assert [each["name"] for each in await ask(api, "GET", f"{below}/kernels")] == ["other"]
        assert len(await ask(api, "GET", "/api/kernels")) == 2
        await ask(api, "GET", f"{below}/kernels/{kernel['id']}", 404)
        await ask(api, "POST", f"{below}/kernels", 404, json={"name": "fortran"})
        await ask(api, "GET", "/pools/absent/jupyter/api/kernels", 404)


# --- sessions


async def session_of(api: Api, path: str, **fields: Any) -> Any:
    return await ask(api, "POST", "/api/sessions", 201, json={"path": path, "type": "notebook", "name": "", **fields})


async def test_a_document_has_one_kernel_however_often_it_is_opened(api: Api) -> None:
    first, *others = await asyncio.gather(*(session_of(api, "a.ipynb", kernel={"name": "python"}) for _ in range(3)))
    await ask(api, "POST", "/api/sessions", 201, json={"notebook": {"path": "a.ipynb"}})

    assert {(other["id"], other["kernel"]["id"]) for other in others} == {(first["id"], first["kernel"]["id"])}
    assert first.keys() >= {"id", "type", "name", "path", "kernel"}
    assert [each["id"] for each in await ask(api, "GET", "/api/sessions")] == [first["id"]]
    assert len(await ask(api, "GET", "/api/kernels")) == 1


async def test_a_document_takes_the_kernel_of_a_session_of_rest(api: Api) -> None:
    await api.run("x = 1", identifier="from-rest")
    [kernel] = await ask(api, "GET", "/api/kernels")

    session = await session_of(api, "a.ipynb", kernel={"id": kernel["id"]})

    assert session["kernel"]["identifier"] == "from-rest"
    gone = {"id": NO_UUID, "name": "python"}
    await ask(api, "PATCH", f"/api/sessions/{session['id']}", 404, json={"kernel": gone})
    assert (await session_of(api, "c.ipynb", kernel=gone))["kernel"]["id"] not in (NO_UUID, kernel["id"])
    await ask(api, "POST", "/api/sessions", 404, json={"path": "b.ipynb", "kernel": {"name": "fortran"}})
    await ask(api, "POST", "/api/sessions", 400, json={"type": "notebook"})
    await ask(api, "POST", "/api/sessions", 400, json={"path": "x" * 1025})


async def test_a_document_changes_its_name_and_its_kernel(api: Api) -> None:
    session = await session_of(api, "a.ipynb", kernel={"name": "python"})
    url, before = f"/api/sessions/{session['id']}", session["kernel"]["id"]

    renamed = await ask(api, "PATCH", url, json={"path": "b.ipynb", "name": "b", "type": "console"})
    changed = await ask(api, "PATCH", url, json={"kernel": {"id": None, "name": "python"}})

    assert (renamed["path"], renamed["name"], renamed["type"]) == ("b.ipynb", "b", "console")
    assert renamed["kernel"]["id"] == before
    assert changed["path"] == "b.ipynb"
    assert changed["kernel"]["id"] != before
    await ask(api, "GET", f"/api/kernels/{before}", 404)


async def test_a_document_is_renamed_by_the_older_form_too(api: Api) -> None:
    session = await session_of(api, "a.ipynb", kernel={"name": "python"})
    url = f"/api/sessions/{session['id']}"

    renamed = await ask(api, "PATCH", url, json={"notebook": {"path": "b.ipynb"}})

    assert renamed["path"] == renamed["notebook"]["path"] == "b.ipynb"
    assert (await ask(api, "GET", url))["path"] == "b.ipynb"
    await ask(api, "PATCH", url, 400, json={"notebook": {"path": "x" * 1025}})


async def test_a_kernel_that_another_document_has_too_stays(api: Api) -> None:
    first = await session_of(api, "a.ipynb", kernel={"name": "python"})
    second = await session_of(api, "b.ipynb", kernel={"id": first["kernel"]["id"]})

    await ask(api, "PATCH", f"/api/sessions/{first['id']}", json={"kernel": {"name": "python"}})

    assert (await ask(api, "GET", f"/api/sessions/{second['id']}"))["kernel"]["id"] == first["kernel"]["id"]


async def test_a_kernel_has_so_many_documents_and_no_more(api: Api) -> None:
    first = await session_of(api, "0.ipynb")
    kernel = {"id": first["kernel"]["id"]}
    for number in range(1, 8):
        await session_of(api, f"{number}.ipynb", kernel=kernel)

    await ask(api, "POST", "/api/sessions", 409, json={"path": "8.ipynb", "kernel": kernel})


async def test_the_end_of_a_document_is_that_of_its_kernel_and_the_other_way_round(api: Api) -> None:
    first, second = await session_of(api, "a.ipynb"), await session_of(api, "b.ipynb")

    await ask(api, "DELETE", f"/api/sessions/{first['id']}", 204)
    await ask(api, "DELETE", f"/api/kernels/{second['kernel']['id']}", 204)

    assert await ask(api, "GET", "/api/sessions") == await ask(api, "GET", "/api/kernels") == []
    await ask(api, "DELETE", f"/api/sessions/{first['id']}", 404)
    await ask(api, "PATCH", f"/api/sessions/{second['id']}", 404, json={})


async def test_documents_and_kernels_are_there_after_a_restart_of_the_gateway(tmp_path: Path) -> None:
    backend = FakeBackend()
    async with api_of(tmp_path, backend=backend) as api:
        before = await session_of(api, "a.ipynb", kernel={"name": "python"})

    async with api_of(tmp_path, backend=backend) as api:
        [after] = await ask(api, "GET", "/api/sessions")

    assert (after["id"], after["path"]) == (before["id"], "a.ipynb")
    assert after["kernel"]["id"] == before["kernel"]["id"]


# --- who asks


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/api/kernels", {"Authorization": f"token {TOKEN}"}),
        ("/api/kernels", {"Authorization": f"Token  {TOKEN} "}),
        ("/api/kernels", {"Authorization": f"Bearer {TOKEN}"}),
        (f"/api/kernels?token={TOKEN}", {}),
        (f"/api/kernels?token={TOKEN}&1795383002310", {"Authorization": "token "}),
        (f"/api/kernels?token={TOKEN}", {"Authorization": f"token {TOKEN}"}),  # VS Code
        (f"/k/{TOKEN}/api/kernels", {}),
        (f"/k/{TOKEN}/api/kernels", {"Authorization": "token "}),  # nbclient
        (f"/k/{TOKEN}/pools/python/jupyter/api/kernels", {}),
        (f"/pools/python/jupyter/api/kernels?token={TOKEN}", {}),
    ],
)
async def test_a_token_is_found_wherever_clients_put_it(api: Api, path: str, headers: dict[str, str]) -> None:
    assert await ask(api, "GET", path, headers=headers) == []


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/api/kernels", {}),
        ("/api/kernels", {"Authorization": "token "}),
        ("/api/kernels", {"Authorization": "Basic YTpi"}),
        ("/api/kernels", {"Cookie": f"token={TOKEN}; _xsrf={TOKEN}"}),
        ("/api/kernels?token=", {}),
        ("/api/kernels?token=wrong", {}),
        ("/k/wrong/api/kernels", {}),
        ("/api/kernels?token=wrong", {"Authorization": f"token {TOKEN}"}),
        (f"/k/{TOKEN}/api/kernels?token=wrong", {}),
        (f"/api/kernels?token={TOKEN}&token=wrong", {}),
        # Nowhere but here.
        (f"/pools?token={TOKEN}", {}),
        (f"/k/{TOKEN}/pools", {}),
        ("/pools", {"Authorization": f"token {TOKEN}"}),
    ],
)
async def test_what_is_no_token_or_is_not_sure_to_be_the_one_lets_nobody_in(
    api: Api, path: str, headers: dict[str, str]
) -> None:
    answer = await ask(api, "GET", path, 401, headers=headers)

    assert TOKEN not in str(answer)


@pytest.mark.parametrize("path", ["/", "/tree?", "/hub/api", "/pools/python/jupyter/", "/pools/python/jupyter/tree"])
async def test_vs_code_learns_that_there_is_no_password(api: Api, path: str) -> None:
    await ask(api, "GET", path, 404, headers={})
    await ask(api, "GET", f"/k/{TOKEN}{path}", 404, headers={})


async def test_what_a_server_is_asked_first(api: Api) -> None:
    query = json.dumps({"kernels": ["read", "execute"], "contents": ["write"]})

    me = await ask(api, "GET", f"/api/me?permissions={query}")
    status = await ask(api, "GET", "/api/status")

    assert "version" in await ask(api, "GET", "/api", headers={})
    assert me["identity"]["username"] == "token"
    assert me["permissions"] == {"kernels": ["read", "execute"], "contents": []}
    assert (status["kernels"], status["connections"]) == (0, 0)
    for wrong in ("[]", "{", '{"a": "b"}', '{"a": [1]}'):
        await ask(api, "GET", f"/api/me?permissions={wrong}", 400)


@pytest.fixture
async def tenants(tmp_path: Path) -> AsyncIterator[tuple[Api, dict[str, dict[str, str]]]]:
    store = KeyStore(tmp_path)

    def make() -> dict[str, dict[str, str]]:
        keys = {name: store.create(f"key-{name}", tenant=name)[1] for name in ("a", "b")}
        keys["viewer"] = store.create("looks", tenant="a", roles=frozenset({Role.VIEWER}))[1]
        return {name: {"Authorization": f"token {key}"} for name, key in keys.items()}

    headers = await asyncio.to_thread(make)
    async with KeyRing(tmp_path) as ring, api_of(tmp_path, Authenticator(digest_of(TOKEN), ring)) as api:
        yield api, headers


async def test_kernels_and_documents_of_another_tenant_are_not_there(
    tenants: tuple[Api, dict[str, dict[str, str]]],
) -> None:
    api, headers = tenants
    body = {"path": "a.ipynb", "kernel": {"name": "python"}}
    session = await ask(api, "POST", "/api/sessions", 201, headers=headers["a"], json=body)
    id = session["kernel"]["id"]

    assert await ask(api, "GET", "/api/kernels", headers=headers["b"]) == []
    assert await ask(api, "GET", "/api/sessions", headers=headers["b"]) == []
    for method, path in (
        ("GET", f"/api/kernels/{id}"),
        ("DELETE", f"/api/kernels/{id}"),
        ("POST", f"/api/kernels/{id}/interrupt"),
        ("POST", f"/api/kernels/{id}/restart"),
        ("GET", f"/api/kernels/{id}/channels"),
        ("GET", f"/api/sessions/{session['id']}"),
        ("DELETE", f"/api/sessions/{session['id']}"),
    ):
        theirs = await ask(api, method, path, 404, headers=headers["b"])
        absent = await ask(api, method, path.replace(id, NO_UUID).replace(session["id"], NO_UUID), 404)
        assert theirs["reason"] == absent["reason"]
    for wanted in (body, {"path": "b", "kernel": {"id": id}}):
        other = await ask(api, "POST", "/api/sessions", 201, headers=headers["b"], json=wanted)
        assert other["kernel"]["id"] != id
    assert len(await ask(api, "GET", "/api/kernels", headers=headers["viewer"])) == 1


def test_keys_fit_into_a_path_that_is_turned_to_lower_case(tmp_path: Path) -> None:
    _, key = KeyStore(tmp_path).create("a")
    _, token = load_or_make_token(tmp_path)

    assert key == key.lower()
    assert token is not None
    assert token == token.lower()


# --- channels


async def test_both_framings_say_the_same(api: Api) -> None:
    kernel = await kernel_of(api)
    url = f"http://127.0.0.1:{api.port}/api/kernels/{kernel['id']}/channels"

    async with connected(api, kernel["id"]) as client, api.http.ws_connect(url, headers=HEADERS) as older:
        assert older.protocol is None
        messages = await client.run("print('hello'); 1 / 0")
        told = [json.loads(await older.receive_str()) for _ in range(5)]

    heard = [each for each in messages if each.channel == "iopub"]
    assert (
        [each["msg_type"] for each in told] == kinds(heard) == ["status", "execute_input", "stream", "error", "status"]
    )
    assert [each["content"] for each in told] == [read_object(each.content) for each in heard]
    assert [each["msg_id"] for each in told] == [read_head(each.header).msg_id for each in heard]
    assert told[0].keys() == {
        *("header", "parent_header", "metadata", "content", "channel", "buffers", "msg_id", "msg_type")
    }


async def test_a_client_that_names_no_channel_and_no_date_is_understood(api: Api) -> None:
    kernel = await kernel_of(api)
    url = f"http://127.0.0.1:{api.port}/api/kernels/{kernel['id']}/channels?token={TOKEN}"

    async with api.http.ws_connect(url) as socket:
        await socket.send_json({**message("execute_request", {"code": "print(1)"}), "buffers": {}})
        told: list[dict[str, Any]] = []
        while not told or told[-1]["msg_type"] != "execute_reply":
            told.append(json.loads(await socket.receive_str(timeout=60)))

    assert told[-1]["channel"] == "shell"
    assert told[-1]["content"]["status"] == "ok"


async def test_who_comes_back_gets_what_it_missed_in_order_once(api: Api) -> None:
    kernel = await kernel_of(api)
    async with connected(api, kernel["id"], session_id="mine") as client:
        first = await client.run("print('seen')")
        seen = read_head(first[-1].header).msg_id
        await client.send("execute_request", {"code": "import time; time.sleep(0.2); print('missed')"})
        await client.until("execute_input")
    process = await api.process(kernel["identifier"])
    await until(lambda: process.status().running == 0)

    async with connected(api, kernel["id"], session_id="mine", last_msg_id=seen) as client:
        again = await client.until("status")
        while "execute_reply" not in kinds(again):
            again += await client.until("status")
    async with connected(api, kernel["id"], session_id="another") as client:
        fresh = await client.run("print('new')")

    assert text_of(again) == "missed\n"
    assert text_of(fresh) == "new\n"


async def test_what_a_client_has_answered_a_ping_after_is_not_told_again(api: Api) -> None:
    kernel = await kernel_of(api)
    process = await api.process(kernel["identifier"])
    async with connected(api, kernel["id"], session_id="mine") as client:
        await client.run("print('seen')")
        reading = asyncio.create_task(client.socket.receive())  # pings are answered by whoever reads
        await until(lambda: process.hub.confirmed["mine"] == len(process.hub.frames))
        reading.cancel()

    async with connected(api, kernel["id"], session_id="mine") as client:
        assert text_of(await client.run("print('new')")) == "new\n"


async def test_the_newest_connection_of_a_session_id_wins(api: Api) -> None:
    kernel = await kernel_of(api)
    async with (
        connected(api, kernel["id"], session_id="mine") as older,
        connected(api, kernel["id"], session_id="mine") as newer,
    ):
        closed = await older.socket.receive(timeout=60)

        assert text_of(await newer.run("print(1)")) == "1\n"

    assert (closed.type, closed.data) == (aiohttp.WSMsgType.CLOSE, REPLACED)


async def test_the_end_of_the_session_is_the_death_of_the_kernel(api: Api) -> None:
    kernel = await kernel_of(api)
    async with connected(api, kernel["id"]) as client:
        await client.run("1")
        await ask(api, "DELETE", f"/api/kernels/{kernel['id']}", 204)
        told = [await client.next()]
        closed = await client.socket.receive(timeout=60)

    assert read_object(told[-1].content) == {"execution_state": "dead"}
    assert (closed.type, closed.data) == (aiohttp.WSMsgType.CLOSE, ENDED)


@pytest.mark.parametrize("frame", [b"", b"\0" * 8, b"\xff" * 100, "{}"])
async def test_what_is_no_frame_ends_the_connection_that_it_came_by(api: Api, frame: bytes | str) -> None:
    kernel = await kernel_of(api)
    async with connected(api, kernel["id"]) as other, connected(api, kernel["id"]) as client:
        await (client.socket.send_bytes(frame) if isinstance(frame, bytes) else client.socket.send_str(frame))
        closed = await client.socket.receive(timeout=60)

        assert (closed.type, closed.data) == (aiohttp.WSMsgType.CLOSE, NOT_A_FRAME)
        assert text_of(await other.run("print(1)")) == "1\n"


async def test_large_messages_pass_both_ways(api: Api) -> None:
    kernel = await kernel_of(api)
    size = 12 << 20
    async with connected(api, kernel["id"]) as client:
        told = await client.run(f"print('x' * {size}) or {'1' * 9} #" + "y" * size)

    assert len(text_of(told)) == size + 1


async def test_an_older_client_gets_a_note_in_place_of_what_would_cost_it_its_connection(api: Api) -> None:
    kernel = await kernel_of(api)
    url = f"http://127.0.0.1:{api.port}/api/kernels/{kernel['id']}/channels"
    async with api.http.ws_connect(url, headers=HEADERS, max_msg_size=10 << 20) as socket:
        await socket.send_json({**message("execute_request", {"code": "print('x' * 12_000_000)"}), "channel": "shell"})
        told = [json.loads(await socket.receive_str(timeout=60)) for _ in range(5)]

    [stream] = [each["content"]["text"] for each in told if each["msg_type"] == "stream"]
    assert "bytes of output left out" in stream
    assert len(stream) < 10 << 20


@pytest.mark.parametrize("path", ["kernels/{kernel}/channels", "events/subscribe"])
async def test_refusals_of_a_websocket_are_statuses(api: Api, path: str) -> None:
    kernel = await kernel_of(api)
    path = f"/api/{path.format(kernel=kernel['id'])}"

    await ask(api, "GET", path, 400)  # no upgrade
    await ask(api, "GET", f"/api/kernels/{NO_UUID}/channels", 404)
    await ask(api, "GET", f"/api/kernels/{kernel['id']}/channels?session_id={'x' * 257}", 400)
    for headers, status in (({}, 401), ({"Authorization": "token wrong"}, 401)):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await api.http.ws_connect(f"http://127.0.0.1:{api.port}{path}", headers=headers)
        assert refused.value.status == status


@pytest.mark.parametrize(
    ("origin", "query", "headers", "status"),
    [
        ("https://evil.test", {"token": TOKEN}, {}, 403),  # a page may have got hold of a URL
        ("https://evil.test", {}, HEADERS, 101),  # no page can send this header: a proxy has changed Host
        ("http://127.0.0.1:{port}", {"token": TOKEN}, {}, 101),  # websocket-client
        (None, {"token": TOKEN}, {}, 101),
    ],
)
async def test_an_origin_counts_where_a_page_could_be_asking(
    api: Api, origin: str | None, query: dict[str, str], headers: dict[str, str], status: int
) -> None:
    kernel = await kernel_of(api)
    url = f"http://127.0.0.1:{api.port}/api/kernels/{kernel['id']}/channels"
    headers = {**headers, **({"Origin": origin.format(port=api.port)} if origin else {})}

    if status == 101:
        async with api.http.ws_connect(url, params=query, headers=headers):
            pass
    else:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await api.http.ws_connect(url, params=query, headers=headers)
        assert refused.value.status == status


async def test_a_token_that_is_good_no_more_ends_its_connections(
    tenants: tuple[Api, dict[str, dict[str, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels_module, "CHECK_SECONDS", 0.05)
    api, headers = tenants
    kernel = await ask(api, "POST", "/api/kernels", 201, headers=headers["a"])
    url = f"http://127.0.0.1:{api.port}/api/kernels/{kernel['id']}/channels"

    async with api.http.ws_connect(url, headers=headers["a"]) as socket:
        await asyncio.to_thread(KeyStore(tmp_path).revoke, "key-a")
        closed = await socket.receive(timeout=60)

    assert (closed.type, closed.data) == (aiohttp.WSMsgType.CLOSE, channels_module.NO_LONGER_ALLOWED)


async def test_a_gateway_that_drains_says_503_and_not_404(api: Api) -> None:
    """A client that reads 404 takes its kernel for dead, and does not come back."""
    kernel = await kernel_of(api)
    await api.gateway.drain(0)

    await ask(api, "POST", "/api/kernels", 503)
    await ask(api, "GET", f"/api/kernels/{kernel['id']}")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await api.http.ws_connect(f"http://127.0.0.1:{api.port}/api/kernels/{kernel['id']}/channels", headers=HEADERS)
    assert refused.value.status == 503


async def test_events_are_silent(api: Api) -> None:
    url = f"http://127.0.0.1:{api.port}/api/events/subscribe"
    async with api.http.ws_connect(url, headers=HEADERS) as socket:
        await socket.send_str("{}")
        with pytest.raises(TimeoutError):
            await socket.receive(timeout=0.05)
        assert len(api.sockets) == 1


async def test_an_idle_connection_keeps_its_session_for_longer_and_not_for_ever(tmp_path: Path) -> None:
    # So long that a slow machine connects before the one is over, and looks before the other is.
    async with api_of(tmp_path, cooldown=3.0, idle_connected=7.0) as api:
        gone = await kernel_of(api)
        kernel = await kernel_of(api)
        async with connected(api, kernel["id"]) as client:
            await until(lambda: gone["id"] not in str(api.gateway.kernels(Principal("test"))))
            [listed] = await ask(api, "GET", "/api/kernels")
            closed = [await client.socket.receive(timeout=60) for _ in range(2)]

    assert listed["id"] == kernel["id"]
    assert closed[-1].data == ENDED


async def test_a_quota_refuses_an_execution_as_a_kernel_would(tmp_path: Path) -> None:
    async with api_of(tmp_path, quotas=Quotas({"default": QuotaSettings(executions_per_minute=1)})) as api:
        kernel = await kernel_of(api)
        async with connected(api, kernel["id"]) as client:
            ran = await client.run("1")
            refused = await client.run("2")

    assert kinds(refused) == ["status", "error", "execute_reply", "status"]
    assert read_object(refused[1].content)["ename"] == "QuotaExceeded"
    # Of another session it would be another kernel's to clients.
    assert {read_head(each.header).session for each in refused} == {read_head(ran[-1].header).session}


async def test_executions_are_audited_one_by_one_and_connections_at_their_end(tmp_path: Path) -> None:
    kept, metrics = Kept(), Metrics(CollectorRegistry())
    async with api_of(tmp_path, telemetry=Telemetry(metrics, Tracing(), kept), metrics=metrics) as api:
        kernel = await kernel_of(api)
        async with connected(api, kernel["id"]) as client:
            await client.run("1")
            await client.run("1/0")
            await until(lambda: len(kept.entries) == 2)
        await until(lambda: len(kept.entries) == 3)
        await ask(api, "POST", f"/api/kernels/{kernel['id']}/interrupt", 204)
        await ask(api, "POST", f"/api/kernels/{kernel['id']}/restart")
        counted = await scrape(api)

    assert [(entry.action, entry.outcome, entry.size) for entry in kept.entries] == [
        ("execute", "succeeded", 1),
        ("execute", "failed", 3),
        ("connect", "1000", 0),
        ("kernel_interrupt", "succeeded", 0),
        ("kernel_restart", "succeeded", 0),
    ]
    assert {entry.session for entry in kept.entries} == {kernel["id"]}
    assert counted['kernelpool_executions_total{outcome="succeeded",pool="python"}'] == 1
    assert counted['kernelpool_executions_total{outcome="failed",pool="python"}'] == 1


async def test_no_token_is_told_to_anybody_wherever_it_was(tmp_path: Path, lines: Any) -> None:
    """The access log, errors, audit log and metrics of requests with a token in path and query."""
    kept, metrics = Kept(), Metrics(CollectorRegistry())
    canary = "canary-of-a-token"
    async with api_of(
        tmp_path,
        Authenticator(digest_of(canary)),
        telemetry=Telemetry(metrics, Tracing(), kept),
        metrics=metrics,
    ) as api:
        url = f"http://127.0.0.1:{api.port}"
        answers = []
        for method, path in (
            ("GET", f"/k/{canary}/api/kernels"),
            ("POST", f"/k/{canary}/api/kernels"),
            ("POST", f"/api/sessions?token={canary}"),
            ("GET", f"/k/{canary}/nowhere"),
            ("GET", f"/k/{canary}/pools/python/jupyter/api/kernels/{NO_UUID}"),
            ("GET", f"/api/nowhere?token={canary}&x=1"),
            ("GET", f"/k/{canary}"),
            ("GET", f"/k/{canary}?x"),
            ("PUT", f"/k/{canary}/api"),
            ("GET", f"/k/{canary}/api/kernels?token=wrong"),
        ):
            async with api.http.request(method, url + path) as response:
                answers.append((str(response.headers), await response.text()))
        [kernel] = await ask(api, "GET", "/api/kernels", headers={"Authorization": f"token {canary}"})
        for path in (f"/k/{canary}/api/kernels/{kernel['id']}/channels", f"/api/events/subscribe?token={canary}"):
            async with api.http.ws_connect(url + path):
                pass
        headers = {"Authorization": f"Bearer {canary}"}
        async with api.http.get(f"{url}/metrics", headers=headers) as response:
            answers.append(("", await response.text()))

    told = "\n".join([json.dumps(lines()), repr(kept.entries), *map(str, answers)])
    assert '"event": "request"' in told
    assert canary not in told


async def until(holds: Any) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.001)


async def test_a_wrong_field_is_named_though_the_session_is_there_already(api: Api) -> None:
    body = {"path": "a.ipynb", "type": "notebook"}
    await ask(api, "POST", "/api/sessions", 201, json=body)

    refused = await ask(api, "POST", "/api/sessions", 400, json={**body, "kernel": {"name": {}}})

    assert "name: must be a text" in json.dumps(refused)
