"""Profiles: gateways by name, with their URLs and tokens, in a file that only its owner may read.

[default]
url = "http://127.0.0.1:8080"
token = "…"
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kernelpool.client.errors import InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_VALUE = re.compile(r"[!-~]{1,16384}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Profile:
    url: str
    token: str = field(repr=False)


def profiles_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the XDG specification says."""
    base = environment.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "kernelpool" / "profiles.toml"


def load_profile(name: str, file: Path | None = None) -> Profile:
    """Raises `InvalidRequest`."""
    file = file or profiles_file()
    profiles = load_profiles(file)
    if name not in profiles:
        there = f"only {', '.join(sorted(profiles))}" if profiles else "nor any other"
        raise InvalidRequest(f"there is no profile {name!r} in {file}, {there}", remedy="Run `kernelpool profile add`.")
    return profiles[name]


def load_profiles(file: Path) -> dict[str, Profile]:
    """None when there is no file. Raises `InvalidRequest`, never with what is in it."""
    try:
        tables = tomllib.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not TOML"
        raise InvalidRequest(f"{file} cannot be read: {why}") from None
    profiles = {}
    for name, table in tables.items():
        url, token = (table.get(key) if isinstance(table, dict) else None for key in ("url", "token"))
        if not (isinstance(url, str) and isinstance(token, str) and _VALUE.fullmatch(token)):
            raise InvalidRequest(f"{file}: profile {name!r} needs a url and a token")
        profiles[name] = Profile(url, token)
    return profiles


def save_profiles(profiles: Mapping[str, Profile], file: Path) -> None:
    """The whole file anew, readable for its owner alone. Raises `InvalidRequest` for what cannot stand in it."""
    for name, profile in profiles.items():
        if not _NAME.fullmatch(name):
            raise InvalidRequest(f"the name of a profile is 1 to 64 of A-Z a-z 0-9 _ -, not {name!r}")
        if not (_VALUE.fullmatch(profile.url) and _VALUE.fullmatch(profile.token)):
            raise InvalidRequest("URL and token must not hold spaces or other than ASCII characters")
    # Strings of visible ASCII characters are the same in JSON and in TOML.
    lines = [
        f"[{name}]\nurl = {json.dumps(profile.url)}\ntoken = {json.dumps(profile.token)}\n"
        for name, profile in sorted(profiles.items())
    ]
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = file.with_name(f".{uuid.uuid4().hex}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write("\n".join(lines))
    scratch.replace(file)


def is_readable_by_others(file: Path) -> bool:
    try:
        return bool(file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
    except OSError:
        return False
