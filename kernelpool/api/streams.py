"""stdout and stderr as text of bounded size: progress bars folded, head and tail kept, the rest counted."""

from __future__ import annotations

from collections.abc import Sequence

from kernelpool.api.json_text import mend_text

_SMALLEST_MARKED = 128
"""Below this many bytes there is no room for a marker that says something; the count alone has to do."""


def fold_lines(text: str) -> str:
    """What a terminal would show of lines that were overwritten with carriage returns (tqdm, pip)."""
    if "\r" not in text:
        return text
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def cap(pieces: Sequence[str], limit: int) -> tuple[list[str], int]:
    """The pieces of one stream cut to `limit` bytes of UTF-8 in sum, and how many bytes were left out.

    Head and tail stay, with a marker where the middle was, which counts towards the limit. Characters stay whole.
    A limit of 0 is none.
    """
    pieces = [mend_text(piece) for piece in pieces]
    if limit == 0 or 4 * sum(map(len, pieces)) <= limit:
        return pieces, 0
    blobs = [piece.encode() for piece in pieces]
    total = sum(map(len, blobs))
    if total <= limit:
        return pieces, 0
    marked = limit >= _SMALLEST_MARKED
    room = limit - len(_marker(total).encode()) if marked else limit
    head = room // 2 if marked else room
    tail_from = total - (room - head)

    position = 0
    heads, tails = [], []
    for blob in blobs:
        heads.append(blob[: max(0, head - position)].decode(errors="ignore"))
        tails.append(blob[max(0, tail_from - position) :].decode(errors="ignore"))
        position += len(blob)
    dropped = total - sum(len(text.encode()) for text in (*heads, *tails))
    marker_at = max((index for index, text in enumerate(heads) if text), default=0)
    return [
        start + (_marker(dropped) if marked and index == marker_at else "") + end
        for index, (start, end) in enumerate(zip(heads, tails, strict=True))
    ], dropped


def _marker(dropped: int) -> str:
    return f"\n[… {dropped} bytes left out …]\n"
