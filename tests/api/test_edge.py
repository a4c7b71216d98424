"""What callers get wrong, by accident or on purpose, and what they are told: never a 500, never a hang."""

from __future__ import annotations

import asyncio
import io
import json
import re
import unicodedata
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.api.conftest import TOKEN, VERSION, Api, api_of

MANY = 50


async def error_of(api: Api, method: str, path: str, status: int, **rest: object) -> dict[str, str]:
    answer = await api.json(method, path, status, **rest)
    error: dict[str, str] = answer["error"]
    assert error["traceId"]
    assert error["message"]
    return error


# --- authentication


MALFORMED = "The Authorization header is not 'Bearer <token>'."
WRONG = "The bearer token is not valid."
ABSENT = "The request has no Authorization header."


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Authorization": ""}, MALFORMED),
        ({"Authorization": "Bearer"}, MALFORMED),
        ({"Authorization": "Bearer "}, MALFORMED),
        ({"Authorization": f"Basic {TOKEN}"}, MALFORMED),
        ({"Authorization": TOKEN}, MALFORMED),
        ({"Authorization": f"Bearer {TOKEN}x"}, WRONG),
        ({"Authorization": f"Bearer {TOKEN[:-1]}"}, WRONG),
        ({"Authorization": "Bearer \xff"}, WRONG),
        ({"Authorization": "Bearer " + "x" * 8000}, WRONG),
        ({"Cookie": f"token={TOKEN}"}, ABSENT),
        ({"x-ms-apikey": TOKEN}, ABSENT),
    ],
)
async def test_every_bad_credential_is_refused_in_the_same_words(api: Api, headers: dict[str, str], said: str) -> None:
    url = f"{api.base}/executions?identifier=abcd-1&api-version=2025-10-02-preview&token={TOKEN}&access_token={TOKEN}"

    async with api.http.post(url, json={"code": "1"}, headers=headers) as response:
        answer = await response.json()

    assert response.status == 401
    assert response.headers["WWW-Authenticate"] == ('Bearer error="invalid_token"' if said == WRONG else "Bearer")
    assert response.headers["x-ms-error-code"] == "Unauthorized"
    assert answer["error"]["message"] == said
    assert TOKEN not in str(answer)


async def test_two_authorization_headers_are_none(api: Api) -> None:
    request = (
        b"GET /pools/python/session?identifier=abcd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        + f"Authorization: Bearer {TOKEN}\r\n".encode() * 2
        + b"\r\n"
    )

    assert b" 401 " in await api.raw(request)


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer"])
async def test_the_scheme_may_be_in_any_case(api: Api, scheme: str) -> None:
    await api.run("1", headers={"Authorization": f"{scheme} {TOKEN}"})


@pytest.mark.parametrize("path", ["/nothing", "/pools/python", "/pools/other/executions", "/pools/python/x/y"])
async def test_even_a_path_that_does_not_exist_needs_the_token(api: Api, path: str) -> None:
    async with api.http.get(f"http://127.0.0.1:{api.port}{path}") as response:
        assert response.status == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_probes_need_no_token(api: Api, path: str) -> None:
    async with api.http.get(f"http://127.0.0.1:{api.port}{path}") as response:
        assert response.status == 200


async def test_a_body_is_not_read_into_memory_before_its_sender_is_known(api: Api) -> None:
    """20 GB announced, none sent: the answer comes at once."""
    request = b"POST /pools/python/executions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000000000\r\n\r\n"

    assert b" 401 " in await api.raw(request, until_closed=False)


# --- version, pool, identifier


@pytest.mark.parametrize(
    "version", ["", "latest", "2024", "2024-1-1", "2024-02-02-beta", "2024-02-02-preview ", "\uff12024-02-02"]
)
async def test_a_malformed_version_is_refused(api: Api, version: str) -> None:
    error = await error_of(api, "GET", "/files", 400, version=version)

    assert error["code"] == "InvalidApiVersion"


