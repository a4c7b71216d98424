"""The clients that people point at it: LangChain's own, unmodified; of others, exactly what they send and read."""

from __future__ import annotations

import asyncio
import io
import warnings
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kernelpool.models import DisplayOutput
from tests.api.conftest import LEGACY, TOKEN, Api, ShowingKernel, multipart

with warnings.catch_warnings():
    # It calls itself deprecated as it is imported; it is what people have.
    warnings.simplefilter("ignore", DeprecationWarning)
    from langchain_azure_dynamic_sessions import SessionsPythonREPLTool

PNG = "iVBORw0KGgo="
DOTNET = {"User-Agent": "Semantic-Kernel/1.45.0 (Language=dotnet)"}


@pytest.fixture
def tool(api: Api) -> SessionsPythonREPLTool:
    return SessionsPythonREPLTool(
        pool_management_endpoint=api.base, access_token_provider=lambda: TOKEN, session_id="langchain-1"
    )


async def test_langchain_keeps_variables_across_calls(tool: SessionsPythonREPLTool) -> None:
    await asyncio.to_thread(tool.invoke, "x = 6")

    assert (await asyncio.to_thread(tool.execute, "x * 7"))["result"] == 42
    assert '"result": 42' in await asyncio.to_thread(tool.invoke, "```python\nx * 7\n```")


async def test_langchain_moves_files(tool: SessionsPythonREPLTool, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096

    uploaded = await asyncio.to_thread(tool.upload_file, data=io.BytesIO(data), remote_file_path="a b.bin")
    listed = await asyncio.to_thread(tool.list_files)
    content = await asyncio.to_thread(tool.download_file, remote_file_path="a b.bin")

    assert (uploaded.filename, uploaded.size_in_bytes) == ("a b.bin", len(data))
    assert [file.full_path for file in listed] == ["/mnt/data/a b.bin"]
    assert content.read() == data


async def test_langchain_gets_the_figure(api: Api, tool: SessionsPythonREPLTool) -> None:
    process = await api.process("langchain-1")
    process.kernel = ShowingKernel(DisplayOutput({"image/png": PNG}))

    assert (await asyncio.to_thread(tool.execute, "print('ok')"))["result"]["base64_data"] == PNG


async def test_langchain_deletes_its_session(api: Api, tool: SessionsPythonREPLTool) -> None:
    await asyncio.to_thread(tool.invoke, "1")

    await asyncio.to_thread(tool._delete_session_sync, "langchain-1")

    assert (await api.json("GET", "/listSessions", identifier=None))["sessions"] == []


@pytest.mark.parametrize(
    ("code", "text"), [("2 + 2", "4"), ("1.5", "1.5"), ("True", "True"), ("'hi'", "hi"), ("x = 1", ""), ("[1]", "[1]")]
)
async def test_semantic_kernel_for_dotnet_gets_nothing_but_strings(api: Api, code: str, text: str) -> None:
    """Its `executionResult` is declared a string; a number would make it throw."""
    answer = await api.run(code, version="2024-10-02-preview", headers=DOTNET)

    assert answer["result"]["executionResult"] == text


async def test_semantic_kernel_for_dotnet_is_spared_the_image_object(api: Api) -> None:
    process = await api.process()
    process.kernel = ShowingKernel(DisplayOutput({"image/png": PNG}))

    assert (await api.run("x = 1", headers=DOTNET))["result"]["executionResult"] == ""


async def test_semantic_kernel_for_dotnet_finds_all_it_requires_of_a_file(api: Api) -> None:
    await api.json("POST", "/files", **multipart(b"x", name="a.txt"))

    [entry] = (await api.json("GET", "/files", version="2024-10-02-preview", headers=DOTNET))["value"]

    assert {"name", "type", "lastModifiedAt", "sizeInBytes", "contentType"} <= entry.keys()


async def test_autogen_finds_status_result_and_both_streams(api: Api) -> None:
    """It asks for "Success" or "Failure", and takes the key `result` and two strings for granted."""
    succeeded, failed = [await old(api, "code/execute", code="print('hi')"), await old(api, "code/execute", code="1/0")]

    assert succeeded["properties"]["status"] == "Success"
    assert failed["properties"]["status"] == "Failure"
    for answer in (succeeded, failed):
        assert "result" in answer["properties"]
        assert isinstance(answer["properties"]["stdout"] + answer["properties"]["stderr"], str)


async def test_autogen_uploads_names_as_it_means_them(api: Api) -> None:
    form = aiohttp.FormData()
    form.add_field("file", b"a,b", filename="my file.csv", content_type="application/octet-stream")

    await api.json("POST", "/files/upload", version=LEGACY, data=form)

    listed = await api.json("GET", "/files", version=LEGACY)
    assert listed["value"][0]["properties"]["filename"] == "my file.csv"


async def test_llamaindex_ts_reads_the_top_level(api: Api) -> None:
    answer = await old(api, "python/execute", pythonCode="'a' + 'b'")

    assert (answer["result"], answer["stdout"], answer["stderr"]) == ("ab", "", "")


async def test_langchain4j_looks_for_404(api: Api) -> None:
    await api.run("1")

    await api.json("GET", "/files/content/missing.txt", 404, version=LEGACY)


async def old(api: Api, route: str, **fields: str) -> Any:
    properties = {"codeInputType": "inline", "executionType": "synchronous", **fields}
    return await api.json("POST", f"/{route}", version=LEGACY, json={"properties": properties})
