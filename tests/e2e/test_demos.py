"""The demos of notebooks/: each runs whole against a real gateway, and shows what is stored in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest

from kernelpool.client import Client
from tests.e2e.gateways import TOKEN, Gateway

FOLDER = Path(__file__).parents[2] / "notebooks"
DEMOS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 240

# What a reader of a demo is to see in a cell, as its text or as an image.
SHOWN = {
    "01_stateful_sessions": {
        "state-set": "285",
        "state-result": "IndexError",
        "wire": "'executionResult': 9",
        "files": "Roman\nKepler",
        "images": "image/png",
        "stream": "step 2 of 3\nstep 3 of 3\ndone: succeeded 3",
        "timeout": "failed | timed_out | 'this is kept\\n'\ninterrupted: True | kernel restarted: False",
        "cancel": "'canceled', 'started'",
        "crash": """failed | kernel_died | 'the last words\\n'
numbers are there: False
said once: the kernel crashed (SIGSEGV)
files: ['sorted.txt', 'telescopes.txt']""",
        "apart": "secret in the other: False\nfiles of the other: []\nnetwork: OSError\nprocesses: True",
        "end": "SessionNotFound",
    },
    "02_travel_agent": {
        "setup": "code runs in: Sandbox\nanswers come from: Recorded",
        "first-run": "15.8 °C on average, rain on 4 of 7 days",
        "ask": "attempt 1: KeyError: 'temperature_max'\nchart code, attempt 2: it ran",
        "answer": "Take Lisbon",
        "chart": "image/png",
        "check": "['line 1 imports subprocess']",
        "nosy": "[]",
        "compare": """--- a process of this machine
keys in the environment: OPENAI_API_KEY=a-decoy
private key in the home directory: a decoy of a private key
files of this project: there
the gateway's port: reached
--- a sandbox
keys in the environment: none
private key in the home directory: none
files of this project: not there
the gateway's port: no way there""",
    },
    "03_jupyter_clients": {
        "connect": "('python', 'Python 3 (python)', 'python')",
        "rest-made": "('python', 'idle', 0)",
        "gateway-manager": "True",
        "nbclient": "image/png",
        "back": "3.50 on average",
        "who": """jupyter  total = sum(prices.values())
jupyter  import pandas as pd
jupyter  import os
rest     f'{total""",
        "end": "False",
    },
    "04_csv_analysis": {
        "read": "count        362.0  365.0    365.0",
        "clean": "2025-07-05     1180",
        "ask-weekend": "269 rentals on a workday, 203 at a weekend",
        "figure": "image/png",
        "download": "%PDF",
        "result": "2025-08-01,12072,389.4",
        "notebook": "[1] import pandas as pd\n[2] print(rentals",
        "again": "cells executed: 6 | without an error: True\nthe same result: True",
    },
}


@dataclass(frozen=True)
class Demo:
    name: str
    stored: Any
    executed: Any


