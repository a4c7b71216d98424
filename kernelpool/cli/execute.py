"""`run` and `exec`: code in a sandbox, its output here. Exit code 0 when it succeeded, 1 when not, 130 for Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from kernelpool.cli.embedded import embedded_client
from kernelpool.cli.remote import Remote, pool_option, remote_command, session_option
from kernelpool.cli.terminal import LinePrinter, OutputPrinter, note
from kernelpool.client import Client, ClientError, Done, Event, Session
from kernelpool.client.calls import new_id

timeout_option = click.option(
    "--timeout", type=click.FloatRange(min=1), metavar="SECONDS", help="That the code may run."
)
images_option = click.option(
    "-o",
    "--output",
    "images",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Save images there.",
)


@click.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("-c", "code", metavar="CODE", help="Run this, and no file.")
@timeout_option
@images_option
@pool_option
@remote_command
@click.pass_context
def run(
    context: click.Context,
    remote: Remote,
    file: str | None,
    code: str | None,
    timeout: float | None,
    images: Path | None,
    pool: str,
) -> None:
    """Run FILE (- for stdin), or code, in a sandbox of its own that is destroyed afterwards.

    Without --url or a profile it starts a gateway for this one run; the very first run builds what sandboxes see,
    which takes a minute or two.

    \b
    kernelpool run script.py
    kernelpool run -c 'import sys; print(sys.version)'
    """
    if (code is None) == (file is None):
        raise click.UsageError("Give a FILE, or code with -c.")
    text = code if code is not None else _read(file or "-")
    with client_for(context, remote, pool, timeout) as client, client.pool(pool).session() as session:
        status = _execute(session, text, timeout, remote, images)
    raise SystemExit(status)


@click.command("exec")
@click.argument("code", required=False)
@click.option("-f", "--file", type=click.Path(exists=True, dir_okay=False, allow_dash=True), help="Code in a file.")
@session_option
@timeout_option
@images_option
@pool_option
@remote_command
def exec_(
    remote: Remote,
    code: str | None,
    file: str | None,
    identifier: str,
    timeout: float | None,
    images: Path | None,
    pool: str,
) -> None:
    """Run CODE, a file, or what comes on stdin, in a session, which keeps its variables.

    \b
    kernelpool exec -s demo-1 'x = 41'
    kernelpool exec -s demo-1 'x + 1'
    """
    if code is not None and file is not None:
        raise click.UsageError("Give code or a file, not both.")
    text = code if code not in (None, "-") else _read(file or "-")
    with remote.client() as client:
        status = _execute(client.pool(pool).session(identifier), text or "", timeout, remote, images)
    raise SystemExit(status)


@contextmanager
def client_for(context: click.Context, remote: Remote, pool: str, timeout: float | None) -> Iterator[Client]:
    """The gateway that is named, or one for this command alone, where code may run for `timeout` seconds."""
    if remote.is_named():
        with remote.client() as client:
            yield client
    else:
        with embedded_client(context, pool, timeout) as client:
            yield client


def _execute(session: Session, code: str, timeout: float | None, remote: Remote, images: Path | None) -> int:
    if remote.as_json and images is not None:
        raise click.UsageError("--json prints images as JSON; give it or -o, not both.")
    id = new_id()
    events = session.stream(code, timeout=timeout, id=id)
    printer = LinePrinter() if remote.as_json else OutputPrinter(images)
    try:
        return _show(events, printer)
    except (KeyboardInterrupt, BrokenPipeError) as error:
        # The code would run on when its stream is left, but nobody is here any more.
        with suppress(ClientError, OSError):
            session.execution(id).cancel()
            if isinstance(error, KeyboardInterrupt):
                note("canceled")
        raise


def _show(events: Generator[Event, None, None], printer: Any) -> int:
    status = 1
    with closing(events):
        for event in events:
            printer.show(event)
            if isinstance(event, Done):
                status = 0 if event.result.ok else 1
    return status


def _read(file: str) -> str:
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    return data.decode()
