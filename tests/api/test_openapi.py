"""The OpenAPI document describes all there is, and nothing else; its page needs nothing from elsewhere.

That answers are as described is held by `api_of`, for every answer that any test of this folder gets.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from tornado.routing import PathMatches
from tornado.web import Application, RequestHandler

from kernelpool import errors
from kernelpool.api import SURFACES, make_application
from kernelpool.api.aca_handler import POOL_PATH
from kernelpool.api.base import ApiHandler, Collaborators
from kernelpool.api.openapi.document import make_document
from kernelpool.api.openapi.errors import error_classes
from kernelpool.api.openapi.handlers import ASSETS, STATIC
from kernelpool.api.openapi.operation import ARM_POOL, POOL, Operation, Surface, json_answer
from kernelpool.errors import KernelpoolError
from kernelpool.telemetry.metrics import CollectorRegistry, Metrics
from tests.api.conftest import Api
from tests.api.test_streaming import stream
from tests.contract_of_api import Contract, contract

SWAGGER_UI = {
    "swagger-ui-bundle.js": "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    "swagger-ui.css": "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
}
"""SHA-256 of the files in npm's swagger-ui-dist 5.35.0."""


def routes_of(application: Application) -> Iterator[str]:
    """`"METHOD /path"` of all that the application answers."""
    for rule in application.wildcard_router.rules:
        assert isinstance(rule.matcher, PathMatches)
        pattern = rule.matcher.regex.pattern
        for base in (POOL, ARM_POOL) if pattern.startswith(POOL_PATH) else ("",):
            path = base + pattern.removeprefix(POOL_PATH).removeprefix("(?i)").removesuffix("$")
            path = re.sub(r"\(\?P<(\w+)>(?:[^()]|\\.)*\)", r"{\1}", path).replace("\\", "")
            for method in methods_of(rule.target):
                yield f"{method} {path}"


def methods_of(handler: type[RequestHandler]) -> Iterator[str]:
    """Those of its own. That HEAD goes wherever GET goes is HTTP's, and is described only where it is told apart."""
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        if getattr(handler, method.lower()) is not getattr(ApiHandler, method.lower()):
            yield method


async def test_every_route_is_described_and_nothing_else(api: Api) -> None:
    nobody: Any = None
    counted = Metrics(CollectorRegistry())
    application = make_application(Collaborators(api.gateway, nobody, nobody), lambda: True, counted)
    served = set(routes_of(application))

    described = set(contract().operations())

    assert served - described == set(), "describe these in the SURFACE of their module"
    assert described - served == set(), "these are described, but no route has them"
    assert len(served) > 60


def test_the_document_is_valid() -> None:
    assert list(OpenAPIV31SpecValidator(contract().document).iter_errors()) == []


def test_operations_have_an_id_each_and_a_sentence() -> None:
    operations = contract().operations().values()
    ids = [operation["operationId"] for operation in operations]

    assert len(ids) == len(set(ids))
    assert all(operation["summary"] for operation in operations)


def test_every_error_is_described_by_its_status() -> None:
    document = contract().document
    answers = {name.removeprefix("Error"): answer for name, answer in document["components"]["responses"].items()}
    for item in document["paths"].values():
        for operation in item.values():
            answers = {**operation.get("responses", {}), **answers} if isinstance(operation, dict) else answers
    every = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, KernelpoolError)]
    described = set(error_classes())

    assert {error for error in every if "code" in vars(error)} <= described
    for error in described:
        assert f"`{error.code}`: {error.remedy}" in answers[str(error.status)]["description"]


def test_nothing_in_components_is_left_over() -> None:
    text = json.dumps(contract().document)

    for kind, entries in contract().document["components"].items():
        if kind != "securitySchemes":
            assert [name for name in entries if f'"#/components/{kind}/{name}"' not in text] == []


# --- the check that every answer goes through can fail


async def test_a_field_that_is_not_described_is_found(api: Api) -> None:
    async with api.http.get(f"http://127.0.0.1:{api.port}/healthz") as response:
        headers = response.headers

    assert contract().faults("GET /healthz", 200, headers, b'{"status":"alive"}') == []
    assert contract().faults("GET /healthz", 200, headers, b'{"status":"alive","pid":1}') != []
    assert contract().faults("GET /healthz", 200, headers, b"{}") != []
    assert contract().faults("GET /healthz", 418, headers, b"{}") != []
    assert contract().faults("GET /pools", 429, headers, b"{}") != []


