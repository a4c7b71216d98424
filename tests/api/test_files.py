"""Files over HTTP: names, sizes, ranges, headers. What the sandbox does with them is tested with real ones."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import requests
from yarl import URL

from kernelpool.api.base import ApiHandler
from kernelpool.errors import SandboxLost, WorkspaceFull
from kernelpool.models import FileInfo, WorkspacePath
from tests.api.conftest import LEGACY, TOKEN, VERSION, Api, api_of, multipart
from tests.fakes import FakeAgent

MIB = 1 << 20


async def put(api: Api, name: str, data: bytes = b"0123456789", **rest: Any) -> Any:
    return await api.json("PUT", f"/files/{quote(name, safe='')}/content", data=data, **rest)


@dataclass
class Download:
    status: int
    headers: Mapping[str, str]
    content: bytes


async def get(api: Api, name: str, **rest: Any) -> Download:
    async with api.request("GET", f"/files/{quote(name, safe='')}/content", **rest) as response:
        return Download(response.status, response.headers, await response.read())


# --- round trips


@pytest.mark.parametrize(
    "name", ["a.txt", "a b.txt", "ü.csv", "日本.txt", "a'b.txt", "100%25.txt", "%20.txt", "x;y=z&.txt"]
)
async def test_what_goes_up_comes_down_under_the_same_name(api: Api, name: str) -> None:
    data = bytes(range(256)) * 300

    await api.json("POST", "/files", **multipart(data, name=name))
    old = await api.json("GET", "/files", version=LEGACY)
    async with api.request("GET", f"/files/content/{quote(name, safe='')}", version=LEGACY) as response:
        content = await response.read()

    assert [entry["properties"]["filename"] for entry in old["value"]] == [name]
    assert content == data
    assert (await get(api, name)).content == data


@pytest.mark.parametrize("name", ["a b.txt", "ü.csv", "100%25.txt", 'q"uote.txt'])
async def test_names_that_aiohttp_encoded_are_decoded(api: Api, name: str) -> None:
    form = aiohttp.FormData()
    form.add_field("file", b"x", filename=name)

    assert (await api.json("POST", "/files", data=form))["name"] == name


async def test_a_quote_in_a_browsers_file_name_is_a_quote(api: Api) -> None:
    assert (await api.json("POST", "/files", **multipart(b"x", name="a%22b.txt")))["name"] == 'a"b.txt'


async def test_a_name_with_directories_works_on_the_old_download_route(api: Api) -> None:
    """Semantic Kernel keeps the slash, LangChain encodes it."""
    await put(api, "a/b.txt", b"deep")

    for path in ("/files/content/a/b.txt", "/files/content/a%2Fb.txt", "/files/content//mnt/data/a/b.txt"):
        async with api.request("GET", path, version=LEGACY) as response:
            assert await response.read() == b"deep", path


async def test_path_and_recursive_choose_what_is_listed(api: Api) -> None:
    for name in ("top.txt", "a/one.txt", "a/b/two.txt"):
        await put(api, name)

    flat = await api.json("GET", "/files")
    below = await api.json("GET", "/files", query={"path": "/mnt/data/a", "recursive": "true"})
    legacy = await api.json("GET", "/files", version=LEGACY)

    assert {(entry["name"], entry["type"]) for entry in flat["value"]} == {("top.txt", "file"), ("a", "directory")}
    assert {(entry["directory"], entry["name"]) for entry in below["value"]} == {
        (".", "one.txt"),
        (".", "b"),
        ("b", "two.txt"),
    }
    assert [entry["properties"]["filename"] for entry in legacy["value"]] == ["top.txt"]


async def test_an_upload_goes_where_path_says(api: Api) -> None:
    answer = await api.json("POST", "/files", query={"path": "in/here"}, **multipart(b"x", name="f.txt"))

    assert (answer["name"], answer["directory"]) == ("f.txt", ".")
    assert (await api.json("GET", "/files/f.txt", query={"path": "in/here"}))["sizeInBytes"] == 1


async def test_several_parts_are_all_stored(api: Api) -> None:
    body = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="%d.txt"\r\n\r\n%d\r\n' % (number, number)
        for number in range(5)
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}

    answer = await api.json("POST", "/files", data=body + b"--b--\r\n", headers=headers)

    assert [entry["name"] for entry in answer["value"]] == [f"{number}.txt" for number in range(5)]


async def test_deleting_answers_as_the_version_does(api: Api) -> None:
    await put(api, "a.txt")
    await put(api, "b.txt")

    assert "deleted" in (await api.json("DELETE", "/files/a.txt", version=LEGACY))["message"]
    async with api.request("DELETE", "/files/b.txt") as response:
        assert (response.status, await response.read()) == (204, b"")
    assert (await api.json("DELETE", "/files/b.txt", 404))["error"]["code"] == "FileNotFound"


async def test_a_files_data_is_told_in_both_shapes(api: Api) -> None:
    await put(api, "a.txt")

    assert (await api.json("GET", "/files/a.txt"))["sizeInBytes"] == 10
    assert (await api.json("GET", "/files/a.txt", version=LEGACY))["value"][0]["properties"]["size"] == 10


# --- names


BAD_NAMES = [
    "..",
    "../x",
    "a/../../b",
    "/etc/passwd",
    "..\\x",
    "C:\\x",
    "\\\\host\\s",
    "name\0.png",
    "a\nb",
    "a\x7fb",
    "x" * 256,
]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_a_bad_name_in_the_path_is_400(api: Api, method: str, name: str) -> None:
    await api.run("1")
    path = f"/files/{quote(name, safe='')}" + ("/content" if method == "PUT" else "")
    url = URL(f"{api.base}{path}?identifier=abcd-1&api-version={VERSION}", encoded=True)

    async with api.http.request(method, url, headers={"Authorization": f"Bearer {TOKEN}"}, data=b"x") as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] in ("FilePathInvalid", "FileNameInvalid")


@pytest.mark.parametrize("name", ["", "..", "../x", "/etc/passwd", "a/../../b", "x" * 256, "..\\\\x"])
async def test_a_bad_name_in_an_upload_is_400_and_makes_no_session(api: Api, name: str) -> None:
    answer = await api.json("POST", "/files", 400, **multipart(b"x", name=name))

    assert answer["error"]["code"] in ("FilePathInvalid", "FileNameInvalid")
    assert (await api.json("GET", "/listSessions", identifier=None))["sessions"] == []


@pytest.mark.parametrize("path", ["..", "/..", "a/../..", "a\\b"])
async def test_a_bad_path_parameter_is_400(api: Api, path: str) -> None:
    answer = await api.json("GET", "/files", 400, query={"path": path})

    assert answer["error"]["code"] in ("FilePathInvalid", "FileNameInvalid")


@pytest.mark.parametrize("name", ["..%2fx", "~", "CON", "....", "trailing.", " lead", "-rf"])
async def test_a_name_that_only_looks_bad_is_a_name(api: Api, name: str) -> None:
    assert (await put(api, name))["name"] == name


async def test_overlong_utf8_in_a_path_is_400(api: Api) -> None:
    request = (
        f"GET /pools/python/files/%C0%AE%C0%AE HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Authorization: Bearer {TOKEN}\r\n\r\n"
    )

    assert b" 400 " in await api.raw(request.encode())


async def test_an_upload_whose_session_ends_meanwhile_has_an_answer(api: Api) -> None:
    process = await api.process()
    first = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nAAA\r\n--b\r\n'
    second = b'Content-Disposition: form-data; name="file"; filename="b"\r\n\r\n' + b"B" * 20_000 + b"\r\n--b--\r\n"
    head = (
        f"POST /pools/python/files?api-version={VERSION}&identifier=abcd-1 HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        f"Connection: close\r\nContent-Length: {len(first + second)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(head.encode() + first)
    async with asyncio.timeout(30):
        while "a" not in process.files:
            await asyncio.sleep(0.01)
    async with api.request("DELETE", "/session") as response:
        assert response.status == 204

    writer.write(second)
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()

    assert b" 502 " in answer.partition(b"\r\n")[0]
    assert b"SandboxLost" in answer


async def test_a_body_that_breaks_something_of_ours_has_an_answer(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def receive(self: ApiHandler, chunk: bytes) -> None:
        raise RuntimeError("secret of the gateway")

    monkeypatch.setattr(ApiHandler, "receive", receive)

    answer = await api.json("POST", "/executions", 500, json={"code": "1"})

    assert answer["error"]["code"] == "InternalError"
    assert "secret" not in str(answer)


# --- multipart


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("", b"x"),
        ("application/json", b"{}"),
        ("multipart/form-data", b"--b--"),
        ("multipart/form-data; boundary=", b"--b--"),
        ("multipart/form-data; boundary=" + "b" * 5000, b"--b--"),
        ("multipart/mixed; boundary=b", b"--b--"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"garbage"),
        ("multipart/form-data; boundary=b", b"--b--\r\n"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\ncut',
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n',
        ),
        ("multipart/form-data; boundary=b", b"--b\r\nX: " + b"y" * 100_000 + b"\r\n\r\nx\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"X: y\r\n" * 1000 + b"\r\nx\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\n\r\n" * 10_000 + b"--b--\r\n"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="\xff\xfe"\r\n\r\nx\r\n--b--\r\n',
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a\0b"\r\n\r\nx\r\n--b--\r\n',
        ),
    ],
)
async def test_what_is_no_upload_is_400_and_leaves_nothing(api: Api, content_type: str, body: bytes) -> None:
    await api.run("1")

    await api.json("POST", "/files", 400, data=body, headers={"Content-Type": content_type})

    assert (await api.json("GET", "/files"))["value"] == []
    assert await api.works.wait_idle(30)


async def test_parts_are_counted(api: Api) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="field"\r\n\r\nx\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}

    answer = await api.json("POST", "/files", 400, data=part * 10_000 + b"--b--\r\n", headers=headers)

    assert "100 parts" in answer["error"]["message"]


async def test_form_fields_are_no_way_past_the_limit(api: Api) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="field"\r\n\r\n'
        for _ in range(64):
            yield b"x" * 65536

    headers = {"Content-Type": "multipart/form-data; boundary=b"}

    await api.json("POST", "/files", 413, data=pieces(), headers=headers)


async def test_an_empty_file_is_a_file(api: Api) -> None:
    assert (await api.json("POST", "/files", **multipart(b"", name="empty")))["sizeInBytes"] == 0
    assert (await put(api, "empty too", b""))["sizeInBytes"] == 0
    assert (await get(api, "empty")).headers["Content-Length"] == "0"


# --- sizes


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upload_past_the_limit_is_413_and_leaves_nothing(api: Api, chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 65536

    form = aiohttp.FormData()
    form.add_field("file", pieces() if chunked else io.BytesIO(b"x" * (MIB + 1)), filename="big.bin")

    answer = await api.json("POST", "/files", 413, data=form)

    assert answer["error"]["code"] == "PayloadTooLarge"
    assert (await api.json("GET", "/files"))["value"] == []


async def test_a_client_that_writes_all_before_it_reads_gets_to_read_413(api: Api) -> None:
    """As `requests` does, whose upload is larger than what sockets hold."""

    def upload() -> requests.Response:
        return requests.post(
            f"{api.base}/files/upload?identifier=abcd-1&api-version={LEGACY}",
            headers={"Authorization": f"Bearer {TOKEN}"},
            files={"file": ("big.bin", b"x" * (40 * MIB))},
            timeout=60,
        )

    response = await asyncio.to_thread(upload)

    assert response.status_code == 413


async def test_a_full_workspace_ends_an_upload_in_its_middle(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def write_file(self: FakeAgent, path: WorkspacePath, chunks: AsyncIterator[bytes]) -> FileInfo:
        await anext(chunks)
        raise WorkspaceFull("the workspace is full")

    monkeypatch.setattr(FakeAgent, "write_file", write_file)

    answer = await api.json("POST", "/files", 507, **multipart(b"x" * (MIB - 1000), name="a"))

    assert answer["error"]["code"] == "WorkspaceFull"


async def test_an_upload_that_breaks_off_stores_nothing(api: Api) -> None:
    await api.run("1")
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(
        f"POST /pools/python/files?identifier=abcd-1&api-version={VERSION} HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Length: 100000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        'Content-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n12345'.encode()
    )
    await writer.drain()
    async with asyncio.timeout(30):
        while not len(api.works):
            await asyncio.sleep(0.01)
    writer.transport.abort()

    assert await api.works.wait_idle(30)
    assert (await api.json("GET", "/files"))["value"] == []
    assert reader


async def test_the_sender_is_slowed_down_to_the_speed_of_the_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is taken from the pipe, so that what has been read of the body stays bounded."""
    taking = asyncio.Event()
    sent = 0

    async def write_file(self: FakeAgent, path: WorkspacePath, chunks: AsyncIterator[bytes]) -> FileInfo:
        await taking.wait()
        size = sum([len(chunk) async for chunk in chunks])
        return FileInfo(path.text, False, size, 0.0)

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(64):
            yield b"x" * MIB
            sent += 1

    monkeypatch.setattr(FakeAgent, "write_file", write_file)
    async with api_of(tmp_path, max_upload=64 * MIB) as api:
        upload = asyncio.create_task(api.json("PUT", "/files/a/content", data=pieces()))
        stuck = 0
        async with asyncio.timeout(30):
            while stuck < 20:  # turns of the loop in which nothing more was sent
                before = sent
                await asyncio.sleep(0.01)
                stuck = stuck + 1 if sent == before and sent else 0
        sent_while_stuck = sent
        taking.set()

        assert (await upload)["sizeInBytes"] == 64 * MIB
        assert sent_while_stuck < 32


