"""A pool whose sessions may reach some domains: programs find the proxy, and what is said is what is."""

from __future__ import annotations

import json
from typing import Any

import requests

from tests.e2e.conftest import Make
from tests.e2e.gateways import TOKEN, Gateway, until

GET = """
import os, subprocess, urllib.request
def get(url):
    try: return urllib.request.urlopen(url, timeout=50).status
    except urllib.error.HTTPError as error: return f"{error.code} {error.reason}"
    except OSError as error: return str(error)
"""


def _decisions(gateway: Gateway) -> list[dict[str, Any]]:
    whole, _, _ = gateway.log.read_text().rpartition("\n")
    lines = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "egress decided"]


def _policy(gateway: Gateway, identifier: str) -> Any:
    return gateway.session(identifier).request("GET", "/session").json()["egress"]


def test_a_list_of_domains_is_all_that_a_session_reaches_and_survives_kill_9(make_gateway: Make) -> None:
    gateway = make_gateway(ready=1, egress="kernelpool.invalid,*.pythonhosted.org")
    session = gateway.session("listed")
    session.value(GET + "1")
    allowed = session.value("get('http://kernelpool.invalid/')")
    refused = session.value("get('http://evil.test/')")
    tunnel = session.value("get('https://evil.test/')")
    direct = session.value("import socket; s = socket.socket(); s.connect_ex(('203.0.113.1', 80))")
    pip = session.value(
        "subprocess.run(['pip', '-v', 'download', '--no-deps', '--retries', '1', '-d', '/tmp', '-i', "
        "'https://evil.test/simple', 'six'], stdout=-1, stderr=-2, text=True).stdout",
        timeoutInSeconds=200,
    )
    until(lambda: len(_decisions(gateway)) >= 4)  # the gateway hears of them beside what the code is told
    before = _policy(gateway, "listed")

    gateway.kill()
    heard = len(_decisions(gateway))
    gateway.start()
    after = session.value("get('http://evil.test/')")
    until(lambda: len(_decisions(gateway)) > heard)

    assert allowed.startswith("502 kernelpool.invalid is not found")
    assert refused.startswith("403 evil.test at port 80 is not among the domains that this session may reach")
    assert "Tunnel connection failed: 403 evil.test at port 443 is not among the domains" in tunnel
    assert direct == 101
    assert "evil.test at port 443 is not among the domains" in pip
    assert after == refused
    assert before == _policy(gateway, "listed") == {
        "mode": "domains", "domains": ["*.pythonhosted.org", "kernelpool.invalid"]
    }  # fmt: skip
    decisions = _decisions(gateway)
    assert {line["outcome"] for line in decisions} == {"failed", "refused_name"}
    assert len({line["sandbox"] for line in decisions}) == 1
    assert len({line["session"] for line in decisions} - {""}) == 1
    headers = {"Authorization": f"Bearer {TOKEN}"}
    metrics = requests.get(f"http://127.0.0.1:{gateway.port}/metrics", headers=headers, timeout=60).text
    assert 'kernelpool_egress_decisions_total{outcome="refused_name",pool="python"} 1.0' in metrics


def test_a_session_without_egress_says_so_and_has_none(make_gateway: Make) -> None:
    gateway = make_gateway(ready=0)
    session = gateway.session("closed")

    code = "import os, socket\n[name for name in os.environ if 'proxy' in name.lower()]"
    assert session.value(code) == "[]"
    assert session.value("socket.socket().connect_ex(('127.0.0.1', 3128))") == 111
    assert session.value("socket.socket().connect_ex(('203.0.113.1', 80))") == 101
    assert _policy(gateway, "closed") == {"mode": "none", "domains": []}
