"""The same product on gVisor, whose kernel lacks some of what Linux has: a pool with `oci_runtime = "runsc"`."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.sandboxes import missing_engine
from tests.e2e.gateways import STATE, Gateway
from tests.e2e.test_shell import (  # noqa: F401 - to be collected once more; other runtimes are in test_*_docker
    test_code_that_hangs_does_not_hold_up_the_command_that_ends_it,
    test_what_a_command_installs_and_writes_is_there_for_code,
)
from tests.e2e.test_stories import (  # noqa: F401
    test_a_session_is_one_through_every_door,
    test_langchains_tool_gets_a_figure_and_its_file,
    test_langchains_tool_keeps_variables_between_calls,
    tool,
)
from tests.engine import image_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

ON_GVISOR: dict[str, Any] = {"backend": "docker", "oci_runtime": "runsc"}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    if why := missing_engine("gvisor"):
        pytest.skip(why)
    image_of("python")
    state = STATE.with_name(f"{STATE.name}-{uuid.uuid4().hex[:8]}")
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), state=state, max_sessions=40, **ON_GVISOR)
    gateway.start()
    yield gateway
    gateway.stop()
    assert gateway.traces() == []
    shutil.rmtree(state)
