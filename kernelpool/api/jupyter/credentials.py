"""The tokens of Jupyter clients, taken out of a request before anything else sees it, and put where all others are.

    Authorization: token T      most
    Authorization: Bearer T     jupyter-kernel-client
    ?token=T                    WebSockets of JupyterLab, VS Code, smolagents
    /k/T/api/…                  clients that send none on the WebSocket: nbclient and papermill through a gateway

After that the request has one `Authorization: Bearer T`, and neither its path nor its query holds a token: no log line,
span, metric, error or Location can tell what it never saw. Cookies are no credential here: a browser sends those
by itself, whoever's page makes it.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, unquote_plus

from tornado.httputil import HTTPServerRequest

from kernelpool.api.jupyter.paths import is_jupyter
from kernelpool.errors import Unauthorized

_IN_PATH = re.compile(r"/k/([^/?#]+)(/[^?#]*)?")
_IN_HEADER = re.compile(r"\s*(?:token|bearer)(?:\s+(\S+))?\s*", re.IGNORECASE)


def take_path_token(request: HTTPServerRequest) -> str | None:
    """Takes `/k/<token>` off the path. To be called before anything that may tell what was asked for."""
    match = _IN_PATH.match(request.path)
    if match is None:
        return None
    target = request.uri or ""
    request.path = match[2] or "/"
    request.uri = request.path + (f"?{request.query}" if "?" in target else "")
    return unquote(match[1])


def take_token(request: HTTPServerRequest, path_token: str | None) -> None:
    """Leaves one `Authorization` with the token, or none. Raises `Unauthorized` when there are two different ones: a
    proxy in front may have looked at the other."""
    if not is_jupyter(request.path):
        return
    header = _header_token(request)
    given = [*header, *_query_tokens(request), *([path_token] if path_token else [])]
    if len(set(given)) > 1:
        raise Unauthorized("The request has two different tokens.")
    if given and "Authorization" not in request.headers:
        request.headers["Authorization"] = f"Bearer {given[0]}"


def _header_token(request: HTTPServerRequest) -> list[str]:
    """Taken off when it has this form, with or without a token: clients that have none send `token `. Any other
    stays there, to be refused as elsewhere."""
    values = request.headers.get_list("Authorization")
    match = _IN_HEADER.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        return []
    del request.headers["Authorization"]
    return [match[1]] if match[1] else []


def _query_tokens(request: HTTPServerRequest) -> list[str]:
    values = request.query_arguments.pop("token", [])
    request.arguments.pop("token", None)
    if values:
        request.query = "&".join(
            part for part in request.query.split("&") if unquote_plus(part.partition("=")[0]) != "token"
        )
        request.uri = request.path + (f"?{request.query}" if request.query else "")
    return [text for value in values if (text := value.decode(errors="replace"))]
