"""`run`, `exec` and `shell`: code or a command in a sandbox, its output here. Exit code 0 when code succeeded, 1 when
not; that of a command, 124 when it was out of time; 130 for Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import click

from kernelpool.cli.remote import Remote, pool_option, remote_command, session_option
from kernelpool.cli.terminal import LinePrinter, OutputPrinter, note
from kernelpool.client import Client, ClientError, Done, Event, Result, Session
from kernelpool.client.calls import new_id

OUT_OF_TIME = 124
"""Exit code of a command that was ended, as `timeout` has it."""

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
        events = partial(session.stream, text, timeout=timeout)
        status = _execute(session, events, remote, images)
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
        session = client.pool(pool).session(identifier)
        status = _execute(session, partial(session.stream, text or "", timeout=timeout), remote, images)
    raise SystemExit(status)


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("words", metavar="COMMAND...", nargs=-1, required=True)
@click.option("-i", "--stdin", "with_stdin", is_flag=True, help="Hand over what comes on stdin.")
@click.option("-t", "--pty", is_flag=True, help="Give it a terminal. Both streams are stdout then.")
@session_option
@timeout_option
@pool_option
@remote_command
def shell(
    remote: Remote,
    words: tuple[str, ...],
    with_stdin: bool,
    pty: bool,
    identifier: str,
    timeout: float | None,
    pool: str,
) -> None:
    """Run a command in a session, beside its interpreter: one word is for bash, several are a program and its
    arguments. Exits as the command does.

    \b
    kernelpool shell -s demo-1 'ls -l | head'
    kernelpool shell -s demo-1 pip install --quiet tabulate
    """
    command = words[0] if len(words) == 1 else words
    stdin = _read("-") if with_stdin else None
    with remote.client() as client:
        session = client.pool(pool).session(identifier)
        events = partial(session.stream_shell, command, stdin=stdin, pty=pty, timeout=timeout)
        status = _execute(session, events, remote, None)
    raise SystemExit(status)


@contextmanager
def client_for(context: click.Context, remote: Remote, pool: str, timeout: float | None) -> Iterator[Client]:
    """The gateway that is named, or one for this command alone, where code may run for `timeout` seconds."""
    if remote.is_named():
        with remote.client() as client:
            yield client
    else:
        # A gateway takes a second to load, and whoever names one has no need of it.
        from kernelpool.cli.embedded import embedded_client  # noqa: PLC0415

        with embedded_client(context, pool, timeout) as client:
            yield client


def _execute(
    session: Session, begin: Callable[..., Generator[Event, None, None]], remote: Remote, images: Path | None
) -> int:
    if remote.as_json and images is not None:
        raise click.UsageError("--json prints images as JSON; give it or -o, not both.")
    id = new_id()
    events = begin(id=id)
    printer = LinePrinter() if remote.as_json else OutputPrinter(images)
    try:
        return _show(events, printer)
    except (KeyboardInterrupt, BrokenPipeError) as error:
        # It would run on when its stream is left, but nobody is here any more.
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
                status = _status_of(event.result)
    return status


def _status_of(result: Result) -> int:
    if result.exit_code is not None:
        return result.exit_code
    is_late = "exitCode" in result.raw.get("result", {}) and result.cause == "timed_out"
    return 0 if result.ok else OUT_OF_TIME if is_late else 1


def _read(file: str) -> str:
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    return data.decode()
