"""Tokens of Jupyter clients are taken out of what anything may log, however they are written there."""

from __future__ import annotations

import pytest
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from kernelpool.api.jupyter.credentials import take_path_token, take_token


@pytest.mark.parametrize(
    "uri", ["/api/kernels?token=secret&a=1", "/api/kernels?a=1&%74oken=secret", "/k/secret/api/kernels?a=1"]
)
def test_a_token_in_a_url_becomes_a_header_and_stands_nowhere_else(uri: str) -> None:
    request = HTTPServerRequest(
        start_line=RequestStartLine("GET", uri, "HTTP/1.1"), headers=HTTPHeaders({"Host": "localhost"})
    )

    take_token(request, take_path_token(request))

    assert request.headers["Authorization"] == "Bearer secret"
    assert request.uri == "/api/kernels?a=1"
    assert "secret" not in f"{request.path} {request.query} {request.arguments} {request.query_arguments}"
