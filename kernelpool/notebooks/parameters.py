"""Values put into a notebook before it runs, as papermill does: a cell after the one tagged `parameters`."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from kernelpool.errors import InvalidNotebook
from kernelpool.notebooks.reading import Notebook

PARAMETERS, INJECTED = "parameters", "injected-parameters"


def inject(notebook: Notebook, parameters: Mapping[str, Any], language: str) -> None:
    """In the place of the cell that an earlier injection has left. Raises `InvalidNotebook`."""
    if language.lower() != "python":
        raise InvalidNotebook(f"parameters are for notebooks in Python, not in {language}")
    for name in parameters:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise InvalidNotebook(f"the parameter {name[:40]!r} can be no variable of Python")
    source = "\n".join(["# Parameters", *(f"{name} = {value!r}" for name, value in parameters.items())])
    cells = [cell for cell in notebook["cells"] if INJECTED not in tags_of(cell)]
    tagged = [index for index, cell in enumerate(cells) if PARAMETERS in tags_of(cell)]
    cells.insert(
        tagged[0] + 1 if tagged else 0,
        {
            "cell_type": "code",
            "id": uuid4().hex[:12],
            "metadata": {"tags": [INJECTED]},
            "source": source,
            "execution_count": None,
            "outputs": [],
        },
    )
    notebook["cells"] = cells


def tags_of(cell: Mapping[str, Any]) -> list[str]:
    tags: list[str] = cell["metadata"].get("tags", [])
    return tags
