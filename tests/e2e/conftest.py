"""One gateway for all tests of the folder, and gateways of their own for those that kill theirs."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.gateways import Gateway, Session, state_of


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), ready=3, max_sessions=40)
    gateway.start()
    yield gateway
    gateway.stop()
    assert gateway.traces() == []


@pytest.fixture(scope="session")
def shell_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Of a Shell pool. With a state of its own: a gateway removes the trees of runtimes that it does not serve."""
    folder = tmp_path_factory.mktemp("shell")
    gateway = Gateway(folder, state=state_of("shell"), name="shell", runtime="shell", ready=2, max_sessions=24)
    gateway.start()
    yield gateway
    gateway.stop()
    assert gateway.traces() == []


@pytest.fixture
def session(gateway: Gateway) -> Iterator[Session]:
    """A new one, ended with the test."""
    session = gateway.session(f"test-{uuid.uuid4().hex}")
    yield session
    session.delete()


@pytest.fixture(scope="module")
def same_session(gateway: Gateway) -> Iterator[Session]:
    """One for all tests of a module that do not mind the others."""
    session = gateway.session(f"same-{uuid.uuid4().hex}")
    yield session
    session.delete()


Make = Callable[..., Gateway]


@pytest.fixture
def make_gateway(gateway: Gateway, tmp_path: Path) -> Iterator[Make]:
    """Gateways with other settings and a state of their own."""
    made: list[Gateway] = []

    def make(**settings: Any) -> Gateway:
        state = state_of(uuid.uuid4().hex[:8])
        made.append(Gateway(tmp_path, state=state, **settings))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.stop()
        assert each.traces() == []
        _remove(each.state)


def _remove(state: Path) -> None:
    for path in sorted(state.rglob("*"), key=lambda path: len(path.parts), reverse=True):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            path.rmdir()
    state.rmdir()
