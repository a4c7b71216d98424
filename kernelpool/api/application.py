"""The application around all handlers: what the edge lets through, what it refuses, and what no route matches."""

from __future__ import annotations

from typing import Any

from tornado.httputil import HTTPServerRequest
from tornado.web import Application, RequestHandler

from kernelpool.api.base import ApiHandler, Collaborators, OpenHandler
from kernelpool.api.edge import is_preflight
from kernelpool.api.forward import ForwardHandler, pool_of_container
from kernelpool.api.jupyter.credentials import take_path_token, take_token
from kernelpool.api.routes import Routes
from kernelpool.auth.principal import Principal
from kernelpool.errors import KernelpoolError, NotFound


class UnknownPath(ApiHandler):
    """Whatever no route matches: nothing, for whoever is somebody."""

    def authorize(self) -> None:
        pass

    def check_method(self) -> None:
        raise NotFound(f"nothing is at {self.request.path[:200]}")


class RefusedHandler(ApiHandler):
    """For what the edge does not let through."""

    def initialize(self, collaborators: Collaborators, error: KernelpoolError) -> None:  # type: ignore[override]
        super().initialize(collaborators)
        self._error = error

    async def authenticate(self) -> Principal:
        raise self._error


class PreflightHandler(OpenHandler):
    """Browsers ask without a token whether a page may send what it wants to send."""

    async def options(self) -> None:
        for name, value in self.collaborators.edge.preflight_headers(self.request):
            self.set_header(name, value)
        self.answer_nothing()


class EdgeApplication(Application):
    """Asks the edge's policy before it looks for a handler, so that none can forget to, a WebSocket's neither."""

    def __init__(self, routes: list[Any], collaborators: Collaborators, **settings: Any) -> None:
        super().__init__(
            routes,
            default_handler_class=UnknownPath,
            default_handler_args={"collaborators": collaborators},
            log_function=log_request,
            routes=Routes(routes),
            edge=collaborators.edge,
            **settings,
        )
        self._collaborators = collaborators

    def find_handler(self, request: HTTPServerRequest, **rest: Any) -> Any:
        arguments: dict[str, Any] = {"collaborators": self._collaborators}
        path_token = take_path_token(request)
        try:
            self._collaborators.edge.check(request)
        except KernelpoolError as error:
            return self.get_handler_delegate(request, RefusedHandler, {**arguments, "error": error})
        if is_preflight(request):
            return self.get_handler_delegate(request, PreflightHandler, arguments)
        if (pool := pool_of_container(self._collaborators.gateway, request)) is not None:
            return self.get_handler_delegate(request, ForwardHandler, arguments, path_kwargs={"pool": pool})
        try:
            take_token(request, path_token)
        except KernelpoolError as error:
            return self.get_handler_delegate(request, RefusedHandler, {**arguments, "error": error})
        return super().find_handler(request, **rest)


def log_request(handler: RequestHandler) -> None:
    if isinstance(handler, ApiHandler):
        handler.exchange.end(handler.get_status())