@pytest.mark.parametrize(
    ("request_line", "operation"),
    [
        ("GET /pools/a/files/x/y", f"GET {POOL}/files/{{name}}"),
        ("HEAD /pools/a/files/x", f"GET {POOL}/files/{{name}}"),
        ("GET /pools/a/files/upload", f"GET {POOL}/files/upload"),
        ("HEAD /pools/a/files/x/content", f"HEAD {POOL}/files/{{name}}/content"),
        ("GET /pools/a/files/content/content", f"GET {POOL}/files/content/{{name}}"),
        ("GET /Subscriptions/0/resourcegroups/1/SESSIONPOOLS/a/session", f"GET {ARM_POOL}/session"),
        ("GET /pools/a/nothing", f"GET {POOL}/{{tail}}"),
        ("GET /nothing", None),
        ("PATCH /pools/a/session", None),
    ],
)
def test_requests_are_found_in_the_document(request_line: str, operation: str | None) -> None:
    method, path = request_line.split()

    assert contract().find(method, path) == operation


def test_a_surface_needs_a_few_lines() -> None:
    operation = Operation("getThing", "A thing", {200: json_answer("It.", {"type": "object"})})

    document = make_document([*SURFACES, Surface("Things", "New.", {"GET /thing": operation})])

    assert Contract(document).find("GET", "/thing") == "GET /thing"
    assert document["paths"]["/thing"]["get"]["responses"]["401"]


# --- streams


async def test_events_are_as_described(api: Api) -> None:
    events = await stream(api, "print('a'); print('b'); 5") + await stream(api, "1/0", path="/code/execute")

    described = [
        {"event": kind, "data": data, **({"id": id} if id is not None else {})}
        for id, kind, data in events
        if kind != "comment"
    ]

    assert {event["event"] for event in described} >= {"state", "output", "done"}
    for event in described:
        assert contract().schema_faults("ServerSentEvent", event) == [], event


# --- the document and its page, as served


async def test_the_document_is_for_everybody(api: Api) -> None:
    async with api.http.get(f"http://127.0.0.1:{api.port}/openapi.json") as response:
        assert await response.json() == contract().document


async def test_the_document_holds_nothing_of_this_gateway(api: Api) -> None:
    api.base = f"http://127.0.0.1:{api.port}"
    text = json.dumps(contract().document)

    assert str(api.port) not in text
    assert "/var/" not in text


async def test_the_page_runs_nothing_but_our_files(api: Api) -> None:
    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(value for name, value in attrs if name in ("src", "href") and value)
            inline.extend(name for name, _ in attrs if name.startswith("on") or name == "style")

        def handle_data(self, data: str) -> None:
            if self.get_starttag_text() == "<script>":
                inline.append(data)

    found: list[str] = []
    inline: list[str] = []
    async with api.http.get(f"http://127.0.0.1:{api.port}/docs") as response:
        Links().feed(await response.text())
        headers = response.headers

    assert inline == []
    assert set(found) == {"data:,", "openapi.json", *(f"docs/{name}" for name in ASSETS)}
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert "unsafe-eval" not in policy
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("name", ASSETS)
async def test_what_the_page_loads_is_here(api: Api, name: str) -> None:
    async with api.http.get(f"http://127.0.0.1:{api.port}/docs/{name}") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == ASSETS[name]
        data = await response.read()

    if name in SWAGGER_UI:
        assert hashlib.sha256(data).hexdigest() == SWAGGER_UI[name]
    assert len(data) > 100


@pytest.mark.parametrize("name", ["docs.html", "swagger-ui.LICENSE", "..%2Foperation.py", "../openapi.json", "", "x"])
async def test_nothing_else_of_the_folder_is_served(api: Api, name: str) -> None:
    answer = await api.raw(f"GET /docs/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())

    assert b" 401 " in answer.split(b"\r\n")[0]


def test_what_was_made_by_others_is_as_they_made_it_and_under_their_licence() -> None:
    for name, digest in SWAGGER_UI.items():
        assert hashlib.sha256(gzip.decompress((STATIC / f"{name}.gz").read_bytes())).hexdigest() == digest
    assert "Apache License" in (STATIC / "swagger-ui.LICENSE").read_text()
    assert "SmartBear" in (STATIC / "swagger-ui.NOTICE").read_text()
