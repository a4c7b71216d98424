"""MCP over HTTP: what clients of each kind send, and what they get back. Clients of others are in `test_mcp_sdk.py`."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from kernelpool.api.mcp import call, exchange
from kernelpool.api.mcp.tools import tools_of
from kernelpool.gateway import Principal
from kernelpool.models import DisplayOutput
from tests.api.conftest import TOKEN, Api, ShowingKernel, api_of

INITIALIZE = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
BOTH = "application/json, text/event-stream"
ARM = "/subscriptions/s/resourceGroups/g/sessionPools/python/mcp"
WHO = Principal("test")
RESOURCE = "/subscriptions/s/resourceGroups/g/providers/Microsoft.App/sessionPools/python"


class Mcp:
    """A client that says of itself only what a test lets it say."""

    def __init__(self, api: Api, path: str = "/mcp", **headers: str) -> None:
        self.api = api
        self.path = path
        self.headers = headers

    def send(self, message: Any, method: str = "POST", **headers: str) -> Any:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        given = {name.replace("_", "-"): value for name, value in {**self.headers, **headers}.items()}
        given = {"Content-Type": "application/json", **given}
        return self.api.request(method, self.path, data=data, headers=given, identifier=None, version=None)

    async def ask(self, method: str, params: Any = None, id: Any = 1, status: int = 200, **headers: str) -> Any:
        """The answer, as the message that it is."""
        message = {"jsonrpc": "2.0", "id": id, "method": method, **({} if params is None else {"params": params})}
        async with self.send(message, **headers) as response:
            assert response.status == status, await response.text()
            assert response.content_type == "application/json"
            return await response.json()

    async def call(self, tool: str, **arguments: Any) -> Any:
        answer = await self.ask("tools/call", {"name": tool, "arguments": arguments})
        return answer["result"]

    async def data(self, tool: str, **arguments: Any) -> Any:
        result = await self.call(tool, **arguments)
        assert not result["isError"], result
        return result["structuredContent"]

    async def open(self) -> str:
        """An MCP session, which it is in from now on."""
        message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": INITIALIZE}
        async with self.send(message) as response:
            self.headers["Mcp_Session_Id"] = response.headers["Mcp-Session-Id"]
        return self.headers["Mcp_Session_Id"]


def call_of(tool: str, id: Any = 1, **arguments: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}


def text_of(result: Any) -> str:
    [text] = [part["text"] for part in result["content"] if part["type"] == "text"]
    return str(text)


# --- the protocol


@pytest.mark.parametrize(
    ("arguments", "stdout", "code"),
    [
        ({"shellCommand": "echo hi"}, "hi\n", 0),
        ({"execCommandAndArgs": ["echo", "a b"]}, "a b\n", 0),
        ({"command": ["echo", "of the older lab"]}, "of the older lab\n", 0),
        ({"shellCommand": "echo so far; exit 3"}, "so far\n", 3),
    ],
)
async def test_acas_shell_tools_work(api: Api, arguments: dict[str, Any], stdout: str, code: int) -> None:
    mcp = Mcp(api)
    for launch in ("launchShell", "launchShellEnvironment"):
        environment = (await mcp.data(launch))["environmentId"]

        ran = await mcp.data("runShellCommandInRemoteEnvironment", environmentId=environment, **arguments)

        assert (ran["stdout"], ran["stderr"], ran["exitCode"], ran["environmentId"]) == (stdout, "", code, environment)


async def test_an_exit_code_is_an_answer_and_a_timeout_an_error(api: Api) -> None:
    mcp = Mcp(api)

    said = await mcp.call("run_command", command="echo a; exit 3")
    late = await mcp.call("run_command", command="echo b; sleep 60", timeout=0.1)

    assert (text_of(said), said["isError"]) == ("a\n[exit code 3]", False)
    assert late["isError"]
    assert text_of(late).startswith("b\n[")
    assert late["structuredContent"]["exitCode"] == -1


async def test_the_tutorial_of_aca_works_as_it_stands(api: Api) -> None:
    """Its requests: no params, ids that are texts, no session, no `initialized`, any Accept."""
    mcp = Mcp(api, x_ms_apikey=TOKEN)

    opened = await mcp.ask("initialize", id="1", Accept="*/*")
    launched = await mcp.ask("tools/call", {"name": "launchPythonEnvironment", "arguments": {}}, id="2", Accept="*/*")
    environment = launched["result"]["structuredContent"]["environmentId"]
    arguments = {"environmentId": environment, "pythonCode": "print('hi')"}
    ran = await mcp.ask("tools/call", {"name": "runPythonCodeInRemoteEnvironment", "arguments": arguments}, id="3")

    assert opened["result"]["protocolVersion"] == "2025-03-26"
    assert ran["id"] == "3"
    assert ran["result"]["structuredContent"]["stdout"] == "hi\n"
    assert ran["result"]["structuredContent"]["stderr"] == ""
    assert ran["result"]["structuredContent"]["environmentId"] == environment


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
async def test_every_revision_with_a_handshake_is_spoken(api: Api, version: str) -> None:
    mcp = Mcp(api, Accept=BOTH)

    opened = await mcp.ask("initialize", {**INITIALIZE, "protocolVersion": version}, id=0)
    async with mcp.send({"jsonrpc": "2.0", "method": "notifications/initialized"}) as response:
        assert (response.status, await response.read()) == (202, b"")
    listed = await mcp.ask("tools/list", id="a", Mcp_Protocol_Version=version)
    ran = await mcp.ask(
        "tools/call", {"name": "run_code", "arguments": {"code": "6 * 7"}}, Mcp_Protocol_Version=version
    )

    assert opened["id"] == 0
    assert opened["result"]["protocolVersion"] == version
    assert opened["result"]["serverInfo"]["name"] == "kernelpool"
    assert [tool["name"] for tool in listed["result"]["tools"]] == list(tools_of("python"))
    assert ran["result"]["structuredContent"]["result"] == "42"
    assert await mcp.ask("ping", Mcp_Protocol_Version=version) == {"jsonrpc": "2.0", "id": 1, "result": {}}


async def test_the_revision_without_a_handshake_is_spoken(api: Api) -> None:
    mcp = Mcp(api, Accept=BOTH, Mcp_Protocol_Version="2026-07-28")

    found = await mcp.ask("server/discover", {"_meta": MODERN}, Mcp_Method="server/discover")
    ran = await mcp.ask(
        "tools/call",
        {"name": "run_code", "arguments": {"code": "6 * 7"}, "_meta": MODERN},
        Mcp_Method="tools/call",
        Mcp_Name="run_code",
    )
    async with mcp.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {}}) as response:
        assert response.status == 202

    assert found["result"]["supportedVersions"] == ["2026-07-28"]
    assert ran["result"]["structuredContent"]["result"] == "42"


async def test_a_revision_that_nobody_knows_is_refused_with_those_that_are_known(api: Api) -> None:
    meta = {**MODERN, "io.modelcontextprotocol/protocolVersion": "2031-01-01"}
    headers = {"Accept": BOTH, "Mcp_Protocol_Version": "2031-01-01", "Mcp_Method": "tools/list"}

    answer = await Mcp(api, **headers).ask("tools/list", {"_meta": meta}, status=400)

    assert answer["error"]["data"] == {"supported": ["2026-07-28"], "requested": "2031-01-01"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", -32700),
        (b"{", -32700),
        (b'{"jsonrpc": "2.0", "id": NaN, "method": "ping"}', -32700),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, -32700),
        (b"\xff", -32700),
        (b"[]", -32600),
        (json.dumps([call_of("run_code")] * 2).encode(), -32600),
        (
            b'[{"jsonrpc":"2.0","id":1,"method":"ping"}' + b',{"jsonrpc":"2.0","id":1,"method":"ping"}' * 10**4 + b"]",
            -32600,
        ),
        (b"1", -32600),
        (b'{"id": 1, "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": {}, "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1.5, "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": true, "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1, "method": 7}', -32600),
    ],
)
async def test_what_is_no_message_is_refused_and_runs_nothing(api: Api, body: bytes, code: int) -> None:
    async with Mcp(api).send(body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] == code

    assert await api.gateway.list_sessions(WHO, "python") == []


@pytest.mark.parametrize("id", [0, 1, -5, "", "a", "0", 2**53])
async def test_an_answer_has_the_id_of_its_question(api: Api, id: Any) -> None:
    answer = await Mcp(api).ask("ping", id=id)

    assert answer["id"] == id
    assert type(answer["id"]) is type(id)


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("nothing/here", {}, -32601),
        ("prompts/list", {}, -32601),
        ("tools/call", {}, -32602),
        ("tools/call", {"name": 5}, -32602),
        ("tools/call", {"name": "run_code", "arguments": []}, -32602),
        ("tools/call", {"name": "rm -rf"}, -32602),
        ("initialize", {"protocolVersion": 5}, -32602),
        ("resources/read", {"uri": "file:///etc/passwd"}, -32002),
        ("resources/read", {"uri": "kernelpool://sessions/none/files/a.txt"}, -32002),
    ],
)
async def test_what_cannot_be_done_is_an_error_of_the_protocol(api: Api, method: str, params: Any, code: int) -> None:
    answer = await Mcp(api).ask(method, params)

    assert answer["error"]["code"] == code


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH"])
async def test_a_stream_that_nobody_asked_in_is_not_offered(api: Api, method: str) -> None:
    async with Mcp(api).send(b"{}", method) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST, DELETE"


async def test_a_page_of_another_site_and_a_rebound_name_get_nowhere(api: Api) -> None:
    async with Mcp(api).send(call_of("run_code", code="1"), Origin="https://evil.test") as response:
        assert response.status == 403
    async with Mcp(api).send(call_of("run_code", code="1"), Host="evil.test") as response:
        assert response.status == 421

    assert await api.gateway.list_sessions(WHO, "python") == []


async def test_a_body_has_the_limit_of_all_bodies(api: Api) -> None:
    body = io.BytesIO(json.dumps(call_of("run_code", code="#" * (2 << 20))).encode())
    async with api.request("POST", "/mcp", data=body, headers={"Content-Type": "application/json"}) as response:
        assert response.status == 413
        error = (await response.json())["error"]

    assert error["code"] == -32600
    assert "larger than 1048576 bytes" in error["message"]
    assert error["message"].endswith(error["data"]["remedy"])
    assert error["data"]["code"] == response.headers["x-ms-error-code"]


async def test_a_gateway_without_the_extra_says_what_to_install(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp_types", None)
    for name in [
        name
        for name in sys.modules
        if name.startswith("kernelpool.api.mcp.") and name.endswith(("server", "service", "exchange"))
    ]:
        monkeypatch.delitem(sys.modules, name)

    error = await api.json("POST", "/mcp", status=501, json={"jsonrpc": "2.0", "id": 1, "method": "ping"})

    assert (error["jsonrpc"], error["id"], error["error"]["code"]) == ("2.0", None, -32603)
    assert error["error"]["data"]["code"] == "McpNotInstalled"
    assert "kernelpool[mcp]" in error["error"]["message"]


# --- sessions


async def test_who_has_no_mcp_session_stays_in_one_session_of_his_own(api: Api) -> None:
    mcp = Mcp(api)
    await mcp.call("run_code", code="x = 1")

    assert (await mcp.data("run_code", code="x"))["result"] == "1"
    assert (await mcp.data("run_code", code="x = 2; x", session="named-1"))["result"] == "2"
    assert (await mcp.data("run_code", code="x"))["result"] == "1"
    assert await api.run("x", identifier="named-1") is not None  # the same session by REST


async def test_each_mcp_session_has_a_session_of_its_own_that_ends_with_it(api: Api) -> None:
    one, other = Mcp(api), Mcp(api)
    first, second = await one.open(), await other.open()
    await one.call("run_code", code="x = 1")
    await other.call("run_code", code="x = 2")

    assert first != second
    assert [(await each.data("run_code", code="x"))["result"] for each in (one, other)] == ["1", "2"]
    async with one.send(b"", "DELETE") as response:
        assert response.status == 204
    answer = await one.ask("ping", status=404)
    assert answer["error"]["code"] == -32600
    async with one.send(b"", "DELETE") as response:
        assert response.status == 404
    [left] = await api.gateway.list_sessions(WHO, "python")
    assert left.identifier == (await other.data("run_code", code="x"))["session"]


async def test_a_guessed_mcp_session_is_none(api: Api) -> None:
    mcp = Mcp(api)
    real = await mcp.open()

    for guess in ("x", real[:-1], real[:-1] + ("0" if real[-1] != "0" else "1")):
        assert (await mcp.ask("ping", status=404, Mcp_Session_Id=guess))["error"]["code"] == -32600
    async with mcp.send({"jsonrpc": "2.0", "method": "notifications/initialized"}, Mcp_Session_Id="x") as response:
        assert response.status == 404


async def test_a_url_may_name_the_session(api: Api) -> None:
    await Mcp(api, "/mcp?identifier=mine-1").call("run_code", code="x = 'mine'")

    assert (await api.run("x", identifier="mine-1"))["result"]["executionResult"] == "mine"


async def test_a_reset_session_is_a_fresh_one(api: Api) -> None:
    mcp = Mcp(api)
    await mcp.call("run_code", code="x = 1")

    assert (await mcp.data("reset_session"))["wasThere"]
    assert (await mcp.call("run_code", code="x"))["isError"]
    await mcp.data("reset_session")
    assert not (await mcp.data("reset_session"))["wasThere"]


async def test_an_invented_environment_is_told_in_acas_word(api: Api) -> None:
    arguments = {"environmentId": "1", "pythonCode": "1"}

    result = await Mcp(api).call("runPythonCodeInRemoteEnvironment", **arguments)

    assert result["isError"]
    assert text_of(result).startswith("InvalidLengthOfSessionIdentifier: ")


# --- results


async def test_every_tool_describes_itself_and_keeps_to_it(api: Api) -> None:
    mcp = Mcp(api)
    listed = (await mcp.ask("tools/list"))["result"]["tools"]
    ran = await mcp.data("run_code", code="1")
    calls = {
        "run_code": {"code": "print(1); 2"},
        "run_command": {"command": "echo hi"},
        "read_output": {"execution": ran["executionId"]},
        "cancel_execution": {"execution": ran["executionId"]},
        "list_files": {},
        "read_file": {"path": "a.txt"},
        "write_file": {"path": "a.txt", "text": "a"},
        "export_notebook": {},
        "reset_session": {},
        "launchShell": {},
        "launchShellEnvironment": {},
        "runShellCommandInRemoteEnvironment": {"environmentId": "abcd", "shellCommand": "echo hi"},
        "launchPythonEnvironment": {},
        "runPythonCodeInRemoteEnvironment": {"environmentId": "abcd", "pythonCode": "1"},
    }
    await mcp.call("write_file", **calls["write_file"])

    assert calls.keys() == {tool["name"] for tool in listed}
    for tool in listed:
        Draft202012Validator.check_schema(tool["inputSchema"])
        Draft202012Validator(tool["inputSchema"]).validate(calls[tool["name"]])
        result = await mcp.call(tool["name"], **calls[tool["name"]])
        assert not result["isError"], result
        if "outputSchema" in tool:
            Draft202012Validator({**tool["outputSchema"], "additionalProperties": False}).validate(
                result["structuredContent"]
            )
        else:
            assert "structuredContent" not in result
        assert tool["title"]
        assert len(tool["description"]) > 20
        assert tool["annotations"]["readOnlyHint"] is (tool["name"] in ("read_output", "list_files", "read_file"))
        assert "$ref" not in json.dumps(tool)
        tool.pop("outputSchema", None)
    assert len(json.dumps(listed)) < 14_000, "that much of every conversation"


async def test_an_image_is_there_once_as_an_image(api: Api) -> None:
    png = base64.b64encode(b"\x89PNG of a kind").decode()
    (await api.process("with-image")).kernel = ShowingKernel(
        DisplayOutput({"image/png": png, "text/plain": "<Figure>"})
    )

    result = await Mcp(api).call("run_code", code="print('drawn')", session="with-image")

    assert json.dumps(result).count(png) == 1
    assert [part for part in result["content"] if part["type"] == "image"] == [
        {"type": "image", "data": png, "mimeType": "image/png"}
    ]
    assert text_of(result) == "[image 1]\ndrawn\n"
    assert result["structuredContent"]["images"] == 1


async def test_images_that_no_client_could_take_are_left_out_and_counted(api: Api) -> None:
    large = DisplayOutput({"image/png": base64.b64encode(b"\x89PNG" + bytes(750_000)).decode()})
    (await api.process("with-image")).kernel = ShowingKernel(large)

    result = await Mcp(api).call("run_code", code="1", session="with-image")

    assert "[1 of 1 images are not shown here: too large]" in text_of(result)
    assert len(json.dumps(result)) < 10_000


@pytest.mark.parametrize("letter", ["語", "\x01", "😀"])
async def test_an_answer_is_no_longer_than_clients_take_whatever_it_says(api: Api, letter: str) -> None:
    result = await Mcp(api).call("run_code", code=f"print({letter!r} * 200_000)", max_characters=100_000)

    assert 200_000 < len(json.dumps(result)) < 1 << 20
    assert "characters left out; read_output with" in text_of(result)


async def test_long_output_keeps_head_and_tail_and_the_rest_can_be_read(api: Api) -> None:
    mcp = Mcp(api)
    code = "print(''.join(f'{n:05d},' for n in range(10000)))"

    result = await mcp.call("run_code", code=code)
    text = text_of(result)
    id, omitted = result["structuredContent"]["executionId"], result["structuredContent"]["omittedCharacters"]
    rest = text_of(await mcp.call("read_output", execution=id, offset=8000, max_characters=60_000))

    assert len(text) < 16_300
    assert text.startswith("00000,00001,")
    assert text.endswith("09999,\n")
    assert omitted == 60_001 - 16_000
    assert f'[… {omitted} characters left out; read_output with execution="{id}" and offset=8000 reads them …]' in text
    assert text[:8000] + rest == "".join(f"{n:05d}," for n in range(10000)) + "\n"


async def test_code_that_fails_is_an_error_that_a_model_can_read(api: Api) -> None:
    result = await Mcp(api).call("run_code", code="print('before'); 1 / 0")

    assert result["isError"]
    assert text_of(result).startswith("before\n")
    assert "ZeroDivisionError" in text_of(result)
    assert result["structuredContent"]["errorName"] == "ZeroDivisionError"
    assert result["structuredContent"]["stdout"] == "before\n"


async def test_a_timeout_keeps_the_output_so_far(api: Api) -> None:
    result = await Mcp(api).call("run_code", code="print('so far')\nimport time\ntime.sleep(60)", timeout=0.2)

    assert result["isError"]
    assert text_of(result).startswith("so far\n[")
    assert result["structuredContent"]["stdout"] == "so far\n"


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("run_code", {}, "code: Field required"),
        ("run_code", {"code": 5}, "code: Input should be a valid string"),
        ("run_code", {"code": "1", "timeout": 10**6}, "timeout must be at most 220 seconds"),
        ("run_code", {"code": "1", "max_characters": 10**9}, "max_characters: Input should be less than or equal"),
        ("read_file", {"path": "../../etc/passwd"}, "path must not contain '..'"),
        ("read_file", {"path": "none.txt"}, "FileNotFound"),
        ("write_file", {"path": "a", "text": "a", "base64": "YQ=="}, "give text or base64, not both"),
        ("write_file", {"path": "a", "base64": "?"}, "base64 is not valid"),
        ("read_output", {"execution": "none"}, "NoSessionFoundError"),
        ("run_command", {"command": "a\0b"}, "NUL"),
        ("run_command", {"command": "a" * 200_000}, "at most 131071"),
        ("runShellCommandInRemoteEnvironment", {"environmentId": "abcd"}, "give either shellCommand or"),
        ("runShellCommandInRemoteEnvironment", {"environmentId": "abcd", "execCommandAndArgs": ["a\0"]}, "NUL"),
        ("cancel_execution", {"execution": "none", "session": "named"}, "NoSessionFoundError"),
        ("runPythonCodeInRemoteEnvironment", {"environmentId": "", "pythonCode": "1"}, "environmentId"),
        ("runShellCommandInRemoteEnvironment", {"environmentId": "", "shellCommand": "id"}, "environmentId"),
    ],
)
async def test_what_a_model_got_wrong_is_told_to_the_model(
    api: Api, tool: str, arguments: dict[str, Any], words: str
) -> None:
    result = await Mcp(api).call(tool, **arguments)

    assert result["isError"]
    assert words in text_of(result)
    assert "Traceback" not in text_of(result)


async def test_null_stands_for_what_is_not_said(api: Api) -> None:
    result = await Mcp(api).call("run_code", code="1 + 1", session=None, timeout=None)

    assert text_of(result) == "2"


async def test_arguments_of_giant_size_change_nothing(api: Api) -> None:
    session, path = "s" * 500_000, "p" * 500_000

    assert "128 are allowed" in text_of(await Mcp(api).call("run_code", code="1", session=session))
    for tool in ("read_file", "write_file"):
        result = await Mcp(api).call(tool, path=path)
        assert result["isError"]
        assert len(text_of(result)) < 1000


# --- files


async def test_files_are_written_listed_read_and_resources(api: Api) -> None:
    mcp = Mcp(api)
    written = await mcp.data("write_file", path="/mnt/data/notes/a.txt", text="héllo")
    await mcp.call("write_file", path="b.bin", base64="AP8=")

    listed = await mcp.data("list_files", recursive=True)
    resources = (await mcp.ask("resources/list"))["result"]["resources"]
    read = (await mcp.ask("resources/read", {"uri": written["uri"]}))["result"]["contents"]
    blob = (await mcp.ask("resources/read", {"uri": resources[0]["uri"]}))["result"]["contents"]

    assert written["size"] == 6
    assert {"notes/a.txt", "b.bin"} <= {entry["path"] for entry in listed["files"]}
    assert text_of(await mcp.call("read_file", path="notes/a.txt")) == "héllo"
    assert "read it with code" in text_of(await mcp.call("read_file", path="b.bin"))
    assert [each["name"] for each in resources] == ["b.bin", "notes/a.txt"]
    assert [(each["text"], each["mimeType"]) for each in read] == [("héllo", "text/plain; charset=utf-8")]
    assert [each["blob"] for each in blob] == ["AP8="]


async def test_a_long_file_is_read_piece_by_piece_without_a_split_character(api: Api) -> None:
    mcp = Mcp(api)
    text = "é" * 700
    await mcp.call("write_file", path="long.txt", text=text)

    first = text_of(await mcp.call("read_file", path="long.txt", max_characters=201))
    whole = first.partition("\n[…")[0]
    rest = text_of(await mcp.call("read_file", path="long.txt", offset=200))

    assert whole == "é" * 100
    assert "[… 1200 bytes left out; read_file with offset=200 reads them …]" in first
    assert whole + rest == text


async def test_an_image_file_is_looked_at(api: Api) -> None:
    mcp = Mcp(api)
    await mcp.call("write_file", path="a.png", base64="iVBORw0KGgo=")

    result = await mcp.call("read_file", path="a.png")

    assert [part.get("data") for part in result["content"]] == [None, "iVBORw0KGgo="]
    assert text_of(result) == "/mnt/data/a.png: 8 bytes of image/png"


@pytest.mark.parametrize("content", ["", "bm8gaW1hZ2U="])
async def test_what_is_only_called_an_image_is_not_shown_as_one(api: Api, content: str) -> None:
    mcp = Mcp(api)
    await mcp.call("write_file", path="a.png", base64=content)

    result = await mcp.call("read_file", path="a.png")

    assert [part["type"] for part in result["content"]] == ["text"]
    assert "is no image" in text_of(result)


async def test_the_notebook_holds_what_was_run_by_whichever_door(api: Api) -> None:
    mcp = Mcp(api)
    session = (await mcp.data("run_code", code="x = 6"))["session"]
    await api.run("x * 7", identifier=session)

    exported = await mcp.data("export_notebook", path="all.ipynb")
    uri = f"kernelpool://sessions/{session}/notebook.ipynb"
    read = (await mcp.ask("resources/read", {"uri": uri}))["result"]["contents"][0]
    file = json.loads(text_of(await mcp.call("read_file", path="all.ipynb")))

    assert exported["cells"] == 2
    assert [cell["source"] for cell in file["cells"]] == ["x = 6", "x * 7"]
    assert json.loads(read["text"])["cells"] == file["cells"]
    assert file["cells"][0]["metadata"]["kernelpool"]["origin"] == "mcp"


# --- what takes long


async def test_progress_is_told_and_the_answer_is_the_last_event(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "TICK_SECONDS", 0.05)
    message = call_of("run_code", id="slow", code="go = False\nwhile not go: pass\n'done'", session="slow-1")
    message["params"]["_meta"] = {"progressToken": 0}
    told = []

    async with Mcp(api).send(message, Accept=BOTH) as response:
        assert response.content_type == "text/event-stream"
        async for line in response.content:
            if line.startswith(b"data: "):
                told.append(json.loads(line.removeprefix(b"data: ")))
            if len(told) == 3:
                await let_go(api, "slow-1")

    *progress, last = told
    assert last["result"]["structuredContent"]["result"] == "'done'"
    assert len(progress) >= 3
    assert {each["method"] for each in progress} == {"notifications/progress"}
    assert {each["params"]["progressToken"] for each in progress} == {0}
    seconds = [each["params"]["progress"] for each in progress]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize(("accept", "kind"), [(BOTH, "text/event-stream"), ("*/*", "application/json")])
async def test_only_who_takes_streams_gets_signs_of_life(
    api: Api, monkeypatch: pytest.MonkeyPatch, accept: str, kind: str
) -> None:
    monkeypatch.setattr(exchange, "SIGN_SECONDS", 0.05)
    message = call_of("run_code", code="import time\ntime.sleep(0.5)")

    async with Mcp(api).send(message, Accept=accept) as response:
        assert response.content_type == kind
        assert (b": keep-alive\n\n" in await response.read()) is (accept == BOTH)


async def test_a_client_that_leaves_ends_what_it_was_waiting_for(api: Api) -> None:
    async def ask(mcp: Mcp, message: Any) -> None:
        async with mcp.send(message):
            pass

    for headers in ({}, {"Mcp_Protocol_Version": "2026-07-28", "Mcp_Method": "tools/call", "Mcp_Name": "run_code"}):
        mcp = Mcp(api, Accept=BOTH, **headers)
        message = call_of("run_code", code="import time\ntime.sleep(60)", session="left-1")
        message["params"]["_meta"] = MODERN if headers else {}

        asking = asyncio.create_task(ask(mcp, message))
        await running(api, "left-1")
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

        assert (await api.run("'free'", identifier="left-1"))["result"]["executionResult"] == "free"


async def test_a_request_of_an_mcp_session_can_be_cancelled_by_its_id(api: Api) -> None:
    mcp, other = Mcp(api, Accept=BOTH), Mcp(api)
    await mcp.open()
    await other.open()
    slow = call_of("run_code", id=7, code="import time\ntime.sleep(60)", session="cancel-1")
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}

    async def ask() -> tuple[str, bytes]:
        async with mcp.send(slow) as response:
            return response.content_type, await response.read()

    asking = asyncio.create_task(ask())
    await running(api, "cancel-1")
    async with other.send(cancel) as response:  # the same id, but not the same session
        assert response.status == 202
    odd: Any
    for odd in ({"requestId": []}, {"requestId": "7"}, {}, None):
        async with mcp.send({**cancel, "params": odd}) as response:
            assert response.status in (202, 400)
    assert not asking.done()
    async with mcp.send(cancel) as response:
        assert response.status == 202

    async with asyncio.timeout(60):
        assert await asking == ("text/event-stream", b"")
    assert (await api.run("'free'", identifier="cancel-1"))["result"]["executionResult"] == "free"


async def test_code_in_the_background_runs_on_and_is_waited_for(api: Api) -> None:
    mcp = Mcp(api)

    code = "import time\ngo = False\nwhile not go: pass\ntime.sleep(0.3)\nprint('ready')"
    started = await mcp.call("run_code", code=code, background=True)
    id = started["structuredContent"]["executionId"]
    await running(api, started["structuredContent"]["session"])
    soon = await mcp.call("read_output", execution=id, wait=0.01)
    await let_go(api, started["structuredContent"]["session"])
    late = await mcp.call("read_output", execution=id, wait=30)

    assert started["structuredContent"]["state"] in ("queued", "running")
    assert f'read_output with execution="{id}" and wait=60' in text_of(started)
    assert soon["structuredContent"]["state"] == "running"
    assert (late["structuredContent"]["state"], text_of(late)) == ("succeeded", "ready\n")


async def test_a_run_can_be_cancelled_by_its_execution(api: Api) -> None:
    mcp = Mcp(api)
    started = await mcp.data("run_code", code="print('begun')\nimport time\ntime.sleep(60)", background=True)
    await running(api, started["session"])

    result = await mcp.call("cancel_execution", execution=started["executionId"])

    assert not result["isError"]
    assert result["structuredContent"]["state"] == "canceled"
    assert text_of(result).startswith("begun\n[")


async def test_many_calls_at_once_are_each_answered(api: Api) -> None:
    mcp = Mcp(api)

    results = await asyncio.gather(*(mcp.data("run_code", code=f"{n}", session=f"many-{n % 3}") for n in range(30)))

    assert [result["result"] for result in results] == [str(n) for n in range(30)]


async def test_a_crowd_in_one_session_is_bounded_and_told_so(api: Api) -> None:
    mcp = Mcp(api, Accept=BOTH)
    slow = call_of("run_code", code="while not go: pass", session="crowd-1")
    await api.run("go = False", identifier="crowd-1")

    async def ask(id: int) -> Any:
        async with mcp.send({**slow, "id": id}) as response:
            return json.loads((await response.text()).removeprefix("event: message\ndata: "))

    asking = [asyncio.create_task(ask(id)) for id in range(60)]
    await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)  # a refusal: nothing that runs can end yet
    await let_go(api, "crowd-1")
    answers = await asyncio.gather(*asking)

    assert [answer["id"] for answer in answers] == list(range(60))
    refused = [text_of(answer["result"]) for answer in answers if answer["result"]["isError"]]
    assert 0 < len(refused) < 60
    assert {text.partition(":")[0] for text in refused} == {"ExecutionQueueFull"}


# --- keys


async def arm(api: Api, method: str, path: str = "", body: Any = None, status: int = 200, of: str = "python") -> Any:
    url = f"http://127.0.0.1:{api.port}{RESOURCE.replace('python', of)}{path}?api-version=2025-02-02-preview"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with api.http.request(method, url, json=body, headers=headers) as response:
        assert response.status == status, await response.text()
        return await response.json() if status != 204 else None


async def with_key(api: Api, key: str, header: str = "x-ms-apikey") -> int:
    url = f"http://127.0.0.1:{api.port}{ARM}"
    headers = {header: key if header == "x-ms-apikey" else f"Bearer {key}"}
    async with api.http.post(url, json={"jsonrpc": "2.0", "id": 1, "method": "ping"}, headers=headers) as response:
        return int(response.status)


async def test_the_pools_key_is_fetched_again_and_again_and_ends_with_its_renewal(api: Api) -> None:
    old = (await arm(api, "POST", "/fetchMCPServerCredentials"))["apiKey"]

    assert (await arm(api, "POST", "/fetchMcpServerCredentials"))["apiKey"] == old
    assert await with_key(api, old) == await with_key(api, old, "Authorization") == 200
    for action in ("/rotateMcpServerCredentials", "/regenerateCredentials"):
        new = (await arm(api, "POST", action))["apiKey"]
        assert await with_key(api, old) == 401
        assert await with_key(api, new) == 200
        assert (await arm(api, "POST", "/fetchMcpServerCredentials"))["apiKey"] == new
        old = new


async def test_a_pools_key_is_good_for_nothing_but_mcp(api: Api) -> None:
    key = (await arm(api, "POST", "/fetchMcpServerCredentials"))["apiKey"]

    for path in ("/listSessions", "/session", "/files"):
        await api.json("GET", path, 401, headers={"Authorization": f"Bearer {key}"})
    url = f"http://127.0.0.1:{api.port}{ARM.replace('python', 'other')}"
    async with api.http.post(url, json={}, headers={"x-ms-apikey": key}) as response:
        assert response.status == 401


async def test_a_pool_of_the_same_name_has_another_key(api: Api) -> None:
    keys = []
    for _ in range(2):
        await arm(api, "PUT", of="other", body={"properties": {"containerType": "PythonLTS"}}, status=201)
        keys.append((await arm(api, "POST", "/fetchMcpServerCredentials", of="other"))["apiKey"])
        await arm(api, "DELETE", of="other", status=204)

    assert keys[0] != keys[1]


async def test_settings_in_azures_words_turn_keys_and_server_off(api: Api) -> None:
    key = (await arm(api, "POST", "/fetchMcpServerCredentials"))["apiKey"]

    def settings(**values: bool) -> Any:
        return {"properties": {"mcpServerSettings": values}}

    shown = await arm(api, "PATCH", body=settings(isMcpServerApiKeyDisabled=True))
    assert shown["properties"]["mcpServerSettings"] == {
        "isMcpServerEnabled": True,
        "isMcpServerApiKeyDisabled": True,
        "mcpServerEndpoint": f"http://127.0.0.1:{api.port}{ARM}",
    }
    assert await with_key(api, key) == 401
    assert (await Mcp(api).ask("ping"))["result"] == {}
    error = await arm(api, "POST", "/fetchMcpServerCredentials", status=400)
    assert error["error"]["code"] == "SessionMCPServerNotEnabled"

    shown = await arm(api, "PATCH", body=settings(isMCPServerEnabled=False, isMcpServerApiKeyDisabled=False))
    assert shown["properties"]["mcpServerSettings"]["isMcpServerEnabled"] is False
    assert await with_key(api, key) == 401
    async with Mcp(api).send({"jsonrpc": "2.0", "id": 1, "method": "ping"}) as response:
        assert response.status == 400
        assert (await response.json())["error"]["data"]["code"] == "SessionMCPServerNotEnabled"

    await arm(api, "PATCH", body=settings(isMCPServerEnabled=True))
    assert await with_key(api, key) == 200


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"isMcpServerOn": True}, "properties.mcpServerSettings.isMcpServerOn: no such property"),
        ({"isMcpServerEnabled": "yes"}, "properties.mcpServerSettings.isMcpServerEnabled: must be true or false"),
        ([], "properties.mcpServerSettings: must be a JSON object"),
    ],
)
async def test_what_azure_has_no_word_for_is_refused(api: Api, value: Any, words: str) -> None:
    error = await arm(api, "PATCH", body={"properties": {"mcpServerSettings": value}}, status=400)

    assert error["error"]["message"] == words


async def test_a_custom_container_has_no_server_of_ours(api: Api) -> None:
    template = {"containers": [{"name": "a", "image": "a:1"}], "ingress": {"targetPort": 80}}
    properties = {"containerType": "CustomContainer", "customContainerTemplate": template}

    error = await arm(
        api,
        "PUT",
        of="own",
        body={"properties": {**properties, "mcpServerSettings": {"isMcpServerEnabled": True}}},
        status=400,
    )
    made = await arm(api, "PUT", of="own", body={"properties": properties}, status=201)
    refused = await arm(api, "POST", "/fetchMcpServerCredentials", of="own", status=400)

    assert "a CustomContainer has no MCP server but its own" in error["error"]["message"]
    assert made["properties"]["mcpServerSettings"] is None
    assert refused["error"]["code"] == "SessionMCPServerNotEnabled"


@pytest.mark.parametrize("keys", [[], ["", ""], [""], ["a", "b"]])
async def test_a_key_is_there_once_or_the_request_is_nobodys(api: Api, keys: list[str]) -> None:
    url = f"http://127.0.0.1:{api.port}{ARM}"
    headers = [("x-ms-apikey", key) for key in keys]
    async with api.http.post(url, json={}, headers=headers) as response:
        assert response.status == 401


async def test_two_credentials_are_two_callers(tmp_path: Path) -> None:
    async with api_of(tmp_path, max_sessions=5) as api:
        key = (await arm(api, "POST", "/fetchMcpServerCredentials"))["apiKey"]
        session = await Mcp(api).open()
        url = f"http://127.0.0.1:{api.port}{ARM}"
        headers = {"x-ms-apikey": key, "Mcp-Session-Id": session}
        async with api.http.post(url, json={"jsonrpc": "2.0", "id": 1, "method": "ping"}, headers=headers) as response:
            assert response.status == 404


async def running(api: Api, identifier: str) -> None:
    """Until something runs in it."""
    async with asyncio.timeout(60):
        while True:
            sessions = await api.gateway.list_sessions(WHO, "python")
            is_there = any(info.identifier == identifier for info in sessions)
            if is_there and (await api.process(identifier)).status().running:
                return
            await asyncio.sleep(0.01)


async def let_go(api: Api, identifier: str) -> None:
    """Ends what waits there for `go`."""
    (await api.process(identifier)).kernel._variables["go"] = True
