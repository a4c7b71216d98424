"""What the proxy decides of a connection, and how the gateway hears of it: one JSON message each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final, Self

MAX_MESSAGE: Final = 128 << 10
"""Bytes of one message, either way. A policy of names at their longest takes half of it."""
_LONGEST: Final = 300
_MANY: Final = 1 << 62


class Outcome(StrEnum):
    """Each a word in a label, so a fixed set."""

    ALLOWED = "allowed"
    REFUSED_NAME = "refused_name"
    """The policy does not name it."""
    REFUSED_ADDRESS = "refused_address"
    """It stands for an address that is not public."""
    REFUSED_TLS = "refused_tls"
    """In the tunnel there was something else than TLS with the name that was asked for."""
    BAD_REQUEST = "bad_request"
    BUSY = "busy"
    FAILED = "failed"
    """Allowed, but not to be found or reached."""


class Refused(Exception):
    """What the code in the sandbox is told, as HTTP status and sentence."""

    def __init__(self, status: int, outcome: Outcome, why: str, host: str = "", port: int = 0) -> None:
        super().__init__(why)
        self.status = status
        self.outcome = outcome
        self.why = why
        self.host = host
        self.port = port


@dataclass(frozen=True, slots=True)
class Decision:
    """On one connection of a sandbox; told when it is made, and of an allowed one again when it is over."""

    sandbox: str
    outcome: Outcome
    host: str = ""
    port: int = 0
    address: str = ""
    why: str = ""
    over: bool = False
    """The connection is over; `sent`, `received` and `seconds` say what it was."""
    sent: int = 0
    received: int = 0
    seconds: float = 0.0
    count: int = 1
    untold: bool = False
    """So many (`count`) of this outcome were not told one by one, and nothing else is known of them."""

    def facts(self) -> dict[str, Any]:
        """For a line of the log: those that this kind of message has."""
        names = ["sandbox", "outcome", *(["count"] if self.untold else ["host", "port", "address", "why"])]
        return {name: getattr(self, name) for name in [*names, *(["sent", "received", "seconds"] if self.over else [])]}

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Raises `ValueError` for anything that a sound proxy does not say."""
        values: Any = json.loads(data)
        if not isinstance(values, Mapping):
            raise ValueError("no object")
        try:
            decision = cls(**{**values, "outcome": Outcome(values["outcome"])})
        except (TypeError, KeyError) as error:
            raise ValueError(str(error)) from None
        for name, kind in _KINDS.items():
            value = getattr(decision, name)
            is_odd = len(value) > _LONGEST if isinstance(value, str) else not 0 <= value < _MANY
            if type(value) is not kind or is_odd:
                raise ValueError(f"{name} is wrong")
        return decision


_KINDS: Final[Mapping[str, type]] = {
    **dict.fromkeys(("sandbox", "host", "address", "why"), str),
    **dict.fromkeys(("port", "sent", "received", "count"), int),
    **dict.fromkeys(("over", "untold"), bool),
    "seconds": float,
}