@pytest.mark.parametrize("twice", ["identifier=abcd-1", "api-version=2024-02-02-preview"])
async def test_a_parameter_given_twice_is_refused(api: Api, twice: str) -> None:
    url = f"{api.base}/files?identifier=abcd-1&api-version=2024-02-02-preview&{twice}"

    async with api.http.get(url, headers={"Authorization": f"Bearer {TOKEN}"}) as response:
        assert response.status == 400
        assert "2 times" in (await response.json())["error"]["message"]


async def test_an_unknown_pool_is_said(api: Api) -> None:
    api.base = api.base.replace("python", "cobol")

    assert (await error_of(api, "GET", "/files", 404))["code"] == "SessionPoolNotFound"


@pytest.mark.parametrize("identifier", [None, "", "abc", "a" * 129, "a" * 10_000])
async def test_an_identifier_of_the_wrong_length_is_refused(api: Api, identifier: str | None) -> None:
    error = await error_of(api, "POST", "/executions", 400, identifier=identifier, json={"code": "1"})

    assert error["code"] == "InvalidLengthOfSessionIdentifier"


@pytest.mark.parametrize(
    "identifier",
    [
        "abcd\0",
        "abcd\r\nX: 1",
        unicodedata.normalize("NFC", "caf\u00e9s"),
        unicodedata.normalize("NFD", "caf\u00e9s"),
        "аbcd",  # noqa: RUF001 - a Cyrillic letter is the point
        "\u202eabcd",
        "\U0001f40d" * 4,
    ],
)
async def test_an_identifier_with_other_characters_is_refused(api: Api, identifier: str) -> None:
    error = await error_of(api, "POST", "/executions", 400, identifier=identifier, json={"code": "1"})

    assert error["code"] == "InvalidSessionIdentifier"


@pytest.mark.parametrize("raw", ["%ED%A0%80abcd", "%C0%AFabcd", "%ff%ff%ff%ff"])
async def test_an_identifier_that_is_no_utf8_is_refused(api: Api, raw: str) -> None:
    request = (
        f"GET /pools/python/files?identifier={raw}&api-version=2024-02-02-preview HTTP/1.1\r\nHost: localhost\r\n"
        f"Connection: close\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    )

    assert b" 400 " in await api.raw(request.encode())


async def test_every_allowed_character_makes_a_session_of_its_own(api: Api) -> None:
    identifiers = ["../../x", "%2e%2e%2f", "%00%00", "|-&^%$#(){}[];<>", "a+b=c&d"]
    for number, identifier in enumerate(identifiers):
        await api.run(f"n = {number}", identifier=identifier)

    seen = [(await api.run("n", identifier=identifier))["result"]["executionResult"] for identifier in identifiers]
    listed = await api.json("GET", "/listSessions", identifier=None)

    assert seen == list(range(len(identifiers)))
    assert [session["identifier"] for session in listed["sessions"]] == identifiers


async def test_racing_first_requests_get_one_session(api: Api) -> None:
    answers = await asyncio.gather(*(api.run("1") for _ in range(MANY // 4)))

    assert {answer["status"] for answer in answers} == {"Succeeded"}
    assert len((await api.json("GET", "/listSessions", identifier=None))["sessions"]) == 1


# --- methods and paths


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "GET", "HEAD", "OPTIONS"])
async def test_a_wrong_method_is_405_and_the_right_one_is_named(api: Api, method: str) -> None:
    async with api.request(method, "/executions/1/cancel", data=b"x" * 1000) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"


async def test_trace_is_refused(api: Api) -> None:
    assert b" 405 " in await api.raw(b"TRACE / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize("path", ["/", "/executions/", "/files/", "/unknown", "/executions/a/b/c", "//host/"])
async def test_an_unknown_path_is_404_in_the_envelope(api: Api, path: str) -> None:
    assert (await error_of(api, "GET", path, 404))["code"] == "NotFound"


# --- bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"code": NaN}',
        b'{"code": "1", "timeoutInSeconds": Infinity}',
        b'{"code": "1"} trailing',
        b'\xef\xbb\xbf{"code": "1"}',
        '{"code": "1"}'.encode("utf-16"),
        b'{"code": "\xff"}',
        b'{"code": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"code": ' + b"9" * 5000 + b"}",
    ],
)
async def test_what_is_no_json_is_400(api: Api, body: bytes) -> None:
    assert (await error_of(api, "POST", "/executions", 400, data=body))["code"] == "InvalidRequest"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (None, "$"),
        ([], "$"),
        ("x", "$"),
        (5, "$"),
        ({}, "code"),
        ({"code": None}, "code"),
        ({"code": 5}, "code"),
        ({"properties": []}, "properties"),
        ({"code": "1", "codeInputType": "Inlined"}, "codeInputType"),
        ({"code": "1", "executionType": 7}, "executionType"),
        ({"code": "not base64!", "codeInputType": "InlineBase64"}, "code"),
        ({"code": "1", "timeoutInSeconds": 0}, "timeoutInSeconds"),
        ({"code": "1", "timeoutInSeconds": -1}, "timeoutInSeconds"),
        ({"code": "1", "timeoutInSeconds": 221}, "timeoutInSeconds"),
        ({"code": "1", "timeoutInSeconds": 1e308}, "timeoutInSeconds"),
        ({"code": "1", "timeoutInSeconds": "soon"}, "timeoutInSeconds"),
        ({"code": "1", "timeoutInSeconds": "nan"}, "timeoutInSeconds"),
        ({"code": "1", "timeoutInSeconds": []}, "timeoutInSeconds"),
        ({"code": "1", "timeoutInSeconds": True}, "timeoutInSeconds"),
        ({"code": "1", "outputStreamsMaxLength": -1}, "outputStreamsMaxLength"),
        ({"code": "1", "useEmptyKernel": 0}, "useEmptyKernel"),
        ({"code": "1", "returnJupyterFormatExecutionResult": "yes"}, "returnJupyterFormatExecutionResult"),
    ],
)
async def test_a_wrong_field_is_named_as_aspnet_does(api: Api, body: object, field: str) -> None:
    async with api.request("POST", "/executions", data=json.dumps(body).encode()) as response:
        problem = await response.json(content_type="application/problem+json")

    assert response.status == 400
    assert problem["title"] == "One or more validation errors occurred."
    assert list(problem["errors"]) == [field]


