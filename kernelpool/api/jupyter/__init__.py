"""The Jupyter surface: the gateway as a Jupyter server, whose kernels are the caller's sessions."""

from __future__ import annotations

from typing import Any

from kernelpool.api.base import Collaborators
from kernelpool.api.jupyter import channels, kernels, kernelspecs, server, sessions
from kernelpool.api.jupyter.paths import at_bases
from kernelpool.api.jupyter.surface import SURFACE

__all__ = ["SURFACE", "routes"]


def routes(collaborators: Collaborators) -> list[Any]:
    kernel, session = f"/api/kernels/{kernels.ID}", f"/api/sessions/{sessions.ID}"
    shared = {"collaborators": collaborators}
    plain = [
        ("/api", server.VersionHandler),
        ("/api/me", server.MeHandler),
        ("/api/status", server.StatusHandler),
        ("/api/kernelspecs", kernelspecs.SpecsHandler),
        ("/api/kernelspecs/(?P<spec>[^/]+)", kernelspecs.SpecHandler),
        ("/kernelspecs/(?P<spec>[^/]+)/(?P<logo>[^/]+)", kernelspecs.LogoHandler),
        ("/api/kernels", kernels.KernelsHandler),
        (kernel, kernels.KernelHandler),
        (f"{kernel}/interrupt", kernels.InterruptHandler),
        (f"{kernel}/restart", kernels.RestartHandler),
        (f"{kernel}/channels", channels.ChannelsHandler),
        ("/api/events/subscribe", channels.EventsHandler),
        ("/", server.NoPageHandler),
        ("/tree", server.NoPageHandler),
        ("/hub/api", server.NoPageHandler),
    ]
    documents = [("/api/sessions", sessions.SessionsHandler), (session, sessions.SessionHandler)]
    return [*at_bases(plain, shared), *at_bases(documents, {**shared, "locks": sessions.Locks()})]
