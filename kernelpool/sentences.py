"""What pydantic finds wrong with settings, as sentences for whoever wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError


def sentences(error: ValidationError) -> str:
    """Each with the path of what is wrong, where it is not all of it. No value is repeated: it may be a secret."""
    return "; ".join(_sentence(fault) for fault in error.errors(include_url=False, include_input=False))


def _sentence(fault: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in fault["loc"] if part != "[key]")
    what = "there is no such setting" if fault["type"] == "extra_forbidden" else fault["msg"]
    what = what.removeprefix("Value error, ")
    return f"{path}: {what}" if path else what
