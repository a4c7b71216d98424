"""Requests that two parsers could read in two ways: each is refused once, and what follows it is never served."""

from __future__ import annotations

import asyncio
import json
import re
import socket

import pytest

from kernelpool.api.heads import MAX_BYTES, MAX_HEADERS, MAX_TARGET
from tests.api.conftest import TOKEN, VERSION, Api

PATH = f"/pools/python/executions?identifier=smuggler&api-version={VERSION}"
SECRET = "GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""What must never be answered."""


def post(headers: str, body: str = "", *, start: str = f"POST {PATH} HTTP/1.1", host: str = "Host: localhost") -> bytes:
    lines = [start, host, f"Authorization: Bearer {TOKEN}", "Content-Type: application/json", headers]
    return ("\r\n".join(line for line in lines if line) + "\r\n\r\n" + body + SECRET).encode("latin-1")


def get(target: str, *, headers: str = "Host: localhost", version: str = " HTTP/1.1") -> bytes:
    return f"GET {target}{version}\r\n{headers}\r\n\r\n{SECRET}".encode("latin-1")


CODE = '{"code":"1"}'
CHUNKED = f"{len(CODE):x}\r\n{CODE}\r\n0\r\n\r\n"
LENGTH = f"Content-Length: {len(CODE)}"

FRAMING = {
    "length and encoding": post(f"{LENGTH}\r\nTransfer-Encoding: chunked", CHUNKED),
    "encoding and length": post(f"Transfer-Encoding: chunked\r\n{LENGTH}", CHUNKED),
    "encoding twice": post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", CHUNKED),
    "encoding and identity": post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", CHUNKED),
    "xchunked": post("Transfer-Encoding: xchunked", CHUNKED),
    "chunked, identity": post("Transfer-Encoding: chunked, identity", CHUNKED),
    "identity, chunked": post("Transfer-Encoding: identity, chunked", CHUNKED),
    "gzip, chunked": post("Transfer-Encoding: gzip, chunked", CHUNKED),
    "identity": post(f"Transfer-Encoding: identity\r\n{LENGTH}", CODE),
    "quoted chunked": post('Transfer-Encoding: "chunked"', CHUNKED),
    "chunked with a vertical tab": post("Transfer-Encoding: \x0bchunked", CHUNKED),
    "chunked with a no-break space": post("Transfer-Encoding: chunked\xa0", CHUNKED),
    "encoding with a space before the colon": post("Transfer-Encoding : chunked", CHUNKED),
    "encoding with a tab before the colon": post("Transfer-Encoding\t: chunked", CHUNKED),
    "encoding after a NUL": post("X: a\0\r\nTransfer-Encoding: chunked", CHUNKED),
    "folded encoding": post("Transfer-Encoding:\r\n chunked", CHUNKED),
    "folded header": post(f"{LENGTH}\r\nX: a\r\n\tb", CODE),
    "empty encoding": post(f"Transfer-Encoding:\r\n{LENGTH}", CODE),
    "HTTP/1.0 with encoding": post("Transfer-Encoding: chunked", CHUNKED, start=f"POST {PATH} HTTP/1.0"),
    "length twice": post(f"{LENGTH}\r\n{LENGTH}", CODE),
    "two lengths": post(f"{LENGTH}\r\nContent-Length: 0", CODE),
    "a list of lengths": post(f"{LENGTH}, {len(CODE)}", CODE),
    "length with a plus": post(f"Content-Length: +{len(CODE)}", CODE),
    "negative length": post("Content-Length: -1", CODE),
    "length with an underscore": post("Content-Length: 1_2", CODE),
    "hexadecimal length": post("Content-Length: 0xc", CODE),
    "length that is a float": post("Content-Length: 12.0", CODE),
    "length of exotic digits": post("Content-Length: \xb2", CODE),
    "empty length": post("Content-Length:", CODE),
    "huge length": post("Content-Length: 99999999999999999999", CODE),
    "bare line feeds": post(LENGTH, CODE).replace(b"\r\n", b"\n"),
    "one bare line feed": post(f"X: a\nTransfer-Encoding: chunked\r\n{LENGTH}", CODE),
    "bare line feed at the end": post(LENGTH, CODE).replace(b"\r\n\r\n", b"\r\n\n", 1),
    "bare carriage return": post(f"X: a\rTransfer-Encoding: chunked\r\n{LENGTH}", CODE),
    "no colon": post(f"{LENGTH}\r\nnonsense", CODE),
    "no name": post(f"{LENGTH}\r\n: x", CODE),
    "space before the first header": post(f" X: y\r\n{LENGTH}", CODE),
    "NUL in a value": post(f"X: a\0b\r\n{LENGTH}", CODE),
    "control character in a name": post(f"X\x01: a\r\n{LENGTH}", CODE),
}
CHUNKS = {
    "chunk extension": "c;a=b\r\n" + CODE + "\r\n0\r\n\r\n",
    "chunk extension with a line feed": "c;\n" + CODE + "\r\n0\r\n\r\n",
    "chunk size with 0x": "0xc\r\n" + CODE + "\r\n0\r\n\r\n",
    "chunk size with a plus": "+c\r\n" + CODE + "\r\n0\r\n\r\n",
    "chunk size with spaces": "c \r\n" + CODE + "\r\n0\r\n\r\n",
    "chunk size that is negative": "-c\r\n" + CODE + "\r\n0\r\n\r\n",
    "chunk size that overflows 64 bits": "1000000000000000c\r\n" + CODE + "\r\n0\r\n\r\n",
    "chunk size without end": "0" * 200 + "c\r\n" + CODE + "\r\n0\r\n\r\n",
    "chunk size with a bare line feed": "c\n" + CODE + "\r\n0\r\n\r\n",
    "no chunk size": "\r\n" + CODE + "\r\n0\r\n\r\n",
    "chunk longer than its size": "5\r\n" + CODE + "\r\n0\r\n\r\n",
    "chunk shorter than its size": "d\r\n" + CODE + "\r\n0\r\n\r\n",
    "trailer": "c\r\n" + CODE + "\r\n0\r\nX: y\r\n\r\n",
}
TARGETS = {
    "absolute form": get("http://evil.test/healthz"),
    "absolute form of our own": get("http://localhost/healthz"),
    "two slashes": get("//evil.test/healthz"),
    "backslashes": get("/pools\\python"),
    "backslash first": get("\\healthz"),
    "asterisk": get("*"),
    "no slash": get("healthz"),
    "empty": get(""),
    "space in it": get("/health z"),
    "control character in it": get("/health\x01z"),
    "CONNECT": b"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n" + SECRET.encode(),
    "HTTP/0.9": b"GET /healthz\r\n\r\n" + SECRET.encode(),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SECRET.encode(),
    "HTTP/1.2": get("/healthz", version=" HTTP/1.2"),
    "http/1.1": get("/healthz", version=" http/1.1"),
    "two spaces": get("/healthz", version="  HTTP/1.1"),
    "tab": get("/healthz", version="\tHTTP/1.1"),
    "bad method": b"G(T /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" + SECRET.encode(),
    "no Host": get("/healthz", headers="X: y"),
    "two Hosts": get("/healthz", headers="Host: localhost\r\nHost: localhost"),
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n" + SECRET.encode(),
}
CORPUS = {
    **FRAMING,
    **{name: post("Transfer-Encoding: chunked", body) for name, body in CHUNKS.items()},
    **TARGETS,
}


