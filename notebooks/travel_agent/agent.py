"""The agent: a loop over a model and two tools. One runs code of ours, one code of the model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from travel_agent.check import objections
from travel_agent.models import Message, Model
from travel_agent.places import Outcome, Place
from travel_agent.weather import LOOK_UP, Weather

TURNS = 8
"""Of one question, before the agent gives up."""
ATTEMPTS = 2
"""At code for a chart: what failed is sent back once."""
PNG = b"\x89PNG\r\n\x1a\n"

PLANNER = """You plan trips. Look at the weather of every destination that is asked about with research_weather, \
make one chart of all of them with chart_weather, and recommend one in three sentences at most."""

CODER = """You write Python for charts. `weather` is there already: a dict from each destination to its daily lists \
(see the preview). Write a script that draws one matplotlib figure and saves it as chart.png: a line for the \
highest and the lowest temperature of each destination above, bars of its precipitation below, with labels and a \
legend. Import only matplotlib, numpy, pandas and the like; read no files, and use no network. Answer with code only."""


def _tool(name: str, description: str, parameter: str, schema: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {parameter: schema}, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [
    _tool("research_weather", "The weather of the coming week.", "destination", {"type": "string"}),
    _tool(
        "chart_weather",
        "Shows the user a chart that compares destinations.",
        "destinations",
        {"type": "array", "items": {"type": "string"}},
    ),
]


@dataclass(frozen=True, slots=True)
class Chart:
    png: bytes
    code: str


class TravelAgent:
    def __init__(self, model: Model, place: Place, weather: Weather, say: Callable[[str], None] = print) -> None:
        """`place` is where all code runs. `say` hears what the agent does."""
        self._model = model
        self._place = place
        self._weather = weather
        self._say = say
        self.charts: list[Chart] = []

    def ask(self, question: str) -> str:
        messages: list[Message] = [{"role": "system", "content": PLANNER}, {"role": "user", "content": question}]
        for _ in range(TURNS):
            answer = self._model.answer(messages, TOOLS)
            messages.append(answer)
            calls = answer.get("tool_calls")
            if not calls:
                return answer.get("content") or ""
            for call in calls:
                told = self._call(call["function"]["name"], call["function"]["arguments"])
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": told})
        return "I could not make up my mind."

    def _call(self, name: str, arguments: str) -> str:
        """What a model asks for is checked like any other input."""
        self._say(f"tool: {name}({arguments})")
        try:
            match name, json.loads(arguments):
                case "research_weather", {"destination": str(destination)}:
                    return self.research_weather(destination)
                case "chart_weather", {"destinations": [*destinations]} if destinations:
                    return self.chart_weather([str(each) for each in destinations])
        except (ValueError, LookupError) as error:
            return f"Error: {error}"
        return f"Error: there is no {name} with such arguments"

    def research_weather(self, destination: str) -> str:
        """Scenario one: our own code, in the place where all code runs; the destination goes in as data."""
        source = self._weather.source_for(destination, self._place)
        outcome = self._place.run(with_data(LOOK_UP, destination=destination, source=source))
        self._say(outcome.text)
        return outcome.text

    def chart_weather(self, destinations: Sequence[str]) -> str:
        """Scenario two: the model's code. It is looked at, it runs, and what goes wrong is sent back once."""
        weather = {each: self._weather.daily(each) for each in destinations}
        preview = json.dumps({each: {key: days[:2] for key, days in daily.items()} for each, daily in weather.items()})
        messages: list[Message] = [{"role": "system", "content": CODER}, {"role": "user", "content": preview}]
        for attempt in range(1, ATTEMPTS + 1):
            messages.append(self._model.answer(messages))
            code = code_of(messages[-1].get("content") or "")
            outcome = self._try(code, weather)
            self._say(f"chart code, attempt {attempt}: {_last_line(outcome.text)}")
            if outcome.ok:
                return "The user sees the chart."
            messages.append({"role": "user", "content": f"That failed. Mend it.\n{outcome.text}"})
        return "Error: there is no chart, its code fails"

    def _try(self, code: str, weather: dict[str, Any]) -> Outcome:
        if found := objections(code):
            return Outcome(False, f"refused: {'; '.join(found)}")
        self._place.take("chart.png")  # what an earlier attempt has left is not this one's
        outcome = self._place.run(with_data(code, weather=weather))
        if not outcome.ok:
            return outcome
        png = self._place.take("chart.png")
        if png is None or not png.startswith(PNG):
            return Outcome(False, "there is no PNG in chart.png")
        self.charts.append(Chart(png, code))
        return Outcome(True, "it ran, and chart.png was downloaded")


def with_data(code: str, **data: Any) -> str:
    """Code that finds `data` as variables. Whatever is in it, it stays data: a literal, which nobody can end early."""
    lines = [f"{name} = json.loads({json.dumps(value)!r})" for name, value in data.items()]
    return "\n".join(["import json", *lines, code])


def code_of(answer: str) -> str:
    """Models like to put fences around code, whatever they are told."""
    fenced = re.search(r"```(?:python)?\s*\n(.*?)```", answer, re.DOTALL)
    return (fenced[1] if fenced else answer).strip()


def _last_line(text: str) -> str:
    return text.splitlines()[-1] if text else "failed without a word"
