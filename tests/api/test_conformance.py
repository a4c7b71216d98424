"""The wire contract of ACA dynamic sessions, vector by vector as compatible clients depend on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelpool.models import DisplayOutput
from tests.api.conftest import LEGACY, TOKEN, Api, ShowingKernel, api_of, multipart
from tests.fakes import RUNTIME

PNG = "iVBORw0KGgo="


async def execute(api: Api, code: str, identifier: str = "abcd-1") -> dict[str, object]:
    """By the route of old."""
    body = {"properties": {"codeInputType": "inline", "executionType": "synchronous", "code": code}}
    answer = await api.json("POST", "/code/execute", json=body, identifier=identifier, version=LEGACY)
    properties: dict[str, object] = answer["properties"]
    return properties


async def test_v1_the_old_route_answers_in_properties_with_typed_results(api: Api) -> None:
    properties = await execute(api, "1 + 1")

    assert properties["status"] == "Success"
    assert properties["result"] == 2
    assert properties["executionResult"] == 2
    assert (properties["stdout"], properties["stderr"]) == ("", "")
    assert isinstance(properties["executionTimeInMilliseconds"], int)


async def test_v2_variables_stay_with_their_identifier(api: Api) -> None:
    await execute(api, "x = 41")

    assert (await execute(api, "x + 1"))["result"] == 42
    elsewhere = await execute(api, "x + 1", identifier="abcd-2")
    assert elsewhere["status"] == "Failure"
    assert "NameError" in str(elsewhere["stderr"])


async def test_v3_a_list_comes_back_as_text(api: Api) -> None:
    """AutoGen takes the text apart; a JSON array would look to it like one giant name."""
    assert (await execute(api, "['pip', 'numpy']"))["result"] == "['pip', 'numpy']"


async def test_v4_a_failure_has_null_and_the_traceback(api: Api) -> None:
    properties = await execute(api, "1/0")

    assert properties["status"] == "Failure"
    assert properties["result"] is None
    assert "ZeroDivisionError" in str(properties["stderr"])


async def test_v4b_a_dict_is_text_and_a_string_has_no_quotes(api: Api) -> None:
    assert (await execute(api, "{'a': 1}"))["result"] == "{'a': 1}"
    assert (await execute(api, "'hi'"))["result"] == "hi"


async def test_no_value_is_an_empty_string(api: Api) -> None:
    assert (await execute(api, "y = 1"))["result"] == ""


async def test_v5_an_open_figure_is_the_result_also_after_a_print(api: Api) -> None:
    process = await api.process()
    process.kernel = ShowingKernel(DisplayOutput({"image/png": PNG, "text/plain": "<Figure>"}, files=("fig.png",)))

    properties = await execute(api, "print('ok')")

    assert properties["stdout"] == "ok\n"
    assert properties["result"] == {"type": "image", "format": "png", "base64_data": PNG}


async def test_v6_an_upload_with_a_full_path_is_listed_by_its_name(api: Api) -> None:
    """Semantic Kernel for Python looks the name up in the listing right after the upload."""
    form = multipart(b"hello", name="/mnt/data/test1.txt")

    uploaded = await api.json("POST", "/files/upload", version=LEGACY, **form)
    listed = await api.json("GET", "/files", version=LEGACY)

    assert uploaded["value"][0]["properties"]["filename"] == "test1.txt"
    assert [entry["properties"]["filename"] for entry in listed["value"]] == ["test1.txt"]
    assert listed["value"][0]["properties"]["size"] == 5


async def test_v7_the_new_route_answers_with_a_resource(api: Api) -> None:
    answer = await api.json(
        "POST",
        "/executions",
        version="2024-10-02-preview",
        json={
            "codeInputType": "Inline",
            "executionType": "Synchronous",
            "timeoutInSeconds": 100,
            "code": "print('Hello World!')",
        },
    )

    assert answer["identifier"] == "abcd-1"
    assert answer["executionType"] == "Synchronous"
    assert answer["status"] == "Succeeded"
    assert answer["result"]["stdout"] == "Hello World!\n"
    assert answer["result"]["stderr"] == ""
    assert answer["result"]["executionResult"] == ""
    assert isinstance(answer["result"]["executionTimeInMilliseconds"], int)


async def test_v8_an_asynchronous_execution_is_polled_at_its_location(api: Api) -> None:
    body = {"code": "time.sleep(0.01); 6 * 7", "executionType": "Asynchronous"}
    await api.run("import time")
    async with api.request("POST", "/executions", json=body) as response:
        submitted = await response.json()
        location = response.headers["Operation-Location"]
        assert response.headers["operation-id"] == submitted["id"]

    assert response.status == 200
    assert submitted["status"] in ("NotStarted", "Running")
    assert "result" not in submitted
    answer = await poll(api, location)
    assert answer["status"] == "Succeeded"
    assert answer["result"]["executionResult"] == 42


async def poll(api: Api, location: str) -> Any:
    async with asyncio.timeout(30):
        while True:
            async with api.http.get(location, headers={"Authorization": f"Bearer {TOKEN}"}) as response:
                answer = await response.json()
            if answer["status"] not in ("NotStarted", "Running"):
                return answer


async def test_v9_a_command_has_its_exit_code_for_a_status(api: Api) -> None:
    text = await api.json("POST", "/executions", json={"shellCommand": "echo hi; exit 3"})
    words = await api.json("POST", "/executions", json={"execCommandAndArgs": ["echo", "a b"], "timeoutInSeconds": 60})
    late = await api.json("POST", "/executions", json={"shellCommand": "sleep 60", "timeoutInSeconds": 1})

    assert (text["status"], text["result"]["stdout"]) == ("3", "hi\n")
    assert (words["status"], words["result"]["stdout"]) == ("0", "a b\n")
    assert late["status"] == "-1"
    assert not {"executionResult", "result"} & {*text["result"], *words["result"], *late["result"]}


@pytest.fixture
async def shell_pool(tmp_path: Path) -> AsyncIterator[Api]:
    async with api_of(tmp_path, runtime=replace(RUNTIME, language="bash")) as api:
        yield api


@pytest.mark.parametrize("field", ["codeInputType", "executionType"])
async def test_v10_a_shell_pool_refuses_what_is_about_code(shell_pool: Api, field: str) -> None:
    body = {"shellCommand": "echo hi", field: "Inline"}
    async with shell_pool.request("POST", "/executions", json=body) as response:
        problem = await response.json()

    assert (response.status, response.content_type) == (400, "application/problem+json")
    assert list(problem["errors"]) == [field]


async def test_a_header_asks_for_an_asynchronous_execution_in_any_pool(shell_pool: Api) -> None:
    headers = {"Prefer": "handling=lenient, Respond-Async"}
    body = {"shellCommand": "sleep 0.01; echo hi"}
    async with shell_pool.request("POST", "/executions", json=body, headers=headers) as response:
        submitted = await response.json()
        location = response.headers["Operation-Location"]

    assert submitted["status"] in ("NotStarted", "Running")
    assert response.headers["Preference-Applied"] == "respond-async"
    answer = await poll(shell_pool, location)
    assert (answer["status"], answer["result"]["stdout"]) == ("0", "hi\n")


async def test_v12_a_session_can_be_deleted_once(api: Api) -> None:
    await api.run("1")

    async with api.request("DELETE", "/session") as response:
        assert response.status == 204
        assert await response.read() == b""
    async with api.request("DELETE", "/session") as response:
        assert response.status == 404
        assert response.headers["x-ms-error-code"] == "NoSessionFoundError"
        assert (await response.json())["error"]["code"] == "NoSessionFoundError"


async def test_v13_a_full_pool_answers_429_without_an_envelope(tmp_path: Path) -> None:
    async with api_of(tmp_path, max_sessions=1) as api:
        await api.run("1")

        async with api.request("POST", "/executions", identifier="abcd-2", json={"code": "1"}) as response:
            answer = await response.json()

    assert response.status == 429
    assert answer["code"] == "SessionsCountExceedsLimit"
    assert "error" not in answer
    assert response.headers["x-ms-error-code"] == "SessionsCountExceedsLimit"
    assert int(response.headers["Retry-After"]) >= 1


async def test_v14_a_missing_api_version_is_said_in_the_envelope(api: Api) -> None:
    async with api.request("POST", "/executions", version=None, json={"code": "1"}) as response:
        answer = await response.json()

    assert response.status == 400
    assert answer["error"]["code"] == "InvalidApiVersion"
    assert answer["error"]["traceId"]


async def test_v17_the_oldest_route_answers_without_a_wrapper(api: Api) -> None:
    """Its clients put the identifier into the body."""
    body = {
        "properties": {
            "identifier": "abcd-9",
            "codeInputType": "inline",
            "executionType": "synchronous",
            "pythonCode": "1+1",
        }
    }

    answer = await api.json("POST", "/python/execute", identifier=None, version=LEGACY, json=body)

    assert (answer["status"], answer["result"], answer["stdout"], answer["stderr"]) == ("Success", 2, "", "")
    assert "properties" not in answer


@pytest.mark.parametrize(
    "version", [LEGACY, "2024-08-02-preview", "2024-10-02-preview", "2025-10-02-preview", "2026-01-01"]
)
@pytest.mark.parametrize("path", ["/code/execute", "/python/execute", "/executions"])
async def test_every_route_answers_on_every_version(api: Api, path: str, version: str) -> None:
    answer = await api.json("POST", path, version=version, json={"code": "2 + 2", "codeInputType": "INLINE"})

    fields = answer.get("properties") or answer.get("result") if path != "/python/execute" else answer
    assert 4 in (fields.get("result"), fields.get("executionResult"))


@pytest.mark.parametrize(
    "base",
    [
        "/pools/python",
        "/subscriptions/00000000-0000/resourceGroups/rg/sessionPools/python",
        "/Subscriptions/00000000-0000/resourcegroups/rg/SESSIONPOOLS/python",
    ],
)
async def test_any_base_path_that_ends_in_the_pool_works(api: Api, base: str) -> None:
    api.base = f"http://127.0.0.1:{api.port}{base}"

    async with api.request("POST", "/executions", json={"code": "1"}) as response:
        assert response.status == 200
        assert response.headers["Operation-Location"].startswith(f"{api.base}/executions/")


async def test_the_listing_goes_by_the_version(api: Api) -> None:
    await api.json("POST", "/files", **multipart(b"a,b", name="a.csv"))

    old = await api.json("GET", "/files", version="2024-08-02-preview")
    new = await api.json("GET", "/files", version="2024-10-02-preview")

    assert old["value"][0]["properties"].keys() >= {"filename", "size", "lastModifiedTime"}
    assert new["value"][0]["name"] == "a.csv"
    assert new["value"][0]["type"] == "file"
    assert new["value"][0]["sizeInBytes"] == 3
    assert new["value"][0]["contentType"] == "text/csv; charset=utf-8"
    assert new["value"][0]["lastModifiedAt"].endswith("Z")
    assert new["value"][0]["directory"] == "."


async def test_sessions_are_described_under_both_names(api: Api) -> None:
    await api.run("1")

    built_in = await api.json("GET", "/session")
    custom = await api.json("POST", "/.management/getSession")

    assert built_in == custom | {"lastAccessedAt": built_in["lastAccessedAt"]} | {
        key: built_in[key] for key in ("expireAt", "expiresAt")
    }
    assert built_in["identifier"] == "abcd-1"
    assert built_in["expireAt"] == built_in["expiresAt"]


async def test_sessions_are_listed_in_both_shapes(api: Api) -> None:
    await api.run("1")
    await api.run("1", identifier="abcd-2")

    built_in = await api.json("GET", "/listSessions", identifier=None)
    custom = await api.json("POST", "/.management/listSessions", identifier=None, query={"skip": "1"})

    assert [session["identifier"] for session in built_in["sessions"]] == ["abcd-1", "abcd-2"]
    assert [session["identifier"] for session in custom["value"]] == ["abcd-2"]
    assert custom["count"] == 1


async def test_a_session_is_stopped_in_words(api: Api) -> None:
    await api.run("1")

    async with api.request("POST", "/.management/stopSession") as response:
        assert await response.text() == "Session abcd-1 in session pool python stopped."
    async with api.request("POST", "/.management/stopSession") as response:
        assert response.status == 404


async def test_metadata_tells_of_runtime_packages_and_kernel(api: Api) -> None:
    metadata = await api.json("GET", "/metadata", identifier=None)

    assert metadata["runtimes"] == [{"name": "Python", "version": "3.11"}]
    assert metadata["preInstalledPackages"] == []
    assert metadata["jupyterKernel"]["name"] == "ipykernel"


async def test_answers_carry_the_headers_of_the_contract(api: Api) -> None:
    async with api.request("POST", "/executions", json={"code": "1"}) as first:
        assert first.headers["x-ms-new-allocation"] == "true"
    async with api.request("POST", "/executions", json={"code": "1"}) as second:
        assert second.headers["x-ms-new-allocation"] == "false"

    assert first.headers["x-ms-session-guid"] == second.headers["x-ms-session-guid"]
    assert "2025-10-02-preview" in second.headers["api-supported-versions"]
    for name in (
        "operation-id",
        "Operation-Location",
        "x-ms-overall-execution-time",
        "x-ms-preparation-time",
        "x-ms-execution-request-time",
        "x-ms-execution-read-response-time",
        "x-ms-container-execution-duration",
        "x-ms-allocation-time",
    ):
        assert name in second.headers, name
    assert second.headers["Server"] == "kernelpool"
    assert "Etag" not in second.headers


async def test_the_same_operation_id_never_runs_twice(api: Api) -> None:
    headers = {"operation-id": "mine-1"}
    await api.run("n = 0")

    first = await api.run("n = n + 1; n", headers=headers)
    second = await api.run("n = n + 1; n", headers=headers)

    assert first["id"] == second["id"] == "mine-1"
    assert first["result"]["executionResult"] == second["result"]["executionResult"] == 1


async def test_a_running_execution_can_be_cancelled_two_ways(api: Api) -> None:
    for method, path in (("DELETE", "/executions/{}"), ("POST", "/executions/{}/cancel")):
        submitted = await api.run("while True: pass", body={"executionType": "asynchronous"})

        cancelled = await api.json(method, path.format(submitted["id"]))

        assert cancelled["status"] == "Canceled"
        assert cancelled["error"]["code"] == "Canceled"
        assert cancelled["result"]["cause"] == "canceled"


async def test_a_timeout_is_a_failed_run_and_not_an_error(api: Api) -> None:
    answer = await api.run("print('before')\nwhile True: pass", body={"timeoutInSeconds": 1})

    assert answer["status"] == "Failed"
    assert answer["error"]["code"] == "Timeout"
    assert answer["result"]["executionResult"] is None
    assert answer["result"]["stdout"] == "before\n"
    assert "time limit" in answer["result"]["stderr"]


async def test_what_the_body_said_of_the_form_goes_with_the_location(api: Api) -> None:
    body = {
        "code": "print('x' * 500); 'nan'",
        "executionType": "asynchronous",
        "outputStreamsMaxLength": 200,
        "returnJupyterFormatExecutionResult": True,
    }
    async with api.request("POST", "/executions", json=body, query={"outputs": "false"}) as response:
        location = response.headers["Operation-Location"]

    result = (await poll(api, location))["result"]

    assert result["executionResult"] == "'nan'"
    assert len(str(result["stdout"]).encode()) <= 200
    assert result["truncated"]["stdout"] > 300
    assert "outputs" not in result


async def test_base64_code_is_decoded(api: Api) -> None:
    assert (await api.run("MSArIDE=", body={"codeInputType": "InlineBase64"}))["result"]["executionResult"] == 2
