"""Shell sessions on Docker: the same tests, on a pool with `backend = "docker"`, and on gVisor.

Its image takes a minute, and what it has of its own is little: they run where `KPTEST=all` asks for them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.sandboxes import missing_engine
from tests.e2e import test_shell
from tests.e2e.gateways import Gateway, state_of
from tests.e2e.test_shell import *  # noqa: F403
from tests.engine import image_of
from tests.extra import extra

shell, any_session, langchain = test_shell.shell, test_shell.any_session, test_shell.langchain

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.timeout(900),  # the first of them builds the image
    extra,
]


@pytest.fixture(scope="module", params=["runc", "runsc"])
def shell_gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    if request.param == "runsc" and (why := missing_engine("gvisor")):
        pytest.skip(why)
    image_of("shell")
    folder, state = tmp_path_factory.mktemp("shell"), state_of("docker-shell")
    gateway = Gateway(
        folder,
        state=state,
        name="shell",
        runtime="shell",
        backend="docker",
        oci_runtime=request.param,
        ready=2,
        max_sessions=24,
    )
    gateway.start()
    yield gateway
    gateway.stop()
    assert gateway.traces() == []
