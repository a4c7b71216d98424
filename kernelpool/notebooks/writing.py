"""A notebook as the text of a file, as all tools of Jupyter write it: lines apart, so that a diff can be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def file_text(notebook: Mapping[str, Any]) -> str:
    import nbformat  # noqa: PLC0415 - as in `reading`: it takes long to load

    return f"{nbformat.writes(nbformat.from_dict(notebook))}\n"  # type: ignore[no-untyped-call]
