"""JavaScript sessions on Docker: the same tests, on a pool with `backend = "docker"`, and on gVisor.

Its image takes minutes, and what it has of its own is little: they run where `KPTEST=all` asks for them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.sandboxes import missing_engine
from tests.e2e.gateways import Gateway, state_of
from tests.e2e.test_node import (  # noqa: F401 - to be collected once more
    same_session,
    session,
    test_a_loop_that_does_not_end_is_stopped_and_the_state_kept,
    test_a_picture_is_the_result_and_a_file,
    test_a_session_as_an_agent_has_it,
    test_a_session_is_one_through_every_door,
    test_metadata_tells_of_node_and_its_packages,
    test_packages_can_be_installed_beside_those_that_are_there,
    test_programs_of_the_session_find_the_same_packages,
    test_results_are_json_as_with_python,
    test_the_end_of_the_process_is_told_and_the_loss_of_state,
    test_too_much_memory_costs_the_kernel_and_not_the_session,
)
from tests.engine import image_of
from tests.extra import extra

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.timeout(900),  # the first of them builds the image
    extra,
]


@pytest.fixture(scope="module", params=["runc", "runsc"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    if request.param == "runsc" and (why := missing_engine("gvisor")):
        pytest.skip(why)
    image_of("node")
    folder = tmp_path_factory.mktemp("node-docker")
    gateway = Gateway(
        folder,
        state=state_of("node-docker"),
        runtime="node",
        backend="docker",
        oci_runtime=request.param,
        ready=1,
        interrupt_grace=30,
        max_sessions=8,
    )
    gateway.start()
    yield gateway
    gateway.stop()
    assert gateway.traces() == []
