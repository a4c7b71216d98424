"""`pools`: the pools of a gateway, and their settings."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import click

from kernelpool.cli.remote import Remote, remote_command
from kernelpool.cli.terminal import print_json, print_table
from kernelpool.client import PoolInfo

settings_argument = click.argument("settings", nargs=-1, metavar="[SETTING=VALUE]...")
file_option = click.option(
    "-f", "--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Settings in TOML, as a table."
)


image_option = click.option("--image", help="Of custom containers: what their sandboxes run, on the docker backend.")
port_option = click.option("--target-port", type=click.IntRange(1, 65535), help="Port that the image's server is on.")


@click.group()
def pools() -> None:
    """See and change the pools of a gateway."""


@pools.command("list")
@remote_command
def list_(remote: Remote) -> None:
    """All pools, with their sandboxes now."""
    with remote.client() as client:
        found = client.pools()
    if remote.as_json:
        print_json([pool.raw for pool in found])
    else:
        columns = ("NAME", "RUNTIME", "READY", "STARTING", "SESSIONS", "MAX")
        print_table(columns, [(p.name, p.runtime, p.ready, p.starting, p.sessions, p.max_sessions) for p in found])


@pools.command()
@click.argument("name")
@remote_command
def show(remote: Remote, name: str) -> None:
    """One pool: its numbers, limits and settings."""
    with remote.client() as client:
        _show(remote, client.pool(name).info())


@pools.command()
@click.argument("name")
@settings_argument
@file_option
@image_option
@port_option
@remote_command
def create(
    remote: Remote, name: str, settings: tuple[str, ...], file: Path | None, image: str | None, target_port: int | None
) -> None:
    """Make a pool, or give the one of that name these settings; those not said get their defaults.

    \b
    kernelpool pools create big ready=4 max_sessions=20 limits.memory=4Gi
    kernelpool pools create app --image registry.example.com/app:1 --target-port 8080
    kernelpool pools create pip egress=pypi.org,files.pythonhosted.org
    """
    values = with_container(parse_settings(settings, file), image, target_port)
    with remote.client() as client:
        _show(remote, client.create_pool(name, values))


@pools.command()
@click.argument("name")
@settings_argument
@file_option
@image_option
@port_option
@remote_command
def update(
    remote: Remote, name: str, settings: tuple[str, ...], file: Path | None, image: str | None, target_port: int | None
) -> None:
    """Change some settings of a pool. Sessions that are alive keep what they have."""
    values = with_container(parse_settings(settings, file), image, target_port, is_new=False)
    if not values:
        raise click.UsageError("Say what to change: SETTING=VALUE, or --file.")
    with remote.client() as client:
        _show(remote, client.update_pool(name, values))


@pools.command()
@click.argument("name")
@click.confirmation_option(prompt="This ends all sessions of the pool. Go on?", help="Do not ask.")
@remote_command
def delete(remote: Remote, name: str) -> None:
    """Delete a pool, with all its sessions."""
    with remote.client() as client:
        client.delete_pool(name)
    if remote.as_json:
        print_json({"deleted": name})


def parse_settings(pairs: tuple[str, ...], file: Path | None) -> dict[str, Any]:
    """`limits.memory=4Gi` is `{"limits": {"memory": "4Gi"}}`. What reads as JSON is that, anything else is text."""
    try:
        values: dict[str, Any] = tomllib.loads(file.read_text()) if file else {}
    except ValueError as error:
        raise click.UsageError(f"{file}: {error}") from None
    for pair in pairs:
        name, equals, text = pair.partition("=")
        *parents, last = name.split(".")
        table: Any = values
        for parent in parents:
            table = table.setdefault(parent, {})
        if not equals or not all((*parents, last)) or not isinstance(table, dict):
            raise click.UsageError(f"{pair!r} is not of the form setting=value.")
        table[last] = _value(text)
    return values


def with_container(
    values: dict[str, Any], image: str | None, target_port: int | None, *, is_new: bool = True
) -> dict[str, Any]:
    """The options are short for settings, which win over nothing: said twice is refused."""
    given = {name: value for name, value in (("image", image), ("target_port", target_port)) if value is not None}
    if not given:
        return values
    container = values.setdefault("container", {})
    if not isinstance(container, dict) or given.keys() & container.keys():
        raise click.UsageError(f"{' and '.join(given)}: said as an option, and in container as well.")
    container |= given
    return {**({"backend": "docker"} if is_new else {}), **values}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _show(remote: Remote, pool: PoolInfo) -> None:
    if remote.as_json:
        print_json(pool.raw)
        return
    rows: list[tuple[str, object]] = [(name, value) for name, value in pool.raw.items() if name != "settings"]
    print_table(("POOL", ""), rows)
    if pool.settings:
        click.echo()
        print_table(("SETTING", ""), _flat(pool.settings))


def _flat(values: Any, prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, value in values.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return rows