# --- downloads


@pytest.mark.parametrize(
    ("asked", "status", "content", "content_range"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=5-", 206, b"56789", "bytes 5-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("BYTES=0-0", 206, b"0", "bytes 0-0/10"),
        ("bytes=5-3", 200, b"0123456789", None),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("bytes=" + ",".join(f"{n}-{n}" for n in range(1000)), 200, b"0123456789", None),
        ("bytes=--1", 200, b"0123456789", None),
        ("bytes=a-b", 200, b"0123456789", None),
        ("lines=0-3", 200, b"0123456789", None),
        ("bytes=" + "9" * 400 + "-", 200, b"0123456789", None),
    ],
)
async def test_ranges(api: Api, asked: str, status: int, content: bytes, content_range: str | None) -> None:
    await put(api, "a.txt")

    response = await get(api, "a.txt", headers={"Range": asked})

    assert response.status == status
    assert response.content == content
    assert response.headers.get("Content-Range") == content_range


async def test_a_range_past_the_end_is_416_with_the_size(api: Api) -> None:
    await put(api, "a.txt")

    response = await get(api, "a.txt", headers={"Range": "bytes=10-"})

    assert response.status == 416
    assert response.headers["Content-Range"] == "bytes */10"
    assert json.loads(response.content)["error"]["code"] == "RangeNotSatisfiable"


