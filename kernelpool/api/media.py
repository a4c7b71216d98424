"""Content types of requests: what a JSON body may be called. A form of another site cannot say any of it."""

from __future__ import annotations

import re

from tornado.httputil import HTTPHeaders

from kernelpool.errors import UnsupportedMediaType

_JSON = re.compile(r"application/(?:[a-z0-9!#$&^_.+-]+\+)?json", re.ASCII | re.IGNORECASE)
_CHARSET = re.compile(r";\s*charset\s*=\s*\"?([^\";\s]*)", re.IGNORECASE)


def has_body(headers: HTTPHeaders) -> bool:
    return headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers


def check_encoding(headers: HTTPHeaders) -> None:
    """Raises `UnsupportedMediaType` for a compressed body: nothing is ever unpacked here."""
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(f"Content-Encoding {encoding[:40]!r} is not supported; send the body as it is")


def check_json(headers: HTTPHeaders) -> None:
    """Raises `UnsupportedMediaType` unless the body is called JSON in UTF-8, or nothing at all."""
    text = headers.get("Content-Type")
    if text is None:
        return
    media_type = text.partition(";")[0].strip()
    if not _JSON.fullmatch(media_type):
        raise UnsupportedMediaType(f"the body is {media_type[:60]!r}; send JSON as application/json")
    if any(charset.lower() not in ("utf-8", "utf8") for charset in _CHARSET.findall(text)):
        raise UnsupportedMediaType("JSON is UTF-8; the Content-Type names another charset")
