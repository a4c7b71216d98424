"""The weather of a week, in the form of Open-Meteo's API: from a file beside the notebooks, or from the API itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from travel_agent.places import Place

STORED = Path(__file__).parents[1] / "data" / "weather.json"
OPEN_METEO = "https://api.open-meteo.com/v1/forecast"
DAILY = ("weather_code", "temperature_2m_max", "temperature_2m_min", "precipitation_sum")

LOOK_UP = """
from urllib.request import urlopen

SKY = {0: "clear", 1: "mainly clear", 2: "partly cloudy", 3: "overcast", 61: "light rain", 63: "rain", 80: "showers"}

with urlopen(source, timeout=10) as answer:
    daily = json.load(answer)["daily"]
days = list(zip(*(daily[name] for name in ("time", "weather_code", "temperature_2m_max", "temperature_2m_min"))))
print(f"Weather in {destination}:")
for day, code, highest, lowest in days:
    print(f"  {day}  {lowest:4.1f} to {highest:4.1f} °C  {SKY.get(code, 'changing')}")
wet = sum(amount >= 1 for amount in daily["precipitation_sum"])
print(f"  {sum(highest for _, _, highest, _ in days) / len(days):.1f} °C on average, rain on {wet} of {len(days)} days")
"""
"""What a session runs for each destination; `destination` and `source` go in as data."""


class Weather:
    def __init__(self, live: str | None = None) -> None:
        """`live` is the API to ask, such as `OPEN_METEO`; the place where code runs needs a way there
        (`egress = ["api.open-meteo.com"]` for a pool). None stays with the file."""
        self._live = live
        self._cities: dict[str, dict[str, Any]] = json.loads(STORED.read_text())["cities"]

    def source_for(self, destination: str, place: Place) -> str:
        """A URL from which code in `place` reads the forecast. Raises `LookupError`."""
        city = self._city(destination)
        if self._live:
            return self._url(city)
        return place.put("weather.json", json.dumps(city).encode()).as_uri()

    def daily(self, destination: str) -> dict[str, list[Any]]:
        """A list for each quantity, with `time` for the days. Raises `LookupError`."""
        city = self._city(destination)
        if self._live:
            with urlopen(self._url(city), timeout=10) as answer:
                city = json.load(answer)
        found: dict[str, list[Any]] = city["daily"]
        return found

    def _city(self, destination: str) -> dict[str, Any]:
        for name, city in self._cities.items():
            if name.casefold() == destination.strip().casefold():
                return city
        raise LookupError(f"there is no weather for {destination!r}, only for {', '.join(self._cities)}")

    def _url(self, city: dict[str, Any]) -> str:
        where = {"latitude": city["latitude"], "longitude": city["longitude"], "timezone": city["timezone"]}
        return f"{self._live}?{urlencode({**where, 'daily': ','.join(DAILY), 'forecast_days': 7})}"
