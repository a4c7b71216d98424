"""The OpenAPI document against a real gateway: its examples work as they stand, and its page shows it in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.contract_of_api import Contract
from tests.e2e.browser import opened
from tests.e2e.gateways import TOKEN, Gateway

ORDER = ("PUT", "POST", "PATCH", "GET", "HEAD", "DELETE")
"""What makes something first, what ends it last."""
FILE = b"a file of the examples"


@pytest.fixture(scope="module")
def document(gateway: Gateway) -> dict[str, Any]:
    answer: dict[str, Any] = requests.get(f"http://127.0.0.1:{gateway.port}/openapi.json", timeout=30).json()
    return answer


@pytest.fixture
def example(gateway: Gateway) -> Iterator[None]:
    """The session that all examples name, ended with the test."""
    yield
    gateway.session("example-session").delete()


def test_every_example_works(gateway: Gateway, document: dict[str, Any], example: None) -> None:
    contract = Contract(document)
    # Changes of pools would change the pool of all other tests; tests/api/test_management.py has theirs.
    # What is passed on to a custom container is the container's; tests/api/test_forward.py has it. WebSockets are
    # tests/e2e/test_jupyter.py's. What is nobody's says so.
    elsewhere = ("/{tail}", "/channels", "/subscribe", "/tree", "/hub/api", " /", "/jupyter/")
    tried = [
        name
        for name in contract.operations()
        if not name.endswith(elsewhere) and (name.startswith("GET ") or not name.endswith("/{pool}"))
    ]
    names = sorted(tried, key=lambda name: (_is_end(name), ORDER.index(name.split()[0])))
    faults: list[str] = []
    made: dict[str, str] = {}

    for name in names:
        response = requests.request(**_request(contract, name, gateway, made), timeout=120)
        for path, what in (("/api/kernels", "kernel"), ("/api/sessions", "session")):
            if name.startswith("POST ") and name.endswith(path) and response.ok:
                made[what] = response.json()["id"]
        gateway.seen.add(response.headers.get("x-ms-session-guid", ""))
        body = None if name.startswith("HEAD") else response.content
        faults += contract.faults(name, response.status_code, response.headers, body)
        # What an earlier example has ended or deleted is not there any more, as documented.
        if not (response.ok or (response.status_code == 404 and _is_end(name))):
            faults.append(f"{name}: {response.status_code} {response.text[:200]}")

    assert faults == []
    assert len(names) > 60


def _is_end(name: str) -> bool:
    return name.startswith("DELETE") or name.endswith("stopSession")


def _request(contract: Contract, name: str, gateway: Gateway, made: dict[str, str]) -> dict[str, Any]:
    """As somebody would write it who copies the examples: what is required, and what has one. Ids that nobody can
    choose are those of what was made."""
    operation = contract.operations()[name]
    method, path = name.split()
    item = contract.document["paths"][path]
    parameters = [contract.resolved(each) for each in (*item.get("parameters", []), *operation.get("parameters", []))]
    values: dict[str, dict[str, str]] = {"path": {}, "query": {}, "header": {}}
    for each in parameters:
        if "example" in each:
            values[each["in"]][each["name"]] = each["example"]
    values["path"] |= made
    request: dict[str, Any] = {
        "method": method,
        "url": f"http://127.0.0.1:{gateway.port}{path.format(**values['path'])}",
        "params": values["query"],
        "headers": {"Authorization": f"Bearer {TOKEN}", **values["header"]},
    }
    for kind, media in operation.get("requestBody", {}).get("content", {}).items():
        if kind == "application/json":
            request["json"] = media["example"]
        elif kind == "multipart/form-data":
            # Also the file that the routes with a fixed name are about.
            request["files"] = [("file", (file, FILE)) for file in ("notes.txt", "upload")]
        else:
            request["data"] = FILE
    return request


@pytest.mark.slow
def test_the_page_shows_every_operation_in_a_browser(
    gateway: Gateway, document: dict[str, Any], tmp_path: Path
) -> None:
    # No name resolves to anything: what is not served by the gateway cannot be loaded.
    offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    items = [item for path in document["paths"].values() for item in path.values() if isinstance(item, dict)]
    operations = {item["operationId"] for item in items}
    shown: set[str] = set()

    with opened(f"http://127.0.0.1:{gateway.port}/docs", tmp_path, offline) as page:
        page.until(f"document.querySelectorAll('.opblock-tag').length === {len(document['tags'])}")
        for number in range(len(document["tags"])):
            page.value(f"document.querySelectorAll('.opblock-tag')[{number}].click()")
            shown |= set(page.until("[...document.querySelectorAll('.opblock')].map(each => each.id.split('-').pop())"))
            page.value(f"document.querySelectorAll('.opblock-tag')[{number}].click()")
            page.until("document.querySelectorAll('.opblock').length === 0")

        assert shown == operations
        assert page.value("document.querySelectorAll('.authorize').length") > 0
        assert page.told == []
