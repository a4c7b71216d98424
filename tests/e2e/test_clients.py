"""Other clients of ACA dynamic sessions from PyPI, unmodified.

They are the extra `clients`, apart from `dev` because of the hundred packages that come with them. Tests of a client
that is not installed are skipped.
"""

from __future__ import annotations

import base64
import importlib
import uuid
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.e2e.gateways import TOKEN, Gateway

PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.savefig('chart.png')\nprint('drawn')"


def client(module: str) -> ModuleType:
    """It, or a test that is skipped. What it warns of when it is imported is its own business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(module)
        except ImportError as error:
            pytest.skip(f"no {module}, which comes with kernelpool[clients]: {error}")


@pytest.fixture
def identifier(gateway: Gateway) -> Iterator[str]:
    identifier = f"client-{uuid.uuid4().hex}"
    yield identifier
    gateway.session(identifier).delete()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data.csv").write_bytes(b"a,b\n1,2\n")
    return tmp_path


class Credential:
    """As azure-identity makes them."""

    def get_token(self, *scopes: str, **rest: Any) -> Any:
        return SimpleNamespace(token=TOKEN, expires_on=2**40)


@pytest.fixture
async def autogen(gateway: Gateway, identifier: str, folder: Path) -> AsyncIterator[Any]:
    executor = client("autogen_ext.code_executors.azure").ACADynamicSessionsCodeExecutor(
        gateway.endpoint, Credential(), work_dir=folder, session_id=identifier
    )
    yield executor
    await executor.stop()


def autogen_block(code: str) -> Any:
    return client("autogen_core.code_executor").CodeBlock(code=code, language="python")


async def test_autogen_runs_blocks_and_finds_the_packages_that_they_need(autogen: Any) -> None:
    token = client("autogen_core").CancellationToken()
    blocks = [autogen_block("import pandas as pd\nx = 20"), autogen_block("print('text')\nx + 1")]

    result = await autogen.execute_code_blocks(blocks, token)
    failed = await autogen.execute_code_blocks([autogen_block("print('first'); 1/0")], token)

    assert (result.exit_code, result.output) == (0, "text\n21")
    assert failed.exit_code == 1
    assert "ZeroDivisionError" in failed.output
    assert {"pandas", "matplotlib", "pip"} <= await autogen.get_available_packages(token)


async def test_autogen_sends_files_and_brings_them_back(autogen: Any, folder: Path) -> None:
    token = client("autogen_core").CancellationToken()
    await autogen.upload_files(["data.csv"], token)

    copy = autogen_block("open('out.csv', 'w').write(open('data.csv').read())")
    result = await autogen.execute_code_blocks([copy], token)
    await autogen.download_files(["out.csv"], token)

    assert (result.exit_code, result.output) == (0, "8")
    assert sorted(await autogen.get_file_list(token)) == ["data.csv", "out.csv"]
    assert (folder / "out.csv").read_bytes() == b"a,b\n1,2\n"


@pytest.fixture
def llamaindex(gateway: Gateway, identifier: str, folder: Path) -> Any:
    spec = client("llama_index.tools.azure_code_interpreter").AzureCodeInterpreterToolSpec(
        pool_management_endpoint=gateway.endpoint, session_id=identifier, local_save_path=str(folder)
    )
    spec.access_token_provider = lambda: TOKEN
    return spec


def test_llamaindex_keeps_variables_and_reads_errors(llamaindex: Any) -> None:
    llamaindex.code_interpreter("```python\nx = 6\n```")

    answer = llamaindex.code_interpreter("print('text')\nx * 7")["properties"]
    failed = llamaindex.code_interpreter("1/0")["properties"]

    assert (answer["status"], answer["result"], answer["stdout"], answer["stderr"]) == ("Success", 42, "text\n", "")
    assert (failed["status"], failed["result"]) == ("Failure", None)


def test_llamaindex_saves_the_figure_that_came_with_a_print(llamaindex: Any, folder: Path) -> None:
    properties = llamaindex.code_interpreter(PLOT)["properties"]

    assert properties["stdout"] == "drawn\n"
    assert properties["result"]["saved_to_local_path"] is True
    (saved,) = folder.glob("*.png")
    assert saved.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves the file to the collector
def test_llamaindex_moves_files(llamaindex: Any, folder: Path) -> None:
    (uploaded,) = llamaindex.upload_file(local_file_path=str(folder / "data.csv"))

    llamaindex.download_file_to_local("/mnt/data/data.csv", str(folder / "back.csv"))

    assert (uploaded.size_in_bytes, uploaded.file_full_path) == (8, "/mnt/data/data.csv")
    assert [file.file_full_path for file in llamaindex.list_files()] == ["/mnt/data/data.csv"]
    assert (folder / "back.csv").read_bytes() == b"a,b\n1,2\n"


@pytest.fixture
async def semantic_kernel(gateway: Gateway, identifier: str, folder: Path) -> AsyncIterator[Any]:
    """It insists on https; its transport stands in for the proxy that speaks TLS."""
    package = client("semantic_kernel.core_plugins.sessions_python_tool.sessions_python_plugin")
    settings = client("semantic_kernel.core_plugins.sessions_python_tool.sessions_python_settings")
    httpx = client("httpx")
    transport = httpx.AsyncHTTPTransport()

    async def forward(request: Any) -> Any:
        request.url = request.url.copy_with(scheme="http")
        return await transport.handle_async_request(request)

    http = httpx.AsyncClient(timeout=60)
    http._transport = SimpleNamespace(handle_async_request=forward, aclose=transport.aclose)
    yield package.SessionsPythonTool(
        auth_callback=lambda: TOKEN,
        pool_management_endpoint=gateway.endpoint.replace("http://", "https://"),
        settings=settings.SessionsPythonSettings(identifier=identifier),
        http_client=http,
        enable_dangerous_file_uploads=True,
        allowed_upload_directories=[str(folder)],
    )
    await transport.aclose()


async def test_semantic_kernel_runs_code_and_moves_files(semantic_kernel: Any, folder: Path) -> None:
    text = await semantic_kernel.execute_code("```python\nprint('text')\n6 * 7\n```")

    # From now on it calls all that it sends application/json, also this multipart body.
    uploaded = await semantic_kernel.upload_file(local_file_path=str(folder / "data.csv"))
    data = await semantic_kernel.download_file(remote_file_name="data.csv")

    assert text == "Status:\nSuccess\nResult:\n42\nStdout:\ntext\n\nStderr:\n"
    assert (uploaded.full_path, uploaded.size_in_bytes) == ("/mnt/data/data.csv", 8)
    assert data.read() == b"a,b\n1,2\n"


async def test_semantic_kernel_gets_a_figure(semantic_kernel: Any) -> None:
    text = await semantic_kernel.execute_code(PLOT)

    image = text.partition("'base64_data': '")[2].partition("'")[0]
    assert base64.b64decode(image).startswith(b"\x89PNG\r\n\x1a\n")