async def test_the_longest_timeout_is_named(api: Api) -> None:
    async with api.request("POST", "/executions", json={"code": "1", "timeoutInSeconds": 221}) as response:
        assert "220" in str(await response.json(content_type=None))


@pytest.mark.parametrize("timeout", ["10", 10, 10.5, None, 220])
async def test_timeouts_are_read_in_all_harmless_forms(api: Api, timeout: object) -> None:
    await api.run("1", body={"timeoutInSeconds": timeout})


async def test_of_duplicate_keys_the_last_one_counts(api: Api) -> None:
    answer = await api.json("POST", "/executions", data=b'{"code": "1", "code": "2"}')

    assert answer["result"]["executionResult"] == 2


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/octet-stream",
        "application/json, text/plain",
        "nonsense",
        "",
        "application/json; charset=utf-7",
        'application/json; CHARSET="iso-8859-1"',
        "application/json; charset=utf-8; charset=utf-16",
    ],
)
@pytest.mark.parametrize("path", ["/executions", "/code/execute", "/python/execute", "/.management/stopSession"])
async def test_what_another_sites_form_can_send_is_no_json(api: Api, content_type: str, path: str) -> None:
    headers = {"Content-Type": content_type}
    error = await error_of(api, "POST", path, 415, data=b'{"code": "1"}', headers=headers)

    assert error["code"] == "UnsupportedMediaType"


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "APPLICATION/JSON;charset=UTF-8",
        "application/vnd.x+json",
        'application/json; charset="utf8"',
    ],
)
async def test_json_has_several_names(api: Api, content_type: str) -> None:
    await api.json("POST", "/executions", data=b'{"code": "1"}', headers={"Content-Type": content_type})


