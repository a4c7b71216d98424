"""The text/plain of a result → the JSON value that ACA would answer with."""

from __future__ import annotations

import re
from typing import Any

MAX_NUMBER = 400
"""Characters. The longest repr of a float has 24, of a 64-bit integer 20."""

_WORDS: dict[str, Any] = {"True": True, "False": False, "None": ""}
_INT = re.compile(r"-?(?:0|[1-9]\d*)", re.ASCII)
_FLOAT = re.compile(r"-?\d+(?:\.\d+(?:e[+-]\d+)?|e[+-]\d+)", re.ASCII)
_STRING = re.compile(r"""'[^'\\\n]*(?:\\.[^'\\\n]*)*'|"[^"\\\n]*(?:\\.[^"\\\n]*)*\"""")
_NUMPY = re.compile(r"np\.(?:(?:u?int|float)\d+|str_)\((.*)\)|np\.(True|False)_", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", re.DOTALL)
_SIMPLE = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t"}


def json_value(text: str, *, nan: str | None = None) -> Any:
    """Primitives (bool, int, float, str) as JSON types; all else as the text itself.

    `nan` is what "nan" becomes. Infinities stay text, and so do integers beyond 64 bits, which half of all JSON
    readers would round. A string that Python could not have written stays text too. NumPy's scalars count as what
    they hold, as they did when their repr was that alone: `np.int64(6)`, the sum of a column, is 6.
    """
    if wrapped := _NUMPY.fullmatch(text):
        text = wrapped[1] if wrapped[1] is not None else wrapped[2]
    if text in _WORDS:
        return _WORDS[text]
    if text == "nan":
        return nan
    if text[:1] in "'\"" and _STRING.fullmatch(text):
        return _unquote(text)
    if len(text) > MAX_NUMBER:
        return text
    if _INT.fullmatch(text):
        number = int(text)
        return number if -(2**63) <= number < 2**63 else text
    if _FLOAT.fullmatch(text):
        real = float(text)
        return real if abs(real) != float("inf") else text
    return text


def _unquote(text: str) -> str:
    """What the repr of a string stands for. Only the escapes that `repr` writes; others stay as they are."""

    def character(match: re.Match[str]) -> str:
        code = match[1] or match[2] or match[3]
        if code is None:
            return _SIMPLE.get(match[4], match[0])
        number = int(code, 16)
        return chr(number) if number < 0x110000 else match[0]

    return _ESCAPE.sub(character, text[1:-1])