async def test_head_tells_the_size_and_sends_nothing(api: Api) -> None:
    await put(api, "a.txt")

    async with api.request("HEAD", "/files/a.txt/content") as response:
        assert (response.status, response.headers["Content-Length"]) == (200, "10")
        assert await response.read() == b""


@pytest.mark.parametrize("name", ["x.html", "x.svg", "x.js", "x.xhtml", "x"])
@pytest.mark.parametrize("path", ["/files/content/{}", "/files/{}/content"])
async def test_no_browser_shows_or_runs_a_downloaded_file(api: Api, path: str, name: str) -> None:
    await put(api, name, b"<script>alert(1)</script>")

    async with api.request("GET", path.format(name)) as response:
        assert response.headers["Content-Disposition"].startswith("attachment;")
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"


async def test_the_old_route_tells_the_type_and_the_new_one_does_not(api: Api) -> None:
    await put(api, "a.png")

    async with api.request("GET", "/files/content/a.png") as response:
        assert response.headers["Content-Type"] == "image/png"
    assert (await get(api, "a.png")).headers["Content-Type"] == "application/octet-stream"


@pytest.mark.parametrize("name", ['a"b.txt', "a;b.txt", "ü.txt", "a%0d%0ab.txt", "'", "x" * 255])
async def test_no_name_breaks_out_of_its_header(api: Api, name: str) -> None:
    await put(api, name)

    response = await get(api, name)

    header = Message()
    header["Content-Disposition"] = response.headers["Content-Disposition"]
    assert header.get_content_disposition() == "attachment"
    assert f"filename*=UTF-8''{quote(name, safe='')}" in response.headers["Content-Disposition"]


