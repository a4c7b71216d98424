"""The parts of a notebook that are no cells: what it was run by, and which version of the format it is in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelpool.backends.base import RuntimeMetadata

MEDIA_TYPE = "application/x-ipynb+json"
NBFORMAT, NBFORMAT_MINOR = 4, 5

_PYTHON = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}


def language_metadata(language: str, metadata: RuntimeMetadata) -> dict[str, Any]:
    """`kernelspec` and `language_info`. Python's kernel has the name that it has everywhere, so that the notebook runs
    wherever there is one."""
    language = language.lower()
    is_python = language == "python"
    name, shown = ("python3", "Python 3") if is_python else (language, metadata.language)
    return {
        "kernelspec": {"display_name": shown, "language": language, "name": name},
        "language_info": {"name": language, "version": metadata.language_version, **(_PYTHON if is_python else {})},
    }


def head_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A notebook without its cells."""
    return {"metadata": dict(metadata), "nbformat": NBFORMAT, "nbformat_minor": NBFORMAT_MINOR}
