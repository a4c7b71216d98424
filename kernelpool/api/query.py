"""Query parameters, read once: names in any case, strict UTF-8, none given twice."""

from __future__ import annotations

import re
from collections.abc import Mapping

from kernelpool.errors import InvalidApiVersion, InvalidIdentifierLength, InvalidRequest

_API_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(-preview)?", re.ASCII | re.IGNORECASE)
LAST_LEGACY_VERSION = "2024-08-02-preview"
"""Up to this one `GET /files` answers in the old shape. Everything else goes by the route."""

SUPPORTED_VERSIONS = (
    "2024-02-02-preview, 2024-08-02-preview, 2024-10-02-preview, 2025-02-02-preview, 2025-10-02-preview"
)

_WORDS = {"true": True, "1": True, "false": False, "0": False}


class Query:
    """The raw arguments of a request, as Tornado splits them, decoded only when somebody asks."""

    def __init__(self, arguments: Mapping[str, list[bytes]]) -> None:
        self._values: dict[str, list[bytes]] = {}
        for name, values in arguments.items():
            self._values.setdefault(name.lower(), []).extend(values)

    def text(self, name: str) -> str | None:
        """None when it is not there. Raises `InvalidRequest` when it is there twice or is not UTF-8."""
        values = self._values.get(name.lower())
        if not values:
            return None
        if len(values) > 1:
            raise InvalidRequest(f"query parameter {name} is given {len(values)} times")
        try:
            return values[0].decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"query parameter {name} is not UTF-8") from None

    def flag(self, name: str, default: bool) -> bool:
        text = self.text(name)
        if text is None:
            return default
        try:
            return _WORDS[text.lower()]
        except KeyError:
            raise InvalidRequest(f"query parameter {name} must be true or false") from None

    def number(self, name: str, default: int, limit: int = 2**31) -> int:
        """A whole number from 0 to `limit`."""
        text = self.text(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= limit):
            raise InvalidRequest(f"query parameter {name} must be a whole number from 0 to {limit}")
        return int(text)

    @property
    def identifier(self) -> str | None:
        """Some clients send it as it is. A plus sign may stand in one, and reads as a space; a space never may."""
        text = self.text("identifier")
        return text and text.replace(" ", "+")

    @property
    def api_version(self) -> str:
        """Any that looks like one. Raises `InvalidApiVersion`."""
        text = self.text("api-version")
        if text is None:
            raise InvalidApiVersion("The api-version query parameter is missing.")
        if not _API_VERSION.fullmatch(text):
            raise InvalidApiVersion("The api-version must look like 2025-10-02-preview.")
        return text.lower()

    @property
    def wants_legacy_shape(self) -> bool:
        return self.api_version <= LAST_LEGACY_VERSION


def required_identifier(identifier: str | None) -> str:
    if not identifier:
        raise InvalidIdentifierLength("The identifier query parameter is missing or empty.")
    return identifier
