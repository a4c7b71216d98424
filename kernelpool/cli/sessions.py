"""`sessions`: who has a sandbox now, and since when."""

from __future__ import annotations

from datetime import datetime

import click

from kernelpool.cli.remote import Remote, pool_option, remote_command
from kernelpool.cli.terminal import print_json, print_table
from kernelpool.client import SessionInfo

_COLUMNS = ("IDENTIFIER", "CREATED", "LAST USED", "EXPIRES", "EGRESS")


@click.group()
def sessions() -> None:
    """See and stop the sessions of a pool."""


@sessions.command("list")
@pool_option
@remote_command
def list_(remote: Remote, pool: str) -> None:
    """All sessions that are alive, the oldest first."""
    with remote.client() as client:
        found = client.sessions(pool)
    if remote.as_json:
        print_json([session.raw for session in found])
    else:
        print_table(_COLUMNS, [_row(session) for session in found])


@sessions.command()
@click.argument("identifier")
@pool_option
@remote_command
def show(remote: Remote, identifier: str, pool: str) -> None:
    """One session."""
    with remote.client() as client:
        session = client.pool(pool).session(identifier).info()
    if remote.as_json:
        print_json(session.raw)
    else:
        print_table(_COLUMNS, [_row(session)])


@sessions.command()
@click.argument("identifiers", nargs=-1, required=True, metavar="IDENTIFIER...")
@pool_option
@remote_command
def stop(remote: Remote, identifiers: tuple[str, ...], pool: str) -> None:
    """End sessions, with all that runs in them; their variables and files are gone."""
    with remote.client() as client:
        for identifier in identifiers:
            session = client.pool(pool).session(identifier)
            session.info()  # a mistyped one is told, where `stop` alone would be content
            session.stop()
    if remote.as_json:
        print_json({"stopped": list(identifiers)})


def _row(session: SessionInfo) -> tuple[str, ...]:
    times = (session.created_at, session.last_accessed_at, session.expires_at)
    return (session.identifier, *map(_local, times), " ".join(session.domains) or session.egress)


def _local(time: datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