async def test_without_a_body_the_content_type_says_nothing(api: Api) -> None:
    await api.run("1")

    async with api.request("POST", "/.management/getSession", headers={"Content-Type": "text/plain"}) as response:
        assert response.status == 200


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize(
    "framing", ["Content-Length: 7\r\n\r\nignored", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"]
)
async def test_a_body_that_nobody_needs_is_read_and_the_next_request_is_found(
    api: Api, method: str, framing: str
) -> None:
    await api.run("1")
    head = (
        f"{method} /pools/python/session?identifier=abcd-1&api-version={VERSION} HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {TOKEN}\r\n{framing}"
    )
    after = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    answer = await api.raw((head + after).encode())

    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"204" if method == "DELETE" else b"200", b"200"]


async def test_a_compressed_body_is_415(api: Api) -> None:
    headers = {"Content-Encoding": "gzip"}

    assert (await error_of(api, "POST", "/executions", 415, data=b"x", headers=headers))[
        "code"
    ] == "UnsupportedMediaType"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large_is_413_and_its_sender_gets_to_read_it(api: Api, chunked: bool) -> None:
    async def pieces() -> object:
        for _ in range(80):
            yield b" " * 65536

    body = pieces() if chunked else io.BytesIO(b" " * (5 << 20))

    assert (await error_of(api, "POST", "/executions", 413, data=body))["code"] == "PayloadTooLarge"


async def test_a_refusal_is_one_answer_and_leaves_the_connection_usable(api: Api) -> None:
    head = (
        "POST /pools/python/executions?identifier=abcd&api-version=2024-02-02-preview HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Length: {5 << 20}\r\n\r\n"
    )
    after = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    answer = await api.raw(head.encode() + b" " * (5 << 20) + after)

    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"413", b"200"]


async def test_expect_continue_is_answered_before_the_body(api: Api) -> None:
    request = (
        "POST /pools/python/executions?identifier=abcd&api-version=2024-02-02-preview HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {TOKEN}\r\nExpect: 100-continue\r\nContent-Length: 20000000000\r\n\r\n"
    )

    answer = await api.raw(request.encode())

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 (Continue)" not in answer


# --- HTTP itself


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip",
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: -4",
        "Content-Length: 4x",
        " folded: yes",
        "Bad Name: x",
        "Host: two",
    ],
)
async def test_ambiguous_requests_are_400(api: Api, head: str) -> None:
    request = (
        "POST /pools/python/executions?identifier=abcd&api-version=2024-02-02-preview HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {TOKEN}\r\n{head}\r\n\r\n0\r\n\r\n"
    )

    assert (await api.raw(request.encode())).split(b"\r\n")[0].split()[1] == b"400"


@pytest.mark.parametrize(
    "target", ["http://evil.test/pools/python/files", "//evil.test/pools/python", "\\pools\\python"]
)
async def test_strange_targets_reach_nothing(api: Api, target: str) -> None:
    request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"

    assert (await api.raw(request.encode())).split()[1] in (b"404", b"400")


async def test_pipelined_requests_are_answered_in_order(api: Api) -> None:
    one = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    answer = await api.raw((one + last).encode())

    assert answer.index(b'{"status":"alive"}') < answer.index(b'{"status":"ready"}')


# --- answers


async def test_lone_surrogates_and_nan_in_outputs_leave_the_answer_valid_json(api: Api) -> None:
    async with api.request("POST", "/executions", json={"code": r"print('a\ud800b'); float('nan')"}) as response:
        text = (await response.read()).decode()  # strict

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    result = json.loads(text, parse_constant=refuse)["result"]
    assert result["stdout"] == "a\ufffdb\n"
    assert result["executionResult"] is None


