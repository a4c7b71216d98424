"""Which gateway a command talks to, and how it says that something went wrong: what all remote commands share."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from kernelpool.cli.terminal import clean
from kernelpool.client import Client, ClientError, InvalidRequest
from kernelpool.client.profiles import Profile, is_readable_by_others, load_profile, load_profiles, profiles_file
from kernelpool.errors import KernelpoolError

URL_VARIABLE = "KERNELPOOL_URL"
TOKEN_VARIABLE = "KERNELPOOL_TOKEN"  # noqa: S105 - a name
PROFILE_VARIABLE = "KERNELPOOL_PROFILE"
LOCAL_URL = "http://127.0.0.1:8080"
DEFAULT_PROFILE = "default"


@dataclass(frozen=True, slots=True)
class Remote:
    """What the command line says about the gateway, and about the form of answers."""

    url: str | None = None
    token: str | None = None
    profile: str | None = None
    as_json: bool = False

    def is_named(self, environment: Mapping[str, str] = os.environ) -> bool:
        """Somebody said which gateway; a token alone names none."""
        named = self.url or self.profile or environment.get(URL_VARIABLE) or environment.get(PROFILE_VARIABLE)
        return bool(named) or DEFAULT_PROFILE in load_profiles(profiles_file(environment))

    def resolve(self, environment: Mapping[str, str] = os.environ) -> Profile:
        """What stands on the command line, else in the environment, else the profile `default`, else `serve` on this
        machine. A profile's token goes to the profile's URL alone, and a token of the environment to no profile's.
        Raises `InvalidRequest`."""
        variables = {name: environment.get(name) or None for name in (URL_VARIABLE, TOKEN_VARIABLE, PROFILE_VARIABLE)}
        if self.url and self.profile:
            raise click.UsageError("--url and --profile name two gateways; give one of them.")
        url = self.url or (None if self.profile else variables[URL_VARIABLE])
        name = self.profile or variables[PROFILE_VARIABLE]
        if url is None and (name or self.is_named(environment)):
            profile = load_profile(name or DEFAULT_PROFILE, profiles_file(environment))
            return Profile(profile.url, self.token or profile.token)
        token = self.token or variables[TOKEN_VARIABLE]
        if token is None:
            raise InvalidRequest(
                "no token for the gateway",
                remedy=f"Give --token, set {TOKEN_VARIABLE}, or run `kernelpool profile add`.",
            )
        return Profile(url or LOCAL_URL, token)

    def client(self, **options: Any) -> Client:
        file = profiles_file()
        if is_readable_by_others(file) and not self.url:
            click.echo(f"Warning: others can read {file}, which holds tokens; run: chmod 600 {file}", err=True)
        profile = self.resolve()
        return Client(profile.url, profile.token, **options)


def remote_command(function: Callable[..., None]) -> Callable[..., None]:
    """A command that gets a `Remote` first, and tells errors in one line."""

    @click.option("--url", metavar="URL", help=f"The gateway.  [env: {URL_VARIABLE}; default: {LOCAL_URL}]")
    @click.option(
        "--token", metavar="TOKEN", help=f"Its bearer token; safer in the environment.  [env: {TOKEN_VARIABLE}]"
    )
    @click.option("--profile", metavar="NAME", help=f"Both from `kernelpool profile add`.  [env: {PROFILE_VARIABLE}]")
    @json_option
    @functools.wraps(function)
    def command(url: str | None, token: str | None, profile: str | None, as_json: bool, **rest: Any) -> None:
        with told(as_json):
            function(Remote(url, token, profile, as_json), **rest)

    return command


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, errors on stderr included.")
pool_option = click.option("--pool", metavar="NAME", default="python", show_default=True, help="The pool.")
session_option = click.option(
    "-s",
    "--session",
    "identifier",
    metavar="ID",
    required=True,
    help="The session; the first code, upload or list makes it.",
)


@contextmanager
def told(as_json: bool) -> Iterator[None]:
    """Errors as one line that says what is wrong and what to do, and exit code 1."""
    try:
        yield
    except ClientError as error:
        fields = {"code": error.code, "message": error.message, "remedy": error.remedy, "traceId": error.trace_id}
        _tell(as_json, {name: value for name, value in fields.items() if value is not None})
    except KernelpoolError as error:
        _tell(as_json, {"code": error.code, "message": error.message, "remedy": error.remedy})
    except UnicodeError:
        _tell(as_json, {"code": "InvalidRequest", "message": "code must be UTF-8 text"})
    except BrokenPipeError:
        raise  # click ends quietly: nobody reads any more
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _tell(as_json, {"code": type(error).__name__, "message": f"{where}{error.strerror or error}"})
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _tell(as_json: bool, error: Mapping[str, str]) -> None:
    if as_json:
        click.echo(json.dumps({"error": error}), err=True)
    else:
        message = " ".join(error["message"].split())
        stop = "" if message.endswith((".", "!", "?")) else "."
        remedy = f" {error['remedy']}" if error.get("remedy") else ""
        trace = f" (trace {error['traceId']})" if error.get("traceId") and not remedy else ""
        click.echo(clean(f"Error: {message}{stop}{remedy}{trace}", sys.stderr), err=True)
    raise SystemExit(1)
