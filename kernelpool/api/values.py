"""The text/plain of a result → the JSON value that ACA would answer with, as each language writes its values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_NUMBER = 400
"""Characters. The longest repr of a float has 24, of a 64-bit integer 20."""

_INT = re.compile(r"-?(?:0|[1-9]\d*)", re.ASCII)
_FLOAT = re.compile(r"-?\d+(?:\.\d+(?:e[+-]\d+)?|e[+-]\d+)", re.ASCII)
_NUMPY = re.compile(r"np\.(?:(?:u?int|float)\d+|str_)\((.*)\)|np\.(True|False)_", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-f]{8})|(.))", re.DOTALL)
_SIMPLE = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True, slots=True)
class Notation:
    """How a language writes what JSON has."""

    words: Mapping[str, Any]
    nan: str
    quotes: str
    escapes: Mapping[str, str]

    def is_string(self, text: str) -> bool:
        return text != "" and text[0] in self.quotes and _STRINGS[text[0]].fullmatch(text) is not None


_STRINGS = {quote: re.compile(rf"{quote}[^{quote}\\\n]*(?:\\.[^{quote}\\\n]*)*{quote}") for quote in "'\"`"}
_PYTHON = Notation({"True": True, "False": False, "None": ""}, "nan", "'\"", _SIMPLE)
_JAVASCRIPT = Notation(
    {"true": True, "false": False, "null": "", "undefined": ""},
    "NaN",
    "'\"`",
    {**_SIMPLE, "`": "`", "b": "\b", "f": "\f", "v": "\v"},
)
NOTATIONS: Mapping[str, Notation] = {"javascript": _JAVASCRIPT, "typescript": _JAVASCRIPT}
"""Of languages that do not write them as Python does."""


def json_value(text: str, *, nan: str | None = None, language: str = "python") -> Any:
    """Primitives (bool, int, float, str) as JSON types; all else as the text itself.

    `nan` is what "nan" becomes. Infinities stay text, and so do integers beyond 64 bits, which half of all JSON
    readers would round. A string that the language could not have written stays text too. NumPy's scalars count as
    what they hold, as they did when their repr was that alone: `np.int64(6)`, the sum of a column, is 6.
    """
    notation = NOTATIONS.get(language.lower(), _PYTHON)
    if notation is _PYTHON and (wrapped := _NUMPY.fullmatch(text)):
        text = wrapped[1] if wrapped[1] is not None else wrapped[2]
    if text in notation.words:
        return notation.words[text]
    if text == notation.nan:
        return nan
    if notation.is_string(text):
        return _unquote(text, notation.escapes)
    return _number(text) if len(text) <= MAX_NUMBER else text


def _number(text: str) -> Any:
    if _INT.fullmatch(text):
        number = int(text)
        return number if -(2**63) <= number < 2**63 else text
    if _FLOAT.fullmatch(text):
        real = float(text)
        return real if abs(real) != float("inf") else text
    return text


def _unquote(text: str, escapes: Mapping[str, str]) -> str:
    """What the repr of a string stands for. Only the escapes that are written; others stay as they are."""

    def character(match: re.Match[str]) -> str:
        code = match[1] or match[2] or match[3]
        if code is None:
            return escapes.get(match[4], match[0])
        number = int(code, 16)
        return chr(number) if number < 0x110000 else match[0]

    return _ESCAPE.sub(character, text[1:-1])