async def test_an_error_never_tells_of_the_inside(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    process = await api.process()
    process.runs = None  # type: ignore[assignment]

    error = await error_of(api, "GET", "/executions/x", 500)

    assert error["code"] == "InternalError"
    assert "Traceback" not in str(error)
    assert "NoneType" not in str(error)
    [record] = [record for record in caplog.records if record.exc_info]
    assert vars(record)["trace_id"] == error["traceId"]


async def test_no_log_line_holds_token_or_identifier(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "kernelpool")
    await api.run("1", identifier="secret-identifier")
    await api.json("GET", "/files/missing", 404, identifier="secret-identifier")
    await api.json("GET", "/session", 404, identifier="other-secret-identifier")

    lines = " ".join(str(vars(record)) for record in caplog.records if record.name.startswith("kernelpool.api"))

    assert "secret-identifier" not in lines
    assert TOKEN not in lines


async def test_a_client_that_leaves_a_synchronous_call_cancels_it(api: Api) -> None:
    process = await api.process()
    call = asyncio.create_task(api.run("while True: pass", headers={"operation-id": "left"}))
    async with asyncio.timeout(30):
        while "left" not in process.runs:
            await asyncio.sleep(0.01)
        call.cancel()
        while not process.runs["left"].execution.state.is_final:
            await asyncio.sleep(0.01)

    assert process.runs["left"].execution.cause == "canceled"
    assert await api.works.wait_idle(30)


async def test_a_client_that_leaves_an_asynchronous_call_leaves_it_running(api: Api) -> None:
    submitted = await api.run("while True: pass", body={"executionType": "asynchronous"})

    assert (await api.json("GET", f"/executions/{submitted['id']}"))["status"] == "Running"


@pytest.mark.parametrize("id", ["", "a" * 129, "a b", "a/b", "a\tb", "ä"])
async def test_a_malformed_operation_id_is_refused(api: Api, id: str) -> None:
    await error_of(api, "POST", "/executions", 400, json={"code": "1"}, headers={"operation-id": id})


async def test_an_unknown_execution_is_404(api: Api) -> None:
    await api.run("1")

    assert (await error_of(api, "GET", "/executions/nothing", 404))["code"] == "ExecutionNotFound"
    assert (await error_of(api, "DELETE", f"/executions/{quote('ä')}", 404))["code"] == "ExecutionNotFound"
    assert (await error_of(api, "GET", "/executions/a%0D%0AX", 404))["code"] == "ExecutionNotFound"


async def test_many_identifiers_beyond_the_maximum_are_429_and_leave_nothing(tmp_path: Path) -> None:
    async with api_of(tmp_path, max_sessions=2) as api:
        statuses = []
        for number in range(MANY):
            async with api.request("POST", "/executions", identifier=f"many-{number}", json={"code": "1"}) as response:
                statuses.append(response.status)

        assert statuses.count(200) == 2
        assert statuses.count(429) == MANY - 2
        assert len(api.backend.sandboxes) == 2


# --- what clients do that the contract does not say


async def test_a_plus_in_an_identifier_may_come_as_it_is(api: Api) -> None:
    await api.run("1", identifier="a+b+c")

    async with api.http.get(
        f"{api.base}/session?api-version={VERSION}&identifier=a+b+c", headers={"Authorization": f"Bearer {TOKEN}"}
    ) as response:
        assert (await response.json())["identifier"] == "a+b+c"


async def test_a_version_may_be_in_any_case(api: Api) -> None:
    assert (await api.run("print(1)", version="2024-02-02-Preview"))["status"] == "Succeeded"


async def test_head_is_get_without_a_body(api: Api) -> None:
    await api.run("1")

    for url in (f"http://127.0.0.1:{api.port}/healthz", f"{api.base}/session?api-version={VERSION}&identifier=abcd-1"):
        async with api.http.head(url, headers={"Authorization": f"Bearer {TOKEN}"}) as response:
            assert (response.status, await response.read()) == (200, b"")
    async with api.request("HEAD", "/executions/1/cancel") as response:
        assert response.status == 405


async def test_head_of_what_could_be_a_stream_is_answered_at_once(api: Api) -> None:
    await api.run("while True: pass", body={"executionType": "asynchronous"}, headers={"operation-id": "long"})

    async with api.request("HEAD", "/executions/long", headers={"Accept": "text/event-stream"}) as response:
        assert (response.status, await response.read()) == (200, b"")
