"""`profile`: gateways by name, so that URLs and tokens need not be typed."""

from __future__ import annotations

import sys

import click

from kernelpool.cli.remote import json_option, told
from kernelpool.cli.terminal import print_json, print_table
from kernelpool.client import InvalidRequest
from kernelpool.client.connection import Connection
from kernelpool.client.profiles import Profile, load_profiles, profiles_file, save_profiles


@click.group()
def profile() -> None:
    """Keep the URLs and tokens of gateways under names, in ~/.config/kernelpool/profiles.toml."""


@profile.command()
@click.argument("name", default="default")
@click.option("--url", metavar="URL", required=True, help="The gateway.")
@click.option("--token", metavar="TOKEN", help="Its bearer token; asked for, or read from stdin, when it is not here.")
@json_option
def add(name: str, url: str, token: str | None, as_json: bool) -> None:
    """Add the profile NAME, or change it. The one called `default` is used when none is named."""
    if token is None:
        token = click.prompt("Token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline().strip()
    with told(as_json):
        url = Connection(url, "").url  # as a client will want it
        file = profiles_file()
        save_profiles({**load_profiles(file), name: Profile(url, token)}, file)
    _answer(as_json, f"Profile {name} added to {file}.", {"added": name, "url": url})


@profile.command("list")
@json_option
def list_(as_json: bool) -> None:
    """All profiles, without their tokens."""
    with told(as_json):
        profiles = load_profiles(profiles_file())
    if as_json:
        print_json([{"name": name, "url": each.url} for name, each in sorted(profiles.items())])
    else:
        print_table(("NAME", "URL"), [(name, each.url) for name, each in sorted(profiles.items())])


@profile.command()
@click.argument("name")
@json_option
def remove(name: str, as_json: bool) -> None:
    """Forget a profile."""
    with told(as_json):
        file = profiles_file()
        profiles = load_profiles(file)
        if profiles.pop(name, None) is None:
            raise InvalidRequest(f"there is no profile {name!r} in {file}")
        save_profiles(profiles, file)
    _answer(as_json, f"Profile {name} removed.", {"removed": name})


def _answer(as_json: bool, text: str, value: dict[str, str]) -> None:
    if as_json:
        print_json(value)
    else:
        click.echo(text)
