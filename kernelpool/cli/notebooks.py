"""`notebook`: run one in a sandbox, or save what a session ran as one. Exit code 1 when a cell failed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kernelpool.cli.execute import client_for, timeout_option
from kernelpool.cli.remote import Remote, pool_option, remote_command
from kernelpool.cli.terminal import clean, note, print_json
from kernelpool.client import CellEvent, CellState, NotebookResult, Session
from kernelpool.client.transfers import Destination
from kernelpool.errors import InvalidNotebook
from kernelpool.notebooks.reading import Notebook, parse, read_notebook
from kernelpool.notebooks.running import runnable
from kernelpool.notebooks.writing import file_text

output_option = click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Where to write it; stdout without one.",
)


@click.group()
def notebook() -> None:
    """Run notebooks in sandboxes, and save what sessions ran as notebooks."""


@notebook.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True), metavar="IN.ipynb")
@output_option
@click.option("-p", "--parameter", "parameters", multiple=True, metavar="NAME=VALUE", help="Put into it; JSON or text.")
@click.option("--allow-errors", is_flag=True, help="Go on after cells that raise.")
@click.option("--cell-timeout", type=click.IntRange(min=1), metavar="SECONDS", help="That one cell may run.")
@timeout_option
@click.option("-s", "--session", "identifier", metavar="ID", help="Run in this session, which stays.")
@pool_option
@remote_command
@click.pass_context
def run(
    context: click.Context,
    remote: Remote,
    file: str,
    output: str | None,
    parameters: tuple[str, ...],
    allow_errors: bool,
    cell_timeout: int | None,
    timeout: float | None,
    identifier: str | None,
    pool: str,
) -> None:
    """Run a notebook in a sandbox of its own, and write it with its outputs, whether its cells raise or not.

    Without --url or a profile it starts a gateway for this one run, as `kernelpool run` does. --timeout is for all
    cells together.

    \b
    kernelpool notebook run report.ipynb -o done.ipynb
    kernelpool notebook run report.ipynb -o done.ipynb -p city=Lisbon -p days=3
    """
    if remote.as_json and output in (None, "-"):
        raise click.UsageError("--json prints how it went on stdout; write the notebook to a file with -o.")
    sent = _read(file)
    options = {
        "parameters": dict(map(_parameter, parameters)),
        "timeout": timeout,
        "cell_timeout": cell_timeout,
        "stop_on_error": not allow_errors,
    }
    longest = cell_timeout or timeout
    with client_for(context, remote, pool, longest) as client, client.pool(pool).session(identifier) as session:
        result = _run(session, sent, options, quiet=remote.as_json)
    _write(result.notebook, output)
    _tell(result, output, as_json=remote.as_json)
    raise SystemExit(0 if result.ok else 1)


@notebook.command()
@click.argument("identifier", metavar="SESSION")
@output_option
@pool_option
@remote_command
def export(remote: Remote, identifier: str, output: str | None, pool: str) -> None:
    """Save what SESSION ran, whoever asked for it, as a notebook with outputs.

    \b
    kernelpool notebook export demo-1 -o demo.ipynb
    """
    if remote.as_json and output in (None, "-"):
        raise click.UsageError("--json prints how it went on stdout; write the notebook to a file with -o.")
    with remote.client() as client:
        made = client.pool(pool).session(identifier).notebook()
    _write(made, output)
    if remote.as_json:
        print_json({"output": output, "cells": len(made["cells"])})


def _read(file: str) -> Notebook:
    """Raises `InvalidNotebook`: what is none is told before a sandbox is started."""
    raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    return read_notebook(parse(raw))


def _parameter(text: str) -> tuple[str, Any]:
    """`days=3` is a number, `city=Lisbon` a text: what is no JSON is itself."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidNotebook(f"the parameter {text[:40]!r} must be NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _run(session: Session, sent: Notebook, options: Mapping[str, Any], *, quiet: bool) -> NotebookResult:
    with _progress(sent, wanted=not quiet) as on_cell:
        return session.run_notebook(sent, on_cell=on_cell, **options)


@contextmanager
def _progress(sent: Notebook, *, wanted: bool) -> Iterator[Callable[[CellEvent], None]]:
    """A bar on stderr, for who looks at it: how many cells are done, and the first line of the one that runs."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not (wanted and sys.stderr.isatty())) as bar:
        task = bar.add_task("", total=sum(1 for _ in runnable(sent)))

        def on_cell(event: CellEvent) -> None:
            if isinstance(event, CellState) and event.state.is_final:
                bar.advance(task)
            elif isinstance(event, CellState) and event.index < len(sent["cells"]):
                lines = sent["cells"][event.index]["source"].strip().splitlines()
                bar.update(task, description=clean(lines[0][:60] if lines else "", sys.stderr))

        yield on_cell


def _write(made: Mapping[str, Any], output: str | None) -> None:
    text = file_text(made)
    if output in (None, "-"):
        click.echo(text, nl=False)
        return
    destination, complete = Destination(output or ""), False
    destination.open()
    try:
        destination.write(text.encode())
        complete = True
    finally:
        destination.close(complete=complete)


def _tell(result: NotebookResult, output: str | None, *, as_json: bool) -> None:
    facts = {"ok": result.ok, "executed": result.executed, "cell": result.cell, "cause": result.cause}
    if as_json:
        print_json({**facts, "message": result.message, "output": output})
    elif not result.ok:
        note(f"cell {result.cell} failed: {result.message}")
