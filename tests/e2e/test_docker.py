"""The same product on Docker: what is tested of it elsewhere in this folder, on a pool with `backend = "docker"`.

The tests are those of the other modules; only the gateways are others.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Make
from tests.e2e.gateways import STATE, Gateway
from tests.e2e.test_adversarial import (  # noqa: F401 - to be collected once more; bombs are in tests/contract
    test_a_directory_that_is_swapped_for_links_leaks_nothing_of_the_host,
    test_a_full_workspace_is_an_error_that_says_so,
    test_a_link_leads_only_to_what_the_code_can_read_itself,
    test_nobody_is_reached_over_the_network,
    test_nothing_of_the_gateway_can_be_found,
    test_the_log_holds_no_token_no_identifier_and_no_second_line,
    test_the_secret_of_the_agent_cannot_be_read_from_its_memory,
    test_two_uploads_that_fit_only_alone_do_not_both_succeed,
    test_very_many_files_are_listed_in_part_and_the_session_goes_on,
)
from tests.e2e.test_shell import (  # noqa: F401 - what is of Shell pools is in test_shell_docker
    test_code_that_hangs_does_not_hold_up_the_command_that_ends_it,
    test_what_a_command_installs_and_writes_is_there_for_code,
)
from tests.e2e.test_stories import *  # noqa: F403
from tests.e2e.test_survival import test_kill_9_of_the_gateway_under_load_loses_nothing  # noqa: F401
from tests.engine import image_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]  # the first of them builds the image

ON_DOCKER: dict[str, Any] = {"backend": "docker"}


@pytest.fixture(scope="module")
def image() -> str:
    """Of the Python runtime: pools find it by what it is made from."""
    return image_of("python")


@pytest.fixture(scope="module")
def gateway(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    gateway = Gateway(
        folder, state=STATE.with_name(f"{STATE.name}-docker"), ready=2, max_sessions=40, warmup=True, **ON_DOCKER
    )
    gateway.start()
    yield gateway
    gateway.stop()
    assert gateway.traces() == []


@pytest.fixture
def make_gateway(image: str, tmp_path: Path) -> Iterator[Make]:
    """With a state of their own, which is not below pytest's directory: names of sockets must be short."""
    made: list[Gateway] = []

    def make(**settings: Any) -> Gateway:
        state = STATE.with_name(f"{STATE.name}-{uuid.uuid4().hex[:8]}")
        made.append(Gateway(tmp_path, state=state, **ON_DOCKER, **settings))
        made[-1].start()
        return made[-1]

    yield make
    for gateway in made:
        gateway.stop()
        assert gateway.traces() == []
        shutil.rmtree(gateway.state)
