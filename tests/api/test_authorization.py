"""Who may do what, on every route there is: a route that is not in the table below fails these tests."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from multidict import CIMultiDictProxy
from tornado.routing import PathMatches, Rule, RuleRouter
from tornado.web import Application

from kernelpool.api import make_application
from kernelpool.api.base import ApiHandler, Collaborators
from kernelpool.api.jupyter import paths as jupyter_paths
from kernelpool.auth.authenticator import Authenticator
from kernelpool.auth.initial import digest_of
from kernelpool.auth.keyring import KeyRing
from kernelpool.auth.keys import KeyStore
from kernelpool.auth.principal import Role
from kernelpool.gateway import Gateway
from kernelpool.management import Management
from kernelpool.telemetry.metrics import CollectorRegistry, Metrics
from tests.api.conftest import TOKEN, VERSION, Api, api_of, multipart

V, E, A = Role.VIEWER, Role.EXECUTOR, Role.ADMIN

OPEN = {
    "/healthz",
    "/readyz",
    "/openapi.json",
    "/docs",
    "/docs/(?P<file>docs.js|swagger-ui-bundle.js|swagger-ui.css)",
    *(f"{base}{path}" for base in jupyter_paths.BASES for path in ("/", "/api", "/tree", "/hub/api")),
}
"""For everybody."""

BOTH = ("fetchMcpServerCredentials", "rotateMcpServerCredentials", "regenerateCredentials")
"""Their key opens what executors may, so they want one who is executor too."""

NO_UUID = "00000000-0000-0000-0000-000000000000"
JUPYTER: dict[str, dict[str, Role]] = {
    "/api/me": {"GET": V},
    "/api/status": {"GET": V},
    "/api/kernelspecs": {"GET": V},
    "/api/kernelspecs/python": {"GET": V},
    "/kernelspecs/python/logo-svg.svg": {"GET": V},
    "/api/kernels": {"GET": V, "POST": E},
    f"/api/kernels/{NO_UUID}": {"GET": V, "DELETE": E},
    f"/api/kernels/{NO_UUID}/interrupt": {"POST": E},
    f"/api/kernels/{NO_UUID}/restart": {"POST": E},
    f"/api/kernels/{NO_UUID}/channels": {"GET": E},
    "/api/events/subscribe": {"GET": V},
    "/api/sessions": {"GET": V, "POST": E},
    f"/api/sessions/{NO_UUID}": {"GET": V, "PATCH": E, "DELETE": E},
}

ROUTES: dict[str, dict[str, Role]] = {
    **{base + path: roles for base in ("", "/pools/{pool}/jupyter") for path, roles in JUPYTER.items()},
    "/pools": {"GET": V},
    "/pools/{pool}": {"GET": V, "PUT": A, "PATCH": A, "DELETE": A},
    "/metrics": {"GET": V},
    "/subscriptions/s/providers/Microsoft.App/sessionPools": {"GET": V},
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.App/sessionPools": {"GET": V},
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.App/sessionPools/{pool}": {
        "GET": V,
        "PUT": A,
        "PATCH": A,
        "DELETE": A,
    },
    **{
        f"/subscriptions/s/resourceGroups/g/providers/Microsoft.App/sessionPools/{{pool}}/{action}": {"POST": A}
        for action in BOTH
    },
    "/pools/{pool}/mcp": {"POST": E, "DELETE": E},
    "/pools/{pool}/code/execute": {"POST": E},
    "/pools/{pool}/python/execute": {"POST": E},
    "/pools/{pool}/executions": {"GET": E, "POST": E},
    "/pools/{pool}/executions/run-1": {"GET": E, "DELETE": E},
    "/pools/{pool}/executions/run-1/cancel": {"POST": E},
    "/pools/{pool}/files/upload": {"POST": E, "GET": E, "DELETE": E},
    "/pools/{pool}/python/uploadFile": {"POST": E, "GET": E, "DELETE": E},
    "/pools/{pool}/files": {"GET": E, "POST": E},
    "/pools/{pool}/files/content/a.txt": {"GET": E, "PUT": E},
    "/pools/{pool}/files/a.txt/content": {"GET": E, "PUT": E},
    "/pools/{pool}/files/a.txt": {"GET": E, "DELETE": E},
    "/pools/{pool}/notebook": {"GET": E, "POST": E},
    "/pools/{pool}/session": {"GET": V, "DELETE": E},
    "/pools/{pool}/listSessions": {"GET": V},
    "/pools/{pool}/metadata": {"GET": V},
    "/pools/{pool}/.management/getSession": {"POST": V},
    "/pools/{pool}/.management/listSessions": {"POST": V},
    "/pools/{pool}/.management/stopSession": {"POST": E},
    "/pools/{pool}/a/path/of/a/container": dict.fromkeys(("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"), E),
}
"""An example of each route, and the role that each of its methods needs."""

CASES = [(method, path, role) for path, methods in ROUTES.items() for method, role in methods.items()]
IN_POOLS = [(method, path) for method, path, _ in CASES if "{pool}" in path]
MAY = {V: {V, E, A}, E: {E}, A: {A}}
"""Role that is needed → roles that give it."""


def every_case(cases: Sequence[tuple[Any, ...]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: f"{case[0]} {case[1]}")


# --- the table is complete


def rules_of(router: RuleRouter) -> Iterator[Rule]:
    for rule in router.rules:
        if isinstance(rule.target, RuleRouter):
            yield from rules_of(rule.target)
        else:
            yield rule


def application() -> Application:
    collaborators = Collaborators(cast("Gateway", None), Authenticator(b""), cast("Management", None))
    return make_application(collaborators, lambda: True, Metrics(CollectorRegistry()))


def route_of(rules: list[Rule], path: str) -> Rule | None:
    """The first match counts, as in Tornado."""
    return next((rule for rule in rules if _regex(rule).match(path.format(pool="python"))), None)


def _regex(rule: Rule) -> re.Pattern[str]:
    assert isinstance(rule.matcher, PathMatches), f"{rule} does not go by the path: teach these tests about it"
    return rule.matcher.regex


def methods_of(handler: Any) -> set[str]:
    assert issubclass(handler, ApiHandler), f"{handler} is not authenticated by ApiHandler: teach these tests about it"
    own = ("get", "post", "put", "patch", "delete", "options")
    return {name.upper() for name in own if getattr(handler, name) is not getattr(ApiHandler, name)}


def test_every_route_and_method_has_an_example() -> None:
    rules = list(rules_of(application().default_router))
    found: dict[int, dict[str, Role]] = {}
    for path, methods in ROUTES.items():
        rule = route_of(rules, path)
        assert rule is not None, f"no route for {path}"
        assert id(rule) not in found, f"{path} is the second example of {_regex(rule).pattern}"
        found[id(rule)] = methods
    rest = [rule for rule in rules if id(rule) not in found]

    assert len(rules) > 20
    assert {_regex(rule).pattern.rstrip("$") for rule in rest} == OPEN, "a route without an example in ROUTES"
    for rule in rules:
        if id(rule) in found:
            assert methods_of(rule.target) == found[id(rule)].keys(), _regex(rule).pattern


@pytest.mark.parametrize("name", ["authenticate", "authorize", "prepare"])
def test_nothing_but_probes_and_unknown_paths_has_rules_of_its_own(name: str) -> None:
    """What the examples show of one method is then true of all."""
    for rule in rules_of(application().default_router):
        if _regex(rule).pattern.rstrip("$") not in OPEN:
            assert getattr(rule.target, name) is getattr(ApiHandler, name), rule.target


# --- keys


@dataclass
class Served:
    api: Api
    keys: dict[str, str]

    async def ask(
        self, key: str | None, method: str, path: str, pool: str = "python", identifier: str = "abcd-1", **rest: Any
    ) -> tuple[int, CIMultiDictProxy[str], str]:
        headers = {**rest.pop("headers", {}), **({} if key is None else {"Authorization": f"Bearer {self.keys[key]}"})}
        url = f"http://127.0.0.1:{self.api.port}{path.format(pool=pool)}"
        query = {"api-version": VERSION, "identifier": identifier}
        async with self.api.http.request(method, url, params=query, headers=headers, **rest) as response:
            return response.status, response.headers, await response.text()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """Two pools, and keys: one a role, one for the other pool, one a tenant, and one that is wrong."""
    store, everything = KeyStore(tmp_path), frozenset(Role)

    def make() -> dict[str, str]:
        keys = {role.value: store.create(role, roles=frozenset({role}))[1] for role in Role}
        keys["elsewhere"] = store.create("elsewhere", roles=everything, pools=frozenset({"other", "gone"}))[1]
        for tenant in ("a", "b"):
            keys[tenant] = store.create(f"tenant-{tenant}", tenant=tenant, roles=everything)[1]
        return {**keys, "wrong": keys["a"][:-1] + ("x" if keys["a"][-1] != "x" else "y"), "initial": TOKEN}

    keys = await asyncio.to_thread(make)
    async with (
        KeyRing(tmp_path) as ring,
        api_of(
            tmp_path,
            Authenticator(digest_of(TOKEN), ring),
            ("python", "other"),
            metrics=Metrics(CollectorRegistry()),
            max_sessions=100,
        ) as api,
    ):
        yield Served(api, keys)


def error_of(text: str) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(text)["error"]
    return error


def without_trace(text: str) -> str:
    """And without the time of day, the names that what has just been made was given, and keys."""
    names = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}|jupyter-[0-9a-f]{32}|kpm_[0-9a-f_]+"
    return re.sub(rf'"traceId":"[0-9a-f]+"|\d{{4}}-\d\d-\d\dT[\d:.]+Z|{names}', "", text)


# --- every route


@every_case(CASES)
async def test_nobody_comes_in_without_a_token(served: Served, case: tuple[str, str, Role]) -> None:
    method, path, _ = case

    for key, challenge in ((None, "Bearer"), ("wrong", 'Bearer error="invalid_token"')):
        status, headers, text = await served.ask(key, method, path)
        assert status == 401
        assert headers["WWW-Authenticate"] == challenge
        assert headers["x-ms-error-code"] == error_of(text)["code"] == "Unauthorized"


@every_case(CASES)
async def test_a_role_opens_what_it_is_for_and_nothing_else(served: Served, case: tuple[str, str, Role]) -> None:
    method, path, needed = case

    for role in Role:
        status, headers, text = await served.ask(role, method, path)
        if path.endswith(BOTH) and role is A:
            assert status == 403
            assert error_of(text)["message"] == "key:admin has not the role 'executor'."
        elif role in MAY[needed]:
            assert status not in (401, 403)
        else:
            assert status == 403
            assert error_of(text)["message"] == f"key:{role} has not the role '{needed}'."
            assert headers["x-ms-error-code"] == error_of(text)["code"] == "Forbidden"
            assert headers["WWW-Authenticate"] == 'Bearer error="insufficient_scope"'


@every_case(CASES)
async def test_the_initial_token_opens_everything(served: Served, case: tuple[str, str, Role]) -> None:
    status, _, _ = await served.ask("initial", case[0], case[1])

    assert status not in (401, 403)


@every_case(IN_POOLS)
async def test_a_pool_that_a_key_has_not_might_as_well_not_exist(served: Served, case: tuple[str, str]) -> None:
    method, path = case

    there = await served.ask("elsewhere", method, path, "python")
    absent = await served.ask("elsewhere", method, path, "absent")
    own = await served.ask("elsewhere", method, path, "other")
    gone = await served.ask("elsewhere", method, path, "gone")

    assert there[0] == absent[0] == 403
    assert error_of(there[2])["message"] == "key:elsewhere has no access to pool 'python'."
    assert without_trace(there[2]) == without_trace(absent[2]).replace("absent", "python")
    assert own[0] != 403
    assert gone[0] == (400 if method in ("PUT", "PATCH") and path.endswith("/{pool}") else 404)  # no body was sent


@pytest.mark.parametrize(
    "path", ["/POOLS/python", "/pools/%70ython", "/pools/Python", "/pools/python%20", "/pools/other%2f..%2fpython"]
)
async def test_no_spelling_of_a_pool_comes_around_the_check(served: Served, path: str) -> None:
    request = (
        f"GET {path}/session?api-version={VERSION}&identifier=abcd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    )

    answer = await served.api.raw(f"{request}Authorization: Bearer {served.keys['elsewhere']}\r\n\r\n".encode())

    assert b" 403 " in answer.partition(b"\r\n")[0]


async def test_azures_own_paths_are_checked_as_ours(served: Served) -> None:
    path = "/subscriptions/s/resourceGroups/g/sessionPools/{pool}/executions"

    assert (await served.ask("viewer", "POST", path))[0] == 403
    assert (await served.ask("elsewhere", "POST", path))[0] == 403
    assert (await served.ask(None, "POST", path))[0] == 401


async def test_who_asks_is_known_before_a_body_is_read(served: Served) -> None:
    head = f"POST /pools/python/executions?api-version={VERSION} HTTP/1.1\r\nHost: localhost\r\n"

    answer = await served.api.raw(
        f"{head}Content-Length: 20000000000\r\nAuthorization: Bearer {served.keys['viewer']}\r\n\r\n".encode(),
        until_closed=False,
    )

    assert b" 403 " in answer


@pytest.mark.parametrize("body", [b"", b"hello"])
async def test_a_refused_request_has_one_answer_and_leaves_its_connection_open(served: Served, body: bytes) -> None:
    head = f"GET /pools/python HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {served.keys['elsewhere']}\r\n"
    refused = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    last = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    answer = await served.api.raw(refused * 2 + last)

    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"403", b"403", b"200"]
    assert b"maxSessions" not in answer


async def test_head_needs_what_get_needs(served: Served) -> None:
    assert (await served.ask("viewer", "HEAD", "/pools/{pool}/files/a.txt"))[0] == 403
    assert (await served.ask("viewer", "HEAD", "/pools/{pool}"))[0] == 200
    assert (await served.ask("elsewhere", "HEAD", "/pools/{pool}"))[0] == 403


async def test_only_the_pools_of_a_key_are_listed(served: Served) -> None:
    _, _, some = await served.ask("elsewhere", "GET", "/pools")
    _, _, every = await served.ask("viewer", "GET", "/pools")

    assert [pool["name"] for pool in json.loads(some)["value"]] == ["other"]
    assert [pool["name"] for pool in json.loads(every)["value"]] == ["python", "other"]


async def test_a_path_that_does_not_exist_is_told_to_those_who_are_somebody(served: Served) -> None:
    assert (await served.ask("viewer", "GET", "/nothing"))[0] == 404
    assert (await served.ask("executor", "GET", "/pools/{pool}/nothing"))[0] == 404
    assert (await served.ask(None, "GET", "/pools/{pool}/nothing"))[0] == 401


# --- tenants


async def run(served: Served, key: str, code: str, identifier: str, **headers: str) -> Any:
    path = "/pools/{pool}/executions"
    status, _, text = await served.ask(key, "POST", path, identifier=identifier, json={"code": code}, headers=headers)
    assert status == 200, text
    return json.loads(text)


async def test_one_identifier_of_two_tenants_is_two_sessions(served: Served) -> None:
    await run(served, "a", "x = 'of a'", "same-1")
    await run(served, "b", "x = 'of b'", "same-1")

    answers = [await run(served, key, "x", "same-1") for key in ("a", "b")]

    assert [answer["result"]["executionResult"] for answer in answers] == ["of a", "of b"]


@every_case([case for case in IN_POOLS if not case[1].endswith("/{pool}")])
async def test_what_another_tenant_has_looks_as_if_it_were_not_there(served: Served, case: tuple[str, str]) -> None:
    """Session, execution id and file of A, asked for by B, against an identifier that nobody has ever used."""
    method, path = case
    await run(served, "a", "x = 'of a'", "theirs-1", **{"operation-id": "run-1"})
    await served.ask("a", "POST", "/pools/{pool}/files", identifier="theirs-1", **multipart(b"secret", name="a.txt"))

    there = await served.ask("b", method, path, identifier="theirs-1")
    absent = await served.ask("b", method, path, identifier="absent-1")

    assert there[0] == absent[0]
    assert without_trace(there[2]).replace("theirs-1", "absent-1") == without_trace(absent[2])
    assert list(there[1]) == list(absent[1])
    assert "secret" not in there[2]
    assert (await run(served, "a", "x", "theirs-1"))["result"]["executionResult"] == "of a"
    assert (await served.ask("a", "GET", "/pools/{pool}/files/content/a.txt", identifier="theirs-1"))[2] == "secret"


async def test_an_execution_of_another_tenant_runs_again_under_the_same_id(served: Served) -> None:
    """An idempotency key is one's own, too: it must not answer with what somebody else ran."""
    await run(served, "a", "'of a'", "same-1", **{"operation-id": "run-1"})

    answer = await run(served, "b", "'of b'", "same-1", **{"operation-id": "run-1"})

    assert answer["result"]["executionResult"] == "of b"


async def test_metrics_of_all_are_for_nobody_but_the_operator(served: Served) -> None:
    assert (await served.ask("viewer", "GET", "/metrics"))[0] == 200
    assert (await served.ask("a", "GET", "/metrics"))[0] == 403
    assert (await served.ask("elsewhere", "GET", "/metrics"))[0] == 403


async def test_each_tenant_lists_its_own_sessions(served: Served) -> None:
    await run(served, "a", "1", "only-of-a")
    await run(served, "b", "1", "only-of-b")

    for method, path in (("GET", "/pools/{pool}/listSessions"), ("POST", "/pools/{pool}/.management/listSessions")):
        texts = [(await served.ask(key, method, path))[2] for key in ("a", "b")]
        assert ["only-of-a" in text for text in texts] == [True, False]
        assert ["only-of-b" in text for text in texts] == [False, True]


async def test_nobody_stops_the_session_of_another_tenant(served: Served) -> None:
    await run(served, "a", "x = 41", "same-1")
    await run(served, "b", "1", "same-1")

    status, _, _ = await served.ask("b", "DELETE", "/pools/{pool}/session", identifier="same-1")

    assert status == 204
    assert (await run(served, "a", "x + 1", "same-1"))["result"]["executionResult"] == 42
