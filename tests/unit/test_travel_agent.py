"""The agent of notebooks/02: its check, where its code runs, who answers it, and what it does when things go wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from travel_agent import Endpoint, LocalProcess, Recorded, TravelAgent, configured_model, objections
from travel_agent.agent import TURNS, code_of, with_data
from travel_agent.models import STORED, Message
from travel_agent.weather import STORED as WEATHER
from travel_agent.weather import Weather

QUESTION = "Seattle or Lisbon?"
PNG = "import numpy as np\nnp.array([0x89, *b'PNG\\r\\n\\x1a\\n'], dtype=np.uint8).tofile('chart.png')"
"""Code for the smallest thing that passes for a chart."""


class Scripted:
    """A model that says what it is told to, and keeps what it was asked."""

    def __init__(self, *answers: Message | str) -> None:
        self._answers = [{"role": "assistant", "content": each} if isinstance(each, str) else each for each in answers]
        self.asked: list[list[Message]] = []

    def answer(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Message:
        self.asked.append(list(messages))
        return self._answers.pop(0)


def calling(name: str, arguments: Any) -> Message:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": text}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def charting(*cities: str) -> Message:
    return calling("chart_weather", {"destinations": cities})


def agent_of(model: Any, folder: Path, weather: Weather | None = None) -> tuple[TravelAgent, list[str]]:
    said: list[str] = []
    return TravelAgent(model, LocalProcess(folder, {}), weather or Weather(), said.append), said


@contextmanager
def serving(answer: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives each request to `answer`, and the list of those that came."""
    came: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._reply({"path": self.path, "key": self.headers["Authorization"], **body})

        def do_GET(self) -> None:
            self._reply({"path": urlsplit(self.path).path, **parse_qs(urlsplit(self.path).query)})

        def _reply(self, request: dict[str, Any]) -> None:
            came.append(request)
            body = json.dumps(answer(request)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", came
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("code", "objection"),
    [
        ("import subprocess", "imports subprocess"),
        ("import numpy, os.path", "imports os.path"),
        ("from urllib import request", "imports urllib"),
        ("from . import thing", "imports ."),
        ("def f():\n    import socket", "line 2 imports socket"),
        ("eval('1')", "uses eval"),
        ("run = exec", "uses exec"),
        ("open('/etc/passwd')", "uses open"),
        ("__import__('os')", "uses __import__"),
        ("__builtins__['eval']", "uses __builtins__"),
        ("().__class__.__base__", "reaches for __class__"),
        ("plot(", "it is no Python"),
        ("x = '\0'", "it is no Python"),
        ("-" * 5000 + "1", "it is no Python"),
    ],
)
def test_the_check_objects(code: str, objection: str) -> None:
    assert objection in "; ".join(objections(code))


@pytest.mark.parametrize(
    "code",
    [
        "import matplotlib.pyplot as plt\nfrom datetime import date\nplt.plot([1])\nplt.savefig('chart.png')",
        "opened = 1  # open, eval",
        "matplotlib.os.environ",  # why it is no boundary
    ],
)
def test_the_check_lets_pass(code: str) -> None:
    assert objections(code) == []


@given(
    st.recursive(st.text() | st.integers() | st.none(), lambda each: st.lists(each) | st.dictionaries(st.text(), each))
)
def test_data_stays_data(value: Any) -> None:
    namespace: dict[str, Any] = {}

    exec(with_data("found = given", given=value), namespace)

    assert namespace["found"] == value


@pytest.mark.parametrize(
    "answer", ["print(1)", "```python\nprint(1)\n```", "Here:\n\n```\nprint(1)\n```\nDone.", " print(1)\n"]
)
def test_code_is_found_in_an_answer(answer: str) -> None:
    assert code_of(answer) == "print(1)"


def test_a_local_process_is_a_process_with_what_it_is_given(tmp_path: Path) -> None:
    place = LocalProcess(tmp_path, {"ONE": "1"})

    path = place.put("data.txt", b"41")
    outcome = place.run(
        "import os; print(int(open('data.txt').read()) + int(os.environ['ONE']), os.environ.get('HOME'))"
    )
    failed = place.run("print('before'); 1 / 0")
    place.run("open('out', 'wb').write(b'made')")

    assert path == tmp_path / "data.txt"
    assert (outcome.ok, outcome.text) == (True, "42 None")
    assert not failed.ok
    assert failed.text.startswith("before\n")
    assert failed.text.endswith("ZeroDivisionError: division by zero")
    assert (place.take("out"), place.take("out")) == (b"made", None)


def test_a_local_process_that_takes_too_long_is_an_outcome(tmp_path: Path) -> None:
    outcome = LocalProcess(tmp_path, {}, timeout=0.2).run("while True: pass")

    assert (outcome.ok, outcome.text) == (False, "it took longer than 0.2 s")