async def test_missing_things_are_404(api: Api) -> None:
    assert (await api.json("GET", "/files/a/content", 404))["error"]["code"] == "NoSessionFoundError"
    await api.run("1")
    assert (await api.json("GET", "/files/a/content", 404))["error"]["code"] == "FileNotFound"
    assert (await api.json("GET", "/files/a", 404))["error"]["code"] == "FileNotFound"
    assert (await api.json("GET", "/files", 404, query={"path": "a"}))["error"]["code"] == "FileNotFound"


async def test_a_download_that_breaks_off_is_not_taken_for_complete(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await put(api, "a.txt")

    async def chunks(data: bytes) -> AsyncIterator[bytes]:
        yield data[:4]
        raise SandboxLost("gone")

    monkeypatch.setattr(FakeAgent, "_chunks", staticmethod(chunks))

    with pytest.raises(aiohttp.ClientPayloadError):
        await get(api, "a.txt")
    assert await api.works.wait_idle(30)
    assert errors_in(caplog) == []


async def test_a_sandbox_cannot_send_more_than_it_announced(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await put(api, "a.txt")

    async def chunks(data: bytes) -> AsyncIterator[bytes]:
        yield data
        yield b"HTTP/1.1 200 OK\r\n\r\nforged"

    monkeypatch.setattr(FakeAgent, "_chunks", staticmethod(chunks))

    assert (await get(api, "a.txt")).content == b"0123456789"
    assert await api.works.wait_idle(30)
    assert errors_in(caplog) == []


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


# --- what clients do that the contract does not say


async def test_the_workspace_may_be_named_by_a_slash(api: Api) -> None:
    """As Azure's command line does."""
    await api.json("POST", "/files", query={"path": "/sub"}, **multipart(b"x", name="a.txt"))

    listed = await api.json("GET", "/files", query={"path": "/", "recursive": "true"})
    inside = await api.json("GET", "/files", query={"path": "/mnt/data/sub"})

    assert [entry["name"] for entry in listed["value"]] == ["sub", "a.txt"]
    assert [entry["name"] for entry in inside["value"]] == ["a.txt"]


async def test_a_file_may_be_called_upload(api: Api) -> None:
    await put(api, "upload")

    assert (await api.json("GET", "/files/upload"))["sizeInBytes"] == 10
    async with api.request("DELETE", "/files/upload") as response:
        assert response.status == 204
    await api.json("GET", "/files/upload", status=404)


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_an_upload_that_says_it_is_json_is_told_by_its_first_line(api: Api, size: int) -> None:
    """Semantic Kernel for Python uploads so once it has executed something."""
    body = b'--bound\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhi\r\n--bound--\r\n'

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    await api.json("POST", "/files/upload", data=pieces(), headers={"Content-Type": "application/json"})

    assert (await get(api, "a.txt")).content == b"hi"


@pytest.mark.parametrize("body", [b"{}", b"", b"--\r\n", b"--" + b"x" * 500, b'--a"b\r\nx'])
async def test_json_is_no_upload(api: Api, body: bytes) -> None:
    await api.json("POST", "/files", 400, data=body, headers={"Content-Type": "application/json"})
