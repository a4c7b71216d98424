"""What the project exists for, as its users do it: LangChain's tool unmodified, and the agent that draws a chart."""

from __future__ import annotations

import base64
import io
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.doors import through_every_door
from tests.e2e.gateways import TOKEN, Gateway, Session


@pytest.fixture
def tool(gateway: Gateway) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package announces its successor
        from langchain_azure_dynamic_sessions import SessionsPythonREPLTool

    tool = SessionsPythonREPLTool(
        pool_management_endpoint=gateway.endpoint,
        access_token_provider=lambda: TOKEN,
        session_id=f"langchain-{uuid.uuid4().hex}",
    )
    yield tool
    gateway.session(tool.session_id).delete()


def test_langchains_tool_keeps_variables_between_calls(tool: Any) -> None:
    tool.invoke("x = 41")

    assert tool.execute("```python\nx + 1\n```")["result"] == 42


def test_langchains_tool_moves_files_up_and_down(tool: Any) -> None:
    uploaded = tool.upload_file(data=io.BytesIO(b"a,b\n1,2\n"), remote_file_path="data.csv")

    assert (uploaded.filename, uploaded.size_in_bytes, uploaded.full_path) == ("data.csv", 8, "/mnt/data/data.csv")
    assert tool.execute("import pandas as pd; int(pd.read_csv('data.csv').b[0])")["result"] == 2
    assert [entry.filename for entry in tool.list_files()] == ["data.csv"]
    assert tool.download_file(remote_file_path="data.csv").read() == b"a,b\n1,2\n"


def test_langchains_tool_gets_a_figure_and_its_file(tool: Any) -> None:
    code = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.savefig('/mnt/data/chart.png')\nprint('done')"

    answer = tool.execute(code)

    assert (answer["result"]["type"], answer["result"]["format"], answer["stdout"]) == ("image", "png", "done\n")
    assert tool.download_file(remote_file_path="chart.png").read().startswith(b"\x89PNG\r\n\x1a\n")
    assert '"base64_data"' not in tool.invoke(code)


def test_langchains_figure_is_fetched_byte_for_byte(gateway: Gateway, tool: Any) -> None:
    answer = tool.execute("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()")
    (shown,) = [entry.filename for entry in tool.list_files()]

    fetched = gateway.session(tool.session_id).request("GET", f"/files/content/{shown}")

    assert fetched.content == base64.b64decode(answer["result"]["base64_data"])
    assert fetched.content == tool.download_file(remote_file_path=shown).read()


def test_langchains_sessions_are_apart_and_end(gateway: Gateway, tool: Any) -> None:
    other = type(tool)(
        pool_management_endpoint=gateway.endpoint,
        access_token_provider=lambda: TOKEN,
        session_id=f"langchain-{uuid.uuid4().hex}",
    )
    tool.invoke("x = 1")

    assert "NameError" in other.execute("x")["stderr"]

    tool._delete_session_sync(tool.session_id)
    other._delete_session_sync(other.session_id)
    assert "NameError" in tool.execute("x")["stderr"]


def test_langchains_tool_reads_errors(tool: Any) -> None:
    answer = tool.execute("1/0")

    assert (answer["status"], answer["result"]) == ("Failure", None)
    assert "ZeroDivisionError" in answer["stderr"]


def test_an_agents_two_scenarios(gateway: Gateway) -> None:
    """(A) pre-written code in one session; (B) generated code in another, with data injected, and its chart fetched."""
    written, generated = (gateway.session(f"story-{uuid.uuid4().hex}") for _ in range(2))
    weather = written.value("weather = {'Oslo': [3, 5, 4], 'Rome': [14, 15, 17]}\nimport json; json.dumps(weather)")
    code = """
import json, matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
for city, degrees in json.load(open('/mnt/data/weather.json')).items():
    plt.plot(degrees, label=city)
plt.legend()
plt.savefig('/mnt/data/chart.png')
"""
    generated.upload("weather.json", weather.encode())

    answer = generated.run(code)
    chart = generated.request("GET", "/files/content/chart.png")

    assert answer["status"] == "Succeeded"
    assert chart.headers["Content-Type"] == "image/png"
    assert chart.content == base64.b64decode(
        generated.value("import base64; base64.b64encode(open('/mnt/data/chart.png', 'rb').read()).decode()")
    )
    assert "NameError" in generated.run("weather")["result"]["stderr"]
    for session in (written, generated):
        session.delete()


def test_a_figure_that_is_only_shown_is_a_file_too(session: Session) -> None:
    answer = session.run("import matplotlib.pyplot as plt; plt.plot([1]); plt.show()")

    image = base64.b64decode(answer["result"]["executionResult"]["base64_data"])
    (name,) = answer["result"]["files"]
    assert answer["result"]["outputs"][0]["files"] == [name]
    assert session.download(name) == image


def test_a_session_is_one_through_every_door(gateway: Gateway) -> None:
    assert through_every_door(gateway, write="x = {}", read="print(x)") == ["1\n", "2\n", "3\n"]
