"""One module a surface over the same Gateway. A surface is a module with `routes`, and a line here."""

from __future__ import annotations

from collections.abc import Callable

from tornado.web import Application

from kernelpool.api import aca, arm, health, pools
from kernelpool.api.base import Collaborators, application


def make_application(collaborators: Collaborators, is_ready: Callable[[], bool]) -> Application:
    return application(
        [
            *health.routes(collaborators, is_ready),
            *pools.routes(collaborators),
            *arm.routes(collaborators),
            *aca.routes(collaborators),
        ],
        collaborators,
    )
