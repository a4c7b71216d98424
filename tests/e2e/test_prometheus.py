"""A real Prometheus scrapes a real gateway, and every question of the dashboard and the alerts has an answer."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.e2e.browser import until
from tests.e2e.gateways import TOKEN, Gateway, state_of
from tests.promtool import needs_prometheus, needs_promtool, promtool

DEPLOY = Path(__file__).parents[2] / "deploy"
NAMES = re.compile(r"\b(?:kernelpool|http_server|process)_[a-z_]+\b")


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    return found


def questions() -> list[str]:
    """The dashboard's, with its variables as Grafana fills them in."""
    asked = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    return [text.replace("$pool", ".*").replace("$__rate_interval", "1m") for text in asked]


def names_in(expression: str) -> set[str]:
    return set(NAMES.findall(re.sub(r'"[^"]*"', "", expression)))


class Prometheus:
    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def is_up(self) -> bool:
        try:
            return bool(self.query('up{job="kernelpool"} == 1'))
        except requests.RequestException:  # it is starting
            return False

    def query(self, expression: str) -> list[Any]:
        answer = requests.get(f"{self._url}/query", params={"query": expression}, timeout=30).json()
        assert answer["status"] == "success", (expression, answer)
        found: list[Any] = answer["data"]["result"]
        return found

    def names(self) -> set[str]:
        return set(requests.get(f"{self._url}/label/__name__/values", timeout=30).json()["data"])

    def rules(self) -> list[Any]:
        groups = requests.get(f"{self._url}/rules", timeout=30).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One that has lived through a bit of everything that is counted."""
    folder, environment = tmp_path_factory.mktemp("busy"), {"KERNELPOOL_METRICS_PUBLIC": "false"}
    settings: dict[str, Any] = {"ready": 1, "max_sessions": 2, "egress": "a.test"}
    gateway = Gateway(folder, state=state_of("busy"), environment=environment, **settings)
    gateway.start()
    gateway.wait_warm()
    session = gateway.session("busy-session-1")
    session.run("1 + 1")
    session.run("1 / 0")
    session.run("import urllib.request\nurllib.request.urlopen('http://b.test')")  # which is not on the list
    session.run("while True: pass", timeoutInSeconds=1)
    session.run("import os; os._exit(1)")
    session.upload("a.txt", b"x" * 1000)
    session.download("a.txt")
    session.request("GET", "/files/missing")
    other = gateway.session("busy-session-2")
    other.run("1")
    other.delete()
    yield gateway
    gateway.stop()
    assert gateway.traces() == []


@pytest.fixture(scope="module")
def prometheus(busy: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """With the files of deploy/, but for the target, the place of the token, and some haste."""
    tmp_path = tmp_path_factory.mktemp("prometheus")
    shutil.copy(DEPLOY / "prometheus" / "alerts.yml", tmp_path)
    (tmp_path / "token").write_text(TOKEN)
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    text = text.replace("gateway:8080", f"127.0.0.1:{busy.port}").replace("15s", "1s")
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus/keys/prometheus", str(tmp_path / "token")))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
        )
    try:
        server = Prometheus(port)
        until(server.is_up)
        yield server
    finally:
        process.terminate()
        process.wait(60)


@needs_prometheus
def test_every_expression_has_an_answer_and_names_what_there_is(prometheus: Prometheus) -> None:
    # Rates need two scrapes.
    until(lambda: prometheus.query("rate(kernelpool_event_loop_lag_seconds_count[1m])"))

    there = prometheus.names()
    alerts = [rule["query"] for rule in prometheus.rules()]
    assert len(alerts) > 10
    for expression in questions() + alerts:
        prometheus.query(expression)
        assert names_in(expression) <= there, expression


@needs_prometheus
def test_numbers_are_those_of_what_was_done(prometheus: Prometheus) -> None:
    def value(expression: str) -> float:
        # After a scrape that took too long there is nothing until the next.
        [series] = until(lambda: prometheus.query(expression))
        return float(series["value"][1])

    assert value('kernelpool_executions_total{outcome="timed_out"}') == 1
    assert value('kernelpool_kernel_deaths_total{cause="exited"}') == 1
    assert value("kernelpool_interrupts_total") == 1
    assert value("sum(kernelpool_sessions)") == 1
    assert value('kernelpool_sessions_ended_total{why="stopped"}') == 1
    assert value("kernelpool_pool_max_sessions") == 2
    assert value('kernelpool_file_bytes_total{direction="out"}') == 1000


@needs_prometheus
def test_the_alerts_are_loaded_and_no_alert_fires_of_a_gateway_that_is_well(prometheus: Prometheus) -> None:
    until(lambda: all(rule["health"] == "ok" for rule in prometheus.rules()))

    assert [rule["name"] for rule in prometheus.rules() if rule["state"] == "firing"] == []


@needs_promtool
def test_promtool_accepts_rules_and_configuration() -> None:
    assert promtool("check", "rules", str(DEPLOY / "prometheus" / "alerts.yml")) == ""
    assert promtool("check", "config", "--syntax-only", str(DEPLOY / "prometheus" / "prometheus.yml")) == ""


def test_grafana_knows_every_field_of_the_dashboard() -> None:
    """Grafana's own types read it and write it again: what they do not know is gone then."""
    known = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard())))

    assert missing_in(known, dashboard()) == []


def missing_in(known: Any, value: Any, where: str = "dashboard") -> list[str]:
    if isinstance(value, dict):
        return [
            text
            for name, inner in value.items()
            for text in (missing_in(known[name], inner, f"{where}.{name}") if name in known else [f"{where}.{name}"])
        ]
    if isinstance(value, list):
        pairs = zip(known, value, strict=True)
        return [text for number, pair in enumerate(pairs) for text in missing_in(*pair, f"{where}[{number}]")]
    return [] if known == value else [where]


def test_panels_neither_overlap_nor_leave_the_grid() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in own) < 24
        assert not own & cells, panel["title"]
        cells |= own


def test_every_metric_of_ours_has_a_place_on_the_dashboard(busy: Gateway) -> None:
    text = requests.get(
        f"http://127.0.0.1:{busy.port}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30
    ).text
    families = set(re.findall(r"^# TYPE (kernelpool_\w+)", text, re.MULTILINE)) - {"kernelpool_build_info"}
    shown = " ".join(questions())

    assert sorted(name for name in families if name not in shown) == []