def execute(folder: Path, name: str, gateway: Gateway, **environment: str) -> Any:
    """The notebook after the command by which its outputs are stored, on a copy in `folder`."""
    copy = shutil.copytree(FOLDER, folder / "notebooks", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("KERNELPOOL_", "OPENAI_"))}
    gateway_of = {"KERNELPOOL_URL": url_of(gateway), "KERNELPOOL_TOKEN": TOKEN}
    done = subprocess.run(
        [sys.executable, "notebooks/execute.py", f"notebooks/{name}.ipynb"],
        env={**ours, **gateway_of, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return read(copy / f"{name}.ipynb")


def url_of(gateway: Gateway) -> str:
    return gateway.endpoint.removesuffix("/pools/python")


def read(file: Path) -> Any:
    return nbformat.read(file, as_version=nbformat.NO_CONVERT)  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module", params=[demo.stem for demo in DEMOS])
def demo(request: pytest.FixtureRequest, gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    name: str = request.param
    return Demo(name, read(FOLDER / f"{name}.ipynb"), execute(tmp_path_factory.mktemp(name), name, gateway))


def shown(notebook: Any) -> dict[str, list[tuple[str, str]]]:
    """Of each cell the kinds of its outputs with their texts, without what differs from run to run."""
    return {cell.id: list(_shown(cell.outputs)) for cell in notebook.cells if cell.cell_type == "code"}


def _shown(outputs: Any) -> Iterator[tuple[str, str]]:
    for output in outputs:
        if output.output_type == "stream":
            yield output.name, _normal(output.text)
        elif output.output_type == "error":
            yield "error", output.ename
        else:
            for kind, value in sorted(output.data.items()):
                yield kind, _normal(value) if kind.startswith("text/") else ""


def _normal(text: str) -> str:
    text = re.sub(r"\b[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}\b", "<id>", text)
    text = re.sub(r"127\.0\.0\.1:\d+", "<gateway>", text)
    return re.sub(r"\b\d+(\.\d+)? (ms|s)\b", "<time>", text)


@pytest.mark.timeout(2 * SECONDS)
def test_a_demo_shows_what_is_stored_in_it(demo: Demo) -> None:
    assert shown(demo.executed) == shown(demo.stored), "run: make demos"
    assert demo.executed.metadata == demo.stored.metadata


@pytest.mark.timeout(2 * SECONDS)
def test_a_demo_shows_what_its_reader_is_to_see(demo: Demo) -> None:
    cells = shown(demo.executed)

    for id, wanted in SHOWN[demo.name].items():
        outputs = cells[id]
        assert any(wanted in text for _, text in outputs) or wanted in [kind for kind, _ in outputs], (id, outputs)
    assert not [id for id, outputs in cells.items() for kind, _ in outputs if kind in ("error", "stderr")]


@pytest.mark.timeout(2 * SECONDS)
def test_a_demo_leaves_no_session(demo: Demo, gateway: Gateway) -> None:
    with Client(url_of(gateway), TOKEN) as client:
        identifiers = [session.identifier for session in client.sessions("python")]

    assert not [each for each in identifiers if re.match(r"tour-|travel-|csv-|jupyter-", each)]


@pytest.mark.parametrize("file", DEMOS, ids=lambda file: file.stem)
def test_a_demo_is_a_notebook_that_stays_the_same(file: Path) -> None:
    notebook = read(file)

    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    ids = [cell.id for cell in notebook.cells]
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", id) for id in ids), "ids with a meaning stay when a cell is moved"
    assert len(set(ids)) == len(ids)
    # As `nbformat.write` does it, so that executing it again changes only what is new.
    assert file.read_text() == nbformat.writes(notebook) + "\n"  # type: ignore[no-untyped-call]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


@pytest.mark.parametrize("file", DEMOS, ids=lambda file: file.stem)
def test_a_demo_holds_nothing_of_the_machine_that_stored_it(file: Path) -> None:
    text = "\n".join(_strings(json.loads(file.read_text())))

    assert "make serve" in text
    assert not re.findall(r"/(?:home|root|Users|var|opt|tmp|usr)/[^\s\"']*", text)
    assert not re.findall(r"(?:127\.0\.0\.1|localhost):(?!8080\b)\d+", text)
    assert not re.findall(r"(?i)bearer (?!\$|\{token)\S+|\b[\w-]{40,}\b|at 0x[0-9a-f]+", text)
    assert "\x1b" not in text


def _strings(value: Any) -> Iterator[str]:
    """All of a notebook but its images."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from ("".join(value),) if all(isinstance(each, str) for each in value) else ()
        for each in value:
            yield from () if isinstance(each, str) else _strings(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from () if key.startswith("image/") else _strings(each)


def test_every_demo_is_in_the_list() -> None:
    listed = re.findall(r"\]\((\w+)\.ipynb\)", (FOLDER / "README.md").read_text())

    assert listed == [file.stem for file in DEMOS] == list(SHOWN)


@pytest.mark.timeout(2 * SECONDS)
def test_the_agent_runs_in_a_local_process_only_when_asked_to(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()

    executed = shown(
        execute(
            tmp_path, "02_travel_agent", gateway, SANDBOX="False", HOME=str(tmp_path / "home"), TMPDIR=str(tmp_path)
        )
    )

    stored = shown(read(FOLDER / "02_travel_agent.ipynb"))
    assert executed.pop("setup") == [("stdout", "code runs in: LocalProcess\nanswers come from: Recorded\n")]
    assert executed == {id: outputs for id, outputs in stored.items() if id != "setup"}


def test_what_a_demo_needs_is_said(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "KERNELPOOL_TOKEN"}

    done = subprocess.run([sys.executable, FOLDER / "execute.py"], env=environment, capture_output=True, text=True)

    assert done.returncode == 1
    assert "make serve" in done.stderr
