"""JavaScript sessions as their users have them: a gateway, real sandboxes, ACA's routes."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.doors import through_every_door
from tests.e2e.gateways import Gateway, Session, state_of

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n and so on").decode()


pytestmark = pytest.mark.timeout(600)  # the first of them makes the tree


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    # However late the machine is, a loop that can be interrupted costs no kernel.
    settings: dict[str, Any] = {"runtime": "node", "ready": 1, "max_sessions": 8, "interrupt_grace": 30}
    gateway = Gateway(tmp_path_factory.mktemp("node"), state=state_of("node"), **settings)
    gateway.start()
    yield gateway
    gateway.stop()
    assert gateway.traces() == []


def run(session: Session, code: str, **options: Any) -> dict[str, Any]:
    result: dict[str, Any] = session.run(code, **options)["result"]
    return result


@pytest.fixture
def session(node: Gateway) -> Iterator[Session]:
    session = node.session(f"node-{uuid.uuid4().hex}")
    yield session
    session.delete()


@pytest.fixture(scope="module")
def same_session(node: Gateway) -> Iterator[Session]:
    session = node.session(f"node-{uuid.uuid4().hex}")
    yield session
    session.delete()


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("6 * 7", 42),
        ("0.1 + 0.2", 0.30000000000000004),
        ("'it\\'s ' + \"'\"", "it's '"),
        ("`a\\n\\u{1F600}`", "a\n😀"),
        ("true", True),
        ("null", ""),
        ("let nothing = 1", ""),
        ("({ a: [1] })", "{ a: [ 1 ] }"),
        ("2 ** 53", 2**53),
        ("NaN", None),
        ("Infinity", "Infinity"),
        ("const typed: number = 3; typed", 3),
    ],
)
def test_results_are_json_as_with_python(same_session: Session, code: str, value: object) -> None:
    assert run(same_session, code)["executionResult"] == value


def test_a_session_as_an_agent_has_it(session: Session) -> None:
    first = run(session, "import { chunk } from 'lodash'; const rows = chunk([1, 2, 3], 2); console.log(rows.length)")
    second = run(session, "const rows = 'again'; console.error('told'); await Promise.resolve(rows)")
    failed = run(session, "function f() {\n  throw new TypeError('bad')\n}\nf()")

    assert (first["stdout"], second["stderr"], second["executionResult"]) == ("2\n", "told\n", "again")
    assert failed["executionResult"] is None
    assert "TypeError: bad\n    at f (cell-3.js:2:9)" in failed["stderr"]


def test_a_picture_is_the_result_and_a_file(session: Session) -> None:
    answer = run(session, f"display.png('{PNG}'); 'last'")

    assert answer["executionResult"]["base64_data"] == PNG
    assert [file for output in answer["outputs"] for file in output.get("files", [])] == answer["files"]


def test_a_loop_that_does_not_end_is_stopped_and_the_state_kept(session: Session) -> None:
    run(session, "let kept = 5")

    answer = run(session, "await null; for (;;) {}", timeoutInSeconds=1)

    assert (answer["cause"], answer["kernelRestarted"]) == ("timed_out", False)
    assert run(session, "kept")["executionResult"] == 5


def test_the_end_of_the_process_is_told_and_the_loss_of_state(session: Session) -> None:
    run(session, "let lost = 5")

    died = run(session, "process.kill(process.pid, 'SIGKILL')")
    after = run(session, "typeof lost")

    assert died["cause"] == "kernel_died"
    assert after["stateLost"]["before"]
    assert after["executionResult"] == "undefined"


def test_too_much_memory_costs_the_kernel_and_not_the_session(session: Session) -> None:
    died = run(session, "const all = []; for (;;) all.push(new Array(10000).fill(Math.random()))", timeoutInSeconds=200)

    assert died["cause"] == "kernel_died"
    assert "JavaScript heap out of memory" in died["stderr"]
    assert run(session, "1")["executionResult"] == 1


def test_packages_can_be_installed_beside_those_that_are_there(session: Session) -> None:
    """From the workspace: what npm does is the same, and there is no network."""
    answer = run(
        session,
        "const { execSync } = require('child_process'), fs = require('fs'); fs.mkdirSync('own');"
        "fs.writeFileSync('own/package.json', JSON.stringify({ name: 'own', version: '1.0.0', main: 'm.js' }));"
        "fs.writeFileSync('own/m.js', 'exports.mine = require(\"lodash\").VERSION');"
        "execSync('npm install ./own', { stdio: 'pipe' }); (await import('own')).mine",
        timeoutInSeconds=120,
    )

    assert answer["executionResult"].startswith("4."), answer["stderr"]
    assert "node_modules" in session.names()


def test_programs_of_the_session_find_the_same_packages(session: Session) -> None:
    code = "require('child_process').execFileSync('node', ['--input-type=module', '-e', script]).toString()"

    answer = run(session, f"const script = \"import _ from 'lodash'; console.log(_.VERSION)\"; {code}")

    assert answer["executionResult"].startswith("4."), answer["stderr"]


def test_metadata_tells_of_node_and_its_packages(session: Session) -> None:
    metadata = session.request("GET", "/metadata").json()

    assert metadata["runtimes"][0]["name"] == "node"
    assert metadata["runtimes"][0]["version"].startswith("24.")
    assert {"lodash", "zod", "d3"} <= {package["name"] for package in metadata["preInstalledPackages"]}
    assert metadata["jupyterKernel"]["name"] == "kernelpool-node"


def test_an_mcp_client_runs_javascript(session: Session) -> None:
    params = {
        "name": "run_code",
        "arguments": {"code": "const x = await Promise.resolve(41); console.log('hi'); x + 1"},
    }
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}

    answer = session.request("POST", "/mcp", json=message).json()["result"]

    assert answer["content"] == [{"type": "text", "text": "hi\n42"}]
    assert answer["structuredContent"]["session"] == session.identifier
    assert session.value("x") == 41


def test_a_session_is_one_through_every_door(node: Gateway) -> None:
    assert through_every_door(node, write="let x = {}", read="console.log(x)") == ["1\n", "2\n", "3\n"]
