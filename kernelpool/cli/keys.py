"""`kernelpool keys`: API keys, made, listed and revoked on the machine of the gateway, while it runs."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click
from pydantic import ValidationError

from kernelpool.auth.keys import KeyRecord, KeyStore
from kernelpool.auth.principal import DEFAULT_TENANT, Role
from kernelpool.config import Settings
from kernelpool.errors import KernelpoolError

_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_MAX_SECONDS = 100 * 365 * 86400


def _seconds(context: click.Context, parameter: click.Parameter, value: str) -> float | None:
    """`90d`, `12h`; None for `never`."""
    if value == "never":
        return None
    match = re.fullmatch(r"(\d{1,9})([mhdw])", value, re.ASCII)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < seconds <= _MAX_SECONDS:
        raise click.BadParameter(f"{value!r} is no duration; write for example 30d, 12h, 15m, or never")
    return float(seconds)


@click.group()
def keys() -> None:
    """Make, list and revoke API keys. A running gateway follows within a second.

    Run it as the user that the gateway runs as, with the same settings or --state-dir.
    """


@keys.command()
@click.argument("name")
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="Whose sessions it sees and uses.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice([role.value for role in Role]),
    default=[Role.EXECUTOR.value],
    show_default=True,
    help="What it may do: see (viewer), use sessions (executor), manage pools (admin). Can be repeated.",
)
@click.option("--pool", "pools", multiple=True, help="A pool that it may enter. Can be repeated; all, without it.")
@click.option(
    "--expires", "seconds", callback=_seconds, default="90d", show_default=True, help="How long it works, or never."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@click.pass_context
def create(
    context: click.Context,
    name: str,
    tenant: str,
    roles: tuple[str, ...],
    pools: tuple[str, ...],
    seconds: float | None,
    as_json: bool,
) -> None:
    """Make the key NAME and print it, this once."""
    with _faults():
        record, text = _store(context).create(
            name,
            tenant=tenant,
            roles=frozenset(map(Role, roles)),
            pools=frozenset(pools) or None,
            seconds=seconds,
        )
    if as_json:
        click.echo(json.dumps({**_describe(record), "key": text}))
        return
    click.echo(_line(record), err=True)
    click.echo("It is shown only now:", err=True)
    click.echo(text)


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@click.pass_context
def list_keys(context: click.Context, as_json: bool) -> None:
    """Show the keys that have not been revoked, without their secrets."""
    with _faults():
        contents = _store(context).load()
    records = sorted(contents.records.values(), key=lambda record: record.name)
    if as_json:
        click.echo(json.dumps([_describe(record) for record in records]))
    else:
        for record in records:
            click.echo(_line(record))
    for file in sorted(contents.corrupt):
        click.echo(f"{file} cannot be read: its key is refused. Remove the file.", err=True)


@keys.command()
@click.argument("id_or_name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@click.pass_context
def revoke(context: click.Context, id_or_name: str, as_json: bool) -> None:
    """End the key ID_OR_NAME for good. What it has started goes on."""
    with _faults():
        record = _store(context).revoke(id_or_name)
    click.echo(json.dumps(_describe(record)) if as_json else f"key {record.name} ({record.id}) is revoked")


def _store(context: click.Context) -> KeyStore:
    config, common = context.obj
    return KeyStore(Settings.load(config, os.environ, common).state_dir)


@contextmanager
def _faults() -> Iterator[None]:
    """Errors as sentences."""
    try:
        yield
    except ValidationError as error:
        faults = (f"{fault['loc'][0]} {fault['input']!r}: {fault['msg']}" for fault in error.errors(include_url=False))
        raise click.ClickException("; ".join(faults)) from error
    except KernelpoolError as error:
        raise click.ClickException(error.message) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from error


def _describe(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "tenant": record.tenant,
        "roles": sorted(record.roles),
        "pools": None if record.pools is None else sorted(record.pools),
        "createdAt": _timestamp(record.created_at),
        "expiresAt": None if record.expires_at is None else _timestamp(record.expires_at),
        "expired": record.is_expired(time.time()),
    }


def _line(record: KeyRecord) -> str:
    pools = "all pools" if record.pools is None else "pools " + ", ".join(sorted(record.pools))
    roles = ", ".join(sorted(record.roles))
    return f"{record.name} ({record.id}): {roles} in {pools}, tenant {record.tenant}, {_end(record)}"


def _end(record: KeyRecord) -> str:
    if record.expires_at is None:
        return "never expires"
    return f"{'EXPIRED' if record.is_expired(time.time()) else 'expires'} {_timestamp(record.expires_at)}"


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
