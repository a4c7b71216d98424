"""Headers of a download: ranges asked for, names that no quote or line break can escape from."""

from __future__ import annotations

import re
from urllib.parse import quote

from kernelpool.models import FileInfo

_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{1,18})?|-(\d{1,18}))", re.ASCII | re.IGNORECASE)
_UNSAFE = re.compile(r"[^A-Za-z0-9._ ()\[\]+=@-]")

HEADERS = {
    # Whatever the file is, a browser that is led to it neither shows nor runs it.
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Accept-Ranges": "bytes",
}


def parse_range(header: str | None) -> tuple[int | None, int | None]:
    """Start (negative: from the end) and exclusive stop. Several ranges, and what is no range, mean the whole file,
    as RFC 9110 lets a server decide."""
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None:
        return None, None
    first, last, suffix = match.groups()
    if suffix is not None:
        return -int(suffix), None
    if last is None:
        return int(first), None
    return (int(first), int(last) + 1) if int(last) >= int(first) else (None, None)


def content_disposition(name: str) -> str:
    """`attachment` with the name twice: in ASCII for old readers, and as RFC 6266 has it."""
    return (
        f"attachment; filename=\"{_UNSAFE.sub('_', name)}\"; filename*=UTF-8''{quote(name, safe='', errors='replace')}"
    )


def content_range(info: FileInfo, start: int, stop: int) -> str:
    return f"bytes {start}-{stop - 1}/{info.size}"
