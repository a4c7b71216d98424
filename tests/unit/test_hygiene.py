"""Headers between callers and custom containers, as a table of what passes."""

from __future__ import annotations

import pytest

from kernelpool.agents.hygiene import from_container, to_container

ENDS_HERE = [
    "Authorization",
    "Cookie",
    "X-Ms-ApiKey",
    "Proxy-Authorization",
    "Proxy-Anything",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "Forwarded",
    "X-Real-Ip",
    "Via",
    "Origin",
    "Connection",
    "Keep-Alive",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
    "Expect",
    "Content-Length",
    "Host",
    "Sec-WebSocket-Key",
]


@pytest.mark.parametrize("name", ENDS_HERE)
def test_a_request_header_that_is_for_this_hop_or_about_its_caller_ends_here(name: str) -> None:
    sent = to_container([(name, "canary"), (name.upper(), "canary"), ("X-Kept", "yes")], 80, length=None)

    assert sent == [("Host", "localhost:80"), ("X-Kept", "yes"), ("Connection", "close")]


def test_what_connection_names_ends_here_but_for_what_is_said_anew() -> None:
    sent = to_container([("Connection", "close, X-Hop ,Host"), ("x-hop", "1"), ("A", "b")], 80, length=3)

    assert sent == [("Host", "localhost:80"), ("A", "b"), ("Connection", "close"), ("Content-Length", "3")]


def test_a_body_of_unknown_length_is_chunked_again() -> None:
    assert ("Transfer-Encoding", "chunked") in to_container([("Transfer-Encoding", "chunked")], 80, length=-1)


def test_an_upgrade_is_asked_for_anew() -> None:
    sent = to_container([("Upgrade", "h2c, websocket"), ("Sec-WebSocket-Key", "k")], 80, length=None, upgrades=True)

    assert sent[1:] == [("Sec-WebSocket-Key", "k"), ("Connection", "Upgrade"), ("Upgrade", "websocket")]


@pytest.mark.parametrize(
    "name",
    [
        "Set-Cookie",
        "Clear-Site-Data",
        "Strict-Transport-Security",
        "Service-Worker-Allowed",
        "Access-Control-Allow-Origin",
        "Access-Control-Allow-Credentials",
        "Alt-Svc",
        "Report-To",
        "NEL",
        "WWW-Authenticate",
        "Proxy-Authenticate",
        "x-ms-error-code",
        "x-kernelpool-notice",
        "Connection",
        "Keep-Alive",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
    ],
)
def test_an_answers_header_that_is_not_the_containers_to_say_ends_here(name: str) -> None:
    assert from_container([(name, "x"), ("X-Kept", "yes"), ("X-Kept", "twice")], 200) == [
        ("X-Kept", "yes"),
        ("X-Kept", "twice"),
    ]


def test_a_length_passes_where_it_is_the_framing() -> None:
    assert from_container([("Content-Length", "5")], 200) == [("Content-Length", "5")]
    assert from_container([("Content-Length", "5"), ("Transfer-Encoding", "chunked")], 200) == []
    assert from_container([("Content-Length", "5")], 204) == []