def statuses(answer: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.1 (\d+)", answer)


@pytest.mark.parametrize("name", CORPUS)
async def test_an_ambiguous_request_is_refused_once_and_nothing_after_it_is_served(api: Api, name: str) -> None:
    answer = await api.raw(CORPUS[name])

    assert statuses(answer) == ([] if name == "chunk size without end" else [b"400"])  # that one is only cut off
    assert b"ready" not in answer


async def test_the_same_request_in_order_is_served_and_so_is_the_next(api: Api) -> None:
    """Or the corpus would prove nothing."""
    for request in (post(LENGTH, CODE), post("Transfer-Encoding: chunked", CHUNKED), get("/healthz")):
        answer = await api.raw(request[:-2] + b"Connection: close\r\n\r\n")

        assert statuses(answer) == [b"200", b"200"], answer


async def test_a_refusal_before_any_handler_has_the_envelope_too(api: Api) -> None:
    answer = await api.raw(CORPUS["length twice"])

    head, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert error["code"] == "MalformedRequest"
    assert error["traceId"]
    assert "content-length" in error["message"]
    assert b"Connection: close" in head
    assert b"x-ms-error-code: MalformedRequest" in head


async def test_a_refused_request_whose_body_is_malformed_gets_one_answer(api: Api) -> None:
    """Its 401 has been sent when the body turns out to be no body."""
    request = post("Transfer-Encoding: chunked", CHUNKS["chunk extension"]).replace(TOKEN.encode(), b"wrong")

    assert statuses(await api.raw(request)) == [b"401"]


async def test_one_empty_line_before_a_request_is_ignored(api: Api) -> None:
    request = b"\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    assert statuses(await api.raw(request)) == [b"200"]


# --- sizes


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/healthz", headers="Host: localhost\r\n" + "X: y\r\n" * (MAX_HEADERS - 2) + "Connection: close"), b"200"),
        (get("/healthz", headers="Host: localhost\r\n" + "X: y\r\n" * MAX_HEADERS + "Connection: close"), b"431"),
        (get("/healthz", headers="Host: localhost\r\n" + "X: y\r\n" * 10_000 + "Connection: close"), b"431"),
        (get("/healthz", headers="Host: localhost\r\nConnection: close\r\nX: " + "y" * (MAX_BYTES - 200)), b"200"),
        (get("/healthz", headers="Host: localhost\r\nConnection: close\r\nX: " + "y" * MAX_BYTES), b"431"),
        (get("/healthz?" + "y" * (MAX_TARGET - 9), headers="Host: localhost\r\nConnection: close"), b"200"),
        (get("/healthz?" + "y" * MAX_TARGET, headers="Host: localhost\r\nConnection: close"), b"414"),
    ],
    ids=["most headers", "too many headers", "10,000 headers", "largest", "too large", "longest URL", "too long URL"],
)
async def test_heads_have_their_limits(api: Api, request_: bytes, status: bytes) -> None:
    assert statuses(await asyncio.to_thread(exchange, api.port, request_)) == [status]


async def test_a_head_of_a_megabyte_is_cut_off(api: Api) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * (1 << 20) + b"\r\n\r\n"

    assert statuses(await asyncio.to_thread(exchange, api.port, request)) in ([b"431"], [])


def exchange(port: int, request: bytes) -> bytes:
    """A client that reads even when it could not write everything."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        try:
            connection.sendall(request)
            while piece := connection.recv(65536):
                answer += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
    return answer
