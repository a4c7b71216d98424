"""Execute the demos and store them with their outputs: `make demos`, or `python notebooks/execute.py [NOTEBOOK ...]`.

Each runs on a Python of this machine and uses the gateway that KERNELPOOL_URL and KERNELPOOL_TOKEN name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
SECONDS = 120
"""For one cell."""


def demos() -> list[Path]:
    return sorted(FOLDER.glob("[0-9]*.ipynb"))


def execute(notebook: Path) -> None:
    """From its first cell to its last, in its own folder. Raises `CellExecutionError`, and stores nothing then."""
    document = nbformat.read(notebook, as_version=4)  # type: ignore[no-untyped-call]
    client = NotebookClient(
        document,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(notebook.parent)}},
    )
    client.execute()
    for cell in document.cells:
        if cell.cell_type == "code":
            cell.outputs = list(_joined(cell.outputs))
    # What differs from machine to machine says nothing to a reader.
    document.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(document, notebook)  # type: ignore[no-untyped-call]


def _joined(outputs: list[nbformat.NotebookNode]) -> Iterator[nbformat.NotebookNode]:
    """Neighbouring pieces of one stream are one: how they were cut is a matter of time. (nbclient's own
    `coalesce_streams` moves text over the figures between.)"""
    last = None
    for output in outputs:
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            last = output
            yield output


def main(names: list[str]) -> None:
    if not os.environ.get("KERNELPOOL_TOKEN"):
        sys.exit("Start a gateway with `make serve`, and set KERNELPOOL_URL and KERNELPOOL_TOKEN as it says.")
    for notebook in [Path(name) for name in names] or demos():
        print(notebook.name, flush=True)
        execute(notebook)


if __name__ == "__main__":
    main(sys.argv[1:])
