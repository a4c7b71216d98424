"""EgressPolicy: what a sandbox may reach outside of itself. A pure value: nothing, the outside network, or domains.

Written in settings and records as `false`, `true` or a list: `pypi.org`, `*.pythonhosted.org` for every name below
it, `example.com:8443` for a port besides 80 and 443. Kept in one spelling, so that equal policies are equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

DEFAULT_PORTS: Final = (80, 443)
MAX_DOMAINS: Final = 200
_MAX_NAME: Final = 253
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# What programs take for an IPv4 address when it ends a name: decimal, octal or hexadecimal.
_NUMBER: Final = re.compile(r"\d+|0x[0-9a-f]*")
_PORT: Final = re.compile(r"[1-9]\d{0,4}")


def host_name(text: str) -> str:
    """A name of the DNS as policies compare them: ASCII, lower case, no dot at the end.

    Raises `ValueError` for anything else: an address in any notation, a name of a single label, or more than DNS takes.
    """
    if len(text) > _MAX_NAME + 1:
        raise ValueError(f"{text[:40]!r}… is longer than a name of the DNS")
    name = text.lower().removesuffix(".")
    if not name.isascii():
        import idna  # noqa: PLC0415 - policies are also read where there is nothing but the standard library

        try:
            name = idna.encode(name, uts46=True).decode()
        except idna.IDNAError:
            raise ValueError(f"{text!r:.80} is no name of the DNS") from None
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]) or text.startswith("["):
        raise ValueError(f"{text!r:.80} is an address; only names can be allowed")
    if len(name) > _MAX_NAME or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError(f"{text!r:.80} is no name of the DNS")
    if len(labels) < 2:
        raise ValueError(f"{text!r:.80} is a single label; only whole names can be allowed, such as example.com")
    return name


@dataclass(frozen=True, slots=True, order=True)
class Domain:
    """One entry of a list."""

    name: str
    below: bool = False
    """Every name below it, at any depth, and not the name itself: `*.name`."""
    port: int | None = None
    """None is 80 and 443."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises `ValueError`, saying what is wrong."""
        name, colon, port = text.strip().partition(":")
        if colon and not (_PORT.fullmatch(port) and int(port) <= 65535):
            raise ValueError(f"{text!r:.80} is no domain; write for example pypi.org, *.pythonhosted.org, a.org:8443")
        below = name.startswith("*.")
        return cls(host_name(name.removeprefix("*.")), below, int(port) if colon else None)

    def __str__(self) -> str:
        return f"{'*.' if self.below else ''}{self.name}{f':{self.port}' if self.port else ''}"

    @property
    def ports(self) -> tuple[int, ...]:
        return DEFAULT_PORTS if self.port is None else (self.port,)

    def allows(self, name: str, port: int) -> bool:
        """`name` as `host_name` gives it."""
        return port in self.ports and self._has(name)

    def covers(self, other: Self, port: int) -> bool:
        """Whether all that the other one names at this port is named by this one."""
        if port not in self.ports:
            return False
        if other.below:
            return self.below and (other.name == self.name or self._has(other.name))
        return self._has(other.name)

    def _has(self, name: str) -> bool:
        return name.endswith(f".{self.name}") if self.below else name == self.name


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """True when anything at all may be reached."""

    mode: Literal["none", "outside", "domains"] = "none"
    domains: tuple[Domain, ...] = ()
    """Sorted, each once; empty but for the mode "domains"."""

    @classmethod
    def of(cls, setting: bool | Iterable[str]) -> Self:
        """Of what settings and records say. No domain is nothing. Raises `ValueError`, naming what is wrong."""
        if isinstance(setting, bool):
            return cls("outside" if setting else "none")
        if isinstance(setting, str):
            raise ValueError(f"{setting!r:.80} is no list of domains")
        domains = tuple(sorted({Domain.parse(text) for text in setting}, key=str))
        if len(domains) > MAX_DOMAINS:
            raise ValueError(f"{len(domains)} domains are more than the {MAX_DOMAINS} that a policy may have")
        return cls("domains", domains) if domains else cls()

    def __bool__(self) -> bool:
        return self.mode != "none"

    def __str__(self) -> str:
        return ", ".join(self.names) if self.domains else self.mode

    @property
    def names(self) -> tuple[str, ...]:
        """The domains as they are written."""
        return tuple(map(str, self.domains))

    @property
    def setting(self) -> bool | list[str]:
        """`of` makes the same policy of it, and JSON can say it."""
        return list(self.names) if self.domains else self.mode == "outside"

    def describe(self) -> dict[str, Any]:
        """As callers are shown it."""
        return {"mode": self.mode, "domains": list(self.names)}

    def allows(self, name: str, port: int) -> bool:
        """Whether the name is on the list. What it stands for is for others to check. `name` as of `host_name`."""
        return any(domain.allows(name, port) for domain in self.domains)

    def covers(self, other: Self) -> bool:
        """Whether this one is as wide as the other: all that the other lets through, this one does."""
        if not other or self.mode == "outside":
            return True
        if not self or other.mode == "outside":
            return False
        return all(
            any(ours.covers(theirs, port) for ours in self.domains) for theirs in other.domains for port in theirs.ports
        )


NOTHING: Final = EgressPolicy()
OUTSIDE: Final = EgressPolicy("outside")
