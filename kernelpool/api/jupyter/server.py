"""What Jupyter clients ask of a server before they ask for kernels: version, status, who they are."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from kernelpool import __version__
from kernelpool.api.base import OpenHandler
from kernelpool.api.json_text import parse_json
from kernelpool.api.jupyter.handler import JupyterHandler
from kernelpool.api.jupyter.kernels import described
from kernelpool.api.resources import timestamp
from kernelpool.auth.principal import Principal, Role
from kernelpool.errors import Forbidden, InvalidRequest, NotFound

STARTED = time.time()
RESOURCES = ("api", "events", "kernels", "kernelspecs", "sessions")
ACTIONS = {Role.VIEWER: ("read",), Role.EXECUTOR: ("read", "write", "execute")}


class NoPageHandler(OpenHandler):
    """VS Code looks whether a server wants a password: 404 is no, anything but that and 200 a dialog."""

    async def get(self, pool: str = "") -> None:
        raise NotFound("This is no page: give the URL to a Jupyter client, with a token.")


class VersionHandler(OpenHandler):
    async def get(self, pool: str = "") -> None:
        self.answer({"version": __version__})


class MeHandler(JupyterHandler):
    roles: ClassVar = {"GET": Role.VIEWER}

    async def get(self, pool: str = "") -> None:
        name = self.principal.name
        identity = {"username": name, "name": name, "display_name": name, "initials": name[:2].upper()}
        self.answer(
            {
                "identity": {**identity, "avatar_url": None, "color": None},
                "permissions": permissions(self.principal, self.query.text("permissions")),
            }
        )


class StatusHandler(JupyterHandler):
    roles: ClassVar = {"GET": Role.VIEWER}

    async def get(self, pool: str = "") -> None:
        await self.serve(self._get())

    async def _get(self) -> None:
        models = await described(self.gateway.kernels(self.principal, self.scope))
        started = timestamp(STARTED)
        self.answer(
            {
                "started": started,
                "last_activity": max((model["last_activity"] for model in models), default=started),
                "kernels": len(models),
                "connections": sum(model["connections"] for model in models),
            }
        )


def permissions(principal: Principal, asked: str | None) -> dict[str, list[str]]:
    """Those of the asked ones that he has. Raises `InvalidRequest` unless they are lists of texts by resource."""
    wanted = parse_json(asked.encode(errors="replace")) if asked else {}
    if not isinstance(wanted, dict) or not all(_is_texts(actions) for actions in wanted.values()):
        raise InvalidRequest("permissions should be a JSON dict of lists of texts")
    may = {action for role, actions in ACTIONS.items() if _has(principal, role) for action in actions}
    return {name: [each for each in actions if name in RESOURCES and each in may] for name, actions in wanted.items()}


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _has(principal: Principal, role: Role) -> bool:
    try:
        principal.require(role)
    except Forbidden:
        return False
    return True