def test_an_endpoint_answers_like_the_stored_answers(tmp_path: Path) -> None:
    answers = [entry["message"] for entry in json.loads(STORED.read_text())["answers"]]
    stored, _ = agent_of(Recorded(), tmp_path)
    expected = stored.ask(QUESTION)

    with serving(lambda request: {"choices": [{"message": answers.pop(0)}]}) as (url, came):
        environment = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "a-key", "OPENAI_MODEL": "small"}
        agent, said = agent_of(configured_model(environment), tmp_path)
        answer = agent.ask(QUESTION)

    assert answer == expected
    assert agent.charts == stored.charts
    assert {(each["path"], each["key"], each["model"]) for each in came} == {
        ("/v1/chat/completions", "Bearer a-key", "small")
    }
    assert [len(each["messages"]) for each in came] == [2, 5, 2, 4, 7]
    assert ["tools" in each for each in came] == [True, True, False, False, True]
    assert "KeyError: 'temperature_max'" in came[3]["messages"][-1]["content"]
    assert [line.splitlines()[0] for line in said] == [
        'tool: research_weather({"destination": "Seattle"})',
        "Weather in Seattle:",
        'tool: research_weather({"destination": "Lisbon"})',
        "Weather in Lisbon:",
        'tool: chart_weather({"destinations": ["Seattle", "Lisbon"]})',
        "chart code, attempt 1: KeyError: 'temperature_max'",
        "chart code, attempt 2: it ran, and chart.png was downloaded",
    ]


def test_an_endpoint_that_refuses_is_no_answer() -> None:
    with pytest.raises(httpx.HTTPError):
        Endpoint("http://127.0.0.1:1/v1", "key", "model").answer([])


def test_without_an_endpoint_the_answers_are_the_stored_ones() -> None:
    assert isinstance(configured_model({}), Recorded)
    assert isinstance(configured_model({"OPENAI_API_KEY": "key"}), Endpoint)


def test_the_stored_answers_are_for_one_conversation() -> None:
    with pytest.raises(RuntimeError, match="OPENAI_BASE_URL"):
        Recorded().answer([{"role": "user", "content": QUESTION}])  # no tools: a chart, which comes later


def test_live_weather_is_asked_for_by_the_code_and_by_the_agent(tmp_path: Path) -> None:
    lisbon = json.loads(WEATHER.read_text())["cities"]["Lisbon"]

    with serving(lambda request: lisbon) as (url, came):
        agent, _ = agent_of(Scripted(PNG), tmp_path, Weather(url))
        told = agent.research_weather("lisbon ")
        agent.chart_weather(["Lisbon"])

    assert "23.5 °C on average" in told
    assert [each["latitude"] for each in came] == [["38.72"]] * 2
    assert came[0]["daily"] == ["weather_code,temperature_2m_max,temperature_2m_min,precipitation_sum"]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            calling("research_weather", {"destination": "Atlantis"}),
            "there is no weather for 'Atlantis', only for Seattle, Lisbon",
        ),
        (calling("research_weather", {"destination": 7}), "there is no research_weather with such arguments"),
        (calling("research_weather", "not JSON"), "Error: "),
        (calling("chart_weather", {"destinations": []}), "there is no chart_weather with such arguments"),
        (calling("book_flight", {"destination": "Lisbon"}), "there is no book_flight with such arguments"),
    ],
)
def test_a_model_is_told_what_it_called_wrongly(call: Message, told: str, tmp_path: Path) -> None:
    model = Scripted(call, "I see.")

    answer = agent_of(model, tmp_path)[0].ask(QUESTION)

    assert answer == "I see."
    assert model.asked[-1][-1]["tool_call_id"] == "call_1"
    assert told in model.asked[-1][-1]["content"]


def test_code_that_is_refused_does_not_run_and_is_sent_back(tmp_path: Path) -> None:
    model = Scripted(charting("Lisbon"), f"import os\n{PNG}\nos.mkdir('ran')", PNG, "There it is.")
    agent, said = agent_of(model, tmp_path)

    agent.ask(QUESTION)

    assert not (tmp_path / "ran").exists()
    assert "chart code, attempt 1: refused: line 1 imports os" in said
    assert "refused: line 1 imports os" in model.asked[2][-1]["content"]
    assert [chart.code for chart in agent.charts] == [PNG]


def test_code_is_sent_back_once(tmp_path: Path) -> None:
    model = Scripted(charting("Lisbon"), "1 / 0", "2 / 0", "No chart, then.")
    agent, _ = agent_of(model, tmp_path)

    agent.ask(QUESTION)

    assert agent.charts == []
    assert len(model.asked) == 4
    assert "its code fails" in model.asked[-1][-1]["content"]


def test_the_chart_of_an_earlier_attempt_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    model = Scripted(charting("Lisbon"), f"{PNG}\n1 / 0", "pass", "No chart, then.")
    agent, said = agent_of(model, tmp_path)

    agent.ask(QUESTION)

    assert agent.charts == []
    assert said[-1] == "chart code, attempt 2: there is no PNG in chart.png"


def test_what_is_no_picture_is_no_chart(tmp_path: Path) -> None:
    text = "import numpy as np\nnp.zeros(9).tofile('chart.png')"

    agent, _ = agent_of(Scripted(text, text), tmp_path)

    assert "its code fails" in agent.chart_weather(["Lisbon"])


def test_a_model_that_never_comes_to_an_end_is_left(tmp_path: Path) -> None:
    model = Scripted(*[calling("research_weather", {"destination": "Atlantis"})] * TURNS)

    assert agent_of(model, tmp_path)[0].ask(QUESTION) == "I could not make up my mind."
