"""Start line and headers as bytes: what two parsers could read in two ways is refused. No I/O.

Tornado's parser is strict in most of this, but takes line feeds without carriage returns, lengths that are given twice,
targets that are URLs. A proxy in front of us may read these otherwise, and take for one request what we take for two.
"""

from __future__ import annotations

import re

from kernelpool.errors import HeadersTooLarge, MalformedHead, TargetTooLong

MAX_TARGET = 16 << 10
MAX_HEADERS = 100
MAX_BYTES = 32 << 10
"""Of start line and headers together."""
_START = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([\x21-\x7e\x80-\xff]+) (HTTP/\d\.\d)")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t\x20-\x7e\x80-\xff]*)")
_ONCE = (b"host", b"content-length", b"transfer-encoding", b"content-type", b"origin", b"upgrade", b"expect")


def check_head(head: bytes) -> None:
    """Takes everything to the empty line, that included. Raises `MalformedHead`."""
    if len(head) > MAX_BYTES:
        raise HeadersTooLarge(f"the request's headers are larger than {MAX_BYTES} bytes")
    # One empty line before a request is to be ignored, says RFC 9112.
    head = head.removeprefix(b"\r\n")
    ends = head.count(b"\r\n")
    if not head.endswith(b"\r\n\r\n") or head.count(b"\n") != ends or head.count(b"\r") != ends:
        raise MalformedHead("a line of the request does not end with CR LF")
    start, *lines = head[:-4].split(b"\r\n")
    version = _check_start(start)
    if len(lines) > MAX_HEADERS:
        raise HeadersTooLarge(f"the request has more than {MAX_HEADERS} headers")
    _check_fields(_fields(lines), version)


def _check_start(line: bytes) -> bytes:
    """The version."""
    match = _START.fullmatch(line)
    if match is None:
        raise MalformedHead("the request line is not 'METHOD target HTTP/1.1'")
    method, target, version = match.groups()
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise MalformedHead("only HTTP/1.1 and HTTP/1.0 are spoken here")
    if len(target) > MAX_TARGET:
        raise TargetTooLong(f"the URL is longer than {MAX_TARGET} bytes")
    if target == b"*" and method == b"OPTIONS":
        return version
    path = target.partition(b"?")[0]
    if not path.startswith(b"/") or path.startswith(b"//") or b"\\" in path:
        raise MalformedHead("the target of the request is no path: it must begin with one slash, without a host")
    return version


def _fields(lines: list[bytes]) -> dict[bytes, list[bytes]]:
    fields: dict[bytes, list[bytes]] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise MalformedHead("a header is not 'Name: value'")
        fields.setdefault(match[1].lower(), []).append(match[2].strip(b" \t"))
    return fields


def _check_fields(fields: dict[bytes, list[bytes]], version: bytes) -> None:
    for name in _ONCE:
        if len(fields.get(name, ())) > 1:
            raise MalformedHead(f"the header {name.decode()} is given more than once")
    length, encoding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if length and not re.fullmatch(rb"[0-9]{1,19}", length[0]):
        raise MalformedHead("Content-Length is no number")
    if encoding and length:
        raise MalformedHead("the request has both Content-Length and Transfer-Encoding")
    if encoding and (encoding[0].lower() != b"chunked" or version == b"HTTP/1.0"):
        raise MalformedHead("the only Transfer-Encoding is chunked, of HTTP/1.1")
    if b"host" not in fields and version == b"HTTP/1.1":
        raise MalformedHead("the request has no Host header")
