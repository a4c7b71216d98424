"""A language made of data: `kernels/deno` has no code, and its sessions are like all others."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from kernelpool.runtimes import kernels_folder
from tests.e2e.doors import through_every_door
from tests.e2e.gateways import Gateway, Session, state_of
from tests.extra import extra

pytestmark = [extra, pytest.mark.timeout(600)]  # the first of them makes the tree


@pytest.fixture(scope="module")
def deno(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path_factory.mktemp("deno"), state=state_of("deno"), runtime="deno", ready=1, max_sessions=4)
    gateway.start()
    yield gateway
    gateway.stop()
    assert gateway.traces() == []


@pytest.fixture
def session(deno: Gateway) -> Iterator[Session]:
    session = deno.session(f"deno-{uuid.uuid4().hex}")
    yield session
    session.delete()


def test_a_runtime_can_be_data_alone() -> None:
    assert sorted(path.suffix for path in (kernels_folder() / "deno").iterdir()) == [".toml", ".txt", ".txt"]


def test_a_session_keeps_state_and_tells_values_output_and_errors(session: Session) -> None:
    first = session.run("interface P { x: number }\nlet p: P = { x: 20 }; console.log('out'); p.x + 1")["result"]
    second = session.run("p.x * 2")["result"]
    failed = session.run("throw new TypeError('bad')")["result"]

    assert (first["stdout"], first["executionResult"], second["executionResult"]) == ("out\n", 21, 40)
    assert "TypeError: bad" in failed["stderr"]


def test_a_loop_that_does_not_end_is_ended(session: Session) -> None:
    answer = session.run("while (true) {}", timeoutInSeconds=1)["result"]

    assert answer["cause"] == "timed_out"
    assert session.run("1")["result"]["executionResult"] == 1


def test_its_version_is_told(session: Session) -> None:
    metadata = session.request("GET", "/metadata").json()

    assert metadata["runtimes"] == [{"name": "deno", "version": metadata["jupyterKernel"]["version"]}]
    assert metadata["jupyterKernel"]["version"].startswith("2.")


def test_a_session_is_one_through_every_door(deno: Gateway) -> None:
    assert through_every_door(deno, write="globalThis.x = {}", read="console.log(x)") == ["1\n", "2\n", "3\n"]
