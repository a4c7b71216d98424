"""All that sessions survive, on Docker too: where `KPTEST=all` asks for it."""

from __future__ import annotations

import pytest

from tests.e2e import test_docker
from tests.e2e.test_survival import *  # noqa: F403
from tests.extra import extra

image, gateway, make_gateway = test_docker.image, test_docker.gateway, test_docker.make_gateway

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900), extra]
