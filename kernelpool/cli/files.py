"""`files`: into and out of the workspace of a session, /mnt/data."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast

import click

from kernelpool.cli.remote import Remote, pool_option, remote_command, session_option
from kernelpool.cli.terminal import Counted, print_json, print_table, progress_bar
from kernelpool.client import FileInfo, Files
from kernelpool.client.transfers import Destination


@click.group()
def files() -> None:
    """See, put, get and remove the files of a session."""


@files.command()
@click.argument("path", default="")
@click.option("-r", "--recursive", is_flag=True, help="Directories with all that is in them.")
@session_option
@pool_option
@remote_command
def ls(remote: Remote, path: str, recursive: bool, identifier: str, pool: str) -> None:
    """List PATH, or everything at the top of /mnt/data."""
    with remote.client() as client:
        found = client.pool(pool).session(identifier).files.list(path, recursive=recursive)
    if remote.as_json:
        print_json([_as_json(file) for file in found])
    else:
        print_table(("SIZE", "MODIFIED", "NAME"), [_row(file) for file in found])


@files.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.argument("name", required=False)
@session_option
@pool_option
@remote_command
def put(remote: Remote, source: str, name: str | None, identifier: str, pool: str) -> None:
    """Upload SOURCE (- for stdin), as NAME or under its own.

    \b
    kernelpool files put -s demo-1 data.csv
    tar c src | kernelpool files put -s demo-1 - src.tar
    """
    if source == "-" and name is None:
        raise click.UsageError("What comes on stdin needs a NAME.")
    if name is not None and name.endswith("/"):
        name += Path(source).name
    with remote.client() as client:
        stored = _put(client.pool(pool).session(identifier).files, source, name, quiet=remote.as_json)
    if remote.as_json:
        print_json(_as_json(stored))


@files.command()
@click.argument("name")
@click.argument("to", required=False, type=click.Path(allow_dash=True))
@session_option
@pool_option
@remote_command
def get(remote: Remote, name: str, to: str | None, identifier: str, pool: str) -> None:
    """Download NAME to a file or directory (- for stdout), or to this directory."""
    target = Path(to) if to else Path(name.rstrip("/").rpartition("/")[2])
    target = target / name.rpartition("/")[2] if target.is_dir() else target
    with remote.client() as client:
        files = client.pool(pool).session(identifier).files
        size = files.info(name).size
        if to == "-":
            files.download(name, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            return
        _get(files, name, target, size, quiet=remote.as_json)
    if remote.as_json:
        print_json({"path": str(target), "size": target.stat().st_size})


@files.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@session_option
@pool_option
@remote_command
def rm(remote: Remote, names: tuple[str, ...], identifier: str, pool: str) -> None:
    """Delete files, and directories with all that is in them."""
    with remote.client() as client:
        for name in names:
            client.pool(pool).session(identifier).files.delete(name)
    if remote.as_json:
        print_json({"deleted": list(names)})


def _put(files: Files, source: str, name: str | None, *, quiet: bool) -> FileInfo:
    if source == "-":
        return files.upload(sys.stdin.buffer, name)
    path = Path(source)
    with progress_bar(wanted=not quiet) as progress, progress.open(path, "rb", description=path.name) as file:
        # It reads and seeks like the file that it wraps.
        return files.upload(cast("IO[bytes]", file), name or path.name)


def _get(files: Files, name: str, target: Path, size: int, *, quiet: bool) -> None:
    with progress_bar(wanted=not quiet) as progress:
        files.download(name, target) if quiet else _counted(files, name, target, progress, size)


def _counted(files: Files, name: str, target: Path, progress: Any, size: int) -> None:
    destination, complete = Destination(target), False
    destination.open()
    try:
        files.download(name, cast("IO[bytes]", Counted(destination, progress, target.name, size)))
        complete = True
    finally:
        destination.close(complete=complete)


def _as_json(file: FileInfo) -> dict[str, Any]:
    modified = datetime.fromtimestamp(file.modified_at).astimezone().isoformat()
    kind = "directory" if file.is_directory else "file"
    return {"path": file.path, "type": kind, "size": file.size, "modifiedAt": modified}


def _row(file: FileInfo) -> tuple[str, str, str]:
    modified = datetime.fromtimestamp(file.modified_at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return ("-" if file.is_directory else str(file.size), modified, file.path + ("/" if file.is_directory else ""))
