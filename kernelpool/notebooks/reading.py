"""Notebooks from outside: bounded, parsed, upgraded to nbformat 4.5, validated. It takes time: do it in a thread.

nbformat is imported with the first notebook: its schemas take longer to load than everything else of a gateway.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from pydantic_core import from_json

from kernelpool.agents.answers import count_parts
from kernelpool.errors import InvalidNotebook
from kernelpool.models import Cell
from kernelpool.notebooks.document import NBFORMAT, NBFORMAT_MINOR

MAX_CELLS = 2000
MAX_PARTS = 200_000
"""Values in a notebook. They cost memory, and validation costs time, where bytes cost none."""
MAX_FAULT = 300
"""Characters of what is wrong with one."""

Notebook = dict[str, Any]


def parse(raw: bytes) -> Any:
    """The JSON of a body. Raises `InvalidNotebook`."""
    if count_parts(raw) > MAX_PARTS:
        raise InvalidNotebook(f"the notebook has more than {MAX_PARTS} values")
    try:
        return from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidNotebook(f"the body is not valid JSON: {error}"[:MAX_FAULT]) from None


def read_notebook(value: Any) -> Notebook:
    """A notebook of nbformat 3 or 4 as one of 4.5. Ids that are missing, twice there, or none become others; all else
    that is wrong raises `InvalidNotebook`."""
    version = value.get("nbformat") if isinstance(value, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version not in _READERS:
        raise InvalidNotebook(f"the notebook must be of nbformat 3 or 4, not {str(version)[:20]}")
    notebook = _READERS[version](value)
    _check_cells(notebook["cells"])
    _name(notebook["cells"])
    _validate(notebook, NBFORMAT)
    nbformat = _nbformat()
    joined: Notebook = nbformat.v4.rwbase.rejoin_lines(nbformat.from_dict(notebook))
    return joined


def _nbformat() -> Any:
    import nbformat  # noqa: PLC0415 - see above

    return nbformat


def _read_4(value: Notebook) -> Notebook:
    minor = value.get("nbformat_minor")
    if not isinstance(minor, int) or isinstance(minor, bool) or minor < 0:
        raise InvalidNotebook("nbformat_minor must be a whole number")
    if not isinstance(value.get("cells"), list):
        raise InvalidNotebook("cells must be a list")
    return value | {"nbformat_minor": max(minor, NBFORMAT_MINOR)}


def _read_3(value: Notebook) -> Notebook:
    """Not by `nbformat.convert`, which logs what it does not like, code included."""
    sheets = value.get("worksheets")
    cells = [sheet.get("cells") for sheet in sheets if isinstance(sheet, dict)] if isinstance(sheets, list) else [None]
    if not all(isinstance(each, list) for each in cells):
        raise InvalidNotebook("worksheets must be a list of worksheets with cells")
    _check_cells([cell for each in cells for cell in each or ()])
    _validate(value, 3)
    nbformat = _nbformat()
    old = nbformat.from_dict(value)
    metadata = {name: each for name, each in old["metadata"].items() if name not in ("name", "signature")}
    upgraded = [nbformat.v4.convert.upgrade_cell(cell) for sheet in old["worksheets"] for cell in sheet["cells"]]
    return {"metadata": metadata, "nbformat": NBFORMAT, "nbformat_minor": NBFORMAT_MINOR, "cells": upgraded}


_READERS = {3: _read_3, NBFORMAT: _read_4}


def _check_cells(cells: list[Any]) -> None:
    if len(cells) > MAX_CELLS:
        raise InvalidNotebook(f"the notebook has {len(cells)} cells, more than {MAX_CELLS}")
    for index, cell in enumerate(cells):
        if not isinstance(cell, dict):
            raise InvalidNotebook(f"cells.{index} must be an object")


def _name(cells: list[Any]) -> None:
    """Valid ids, each once."""
    seen: set[str] = set()
    for cell in cells:
        if not Cell.is_id(cell.get("id")) or cell["id"] in seen:
            cell["id"] = uuid4().hex[:12]
        seen.add(cell["id"])


def _validate(notebook: Notebook, version: int) -> None:
    """Not by `nbformat.validate`, which mends before it looks, and stumbles over what cannot be mended."""
    minor = notebook.get("nbformat_minor")
    for error in _nbformat().validator.iter_validate(notebook, version=version, version_minor=minor):
        where = ".".join(str(step) for step in error.relative_path)
        raise InvalidNotebook(f"{where or 'the notebook'}: {error.message}"[:MAX_FAULT])
