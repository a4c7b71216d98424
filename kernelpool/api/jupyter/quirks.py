"""What real Jupyter clients send and can take, beside what the protocol says. No I/O, no clock.

Only of the JSON framing: who speaks the binary one does it right. Headers are mended, never made anew: what is in them
belongs to client and kernel (`subshell_id`, for one).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from kernelpool.protocol.framing import CHANNELS, WireMessage, parse_legacy, read_object, wire_of

CONTROL: Final = frozenset(
    {
        "interrupt_request",
        "shutdown_request",
        "debug_request",
        "create_subshell_request",
        "delete_subshell_request",
        "list_subshell_request",
    }
)
LARGEST: Final = 8 << 20
"""Bytes of a message to a client of the JSON framing: what jupyter_server as a client loses its connection over is
10 MiB, and the JSON around it counts as well."""


def received(frame: str | bytes, now: float) -> WireMessage:
    """A client's frame, mended. `now` is in seconds since the epoch. Raises `ProtocolError` for what cannot be."""
    fields, buffers = parse_legacy(frame)
    header = fields.get("header")
    if isinstance(header, dict):
        fields["header"] = _header(header, fields, now)
    if fields.get("channel") not in CHANNELS:  # smolagents, nbclient and papermill name none
        fields["channel"] = _channel_of(fields)
    return wire_of(fields, buffers)


def is_binary_safe(user_agent: str) -> bool:
    """jupyter_server as a client reads every frame as text, and its reader dies of one that is none."""
    return not user_agent.startswith("Tornado/")


def fitting(message: WireMessage, limit: int = LARGEST) -> WireMessage:
    """The same, or with a note in place of what is too large for clients of the JSON framing."""
    if message.size - sum(map(len, message.buffers)) <= limit:
        return message
    content = read_object(message.content)
    note = f"[{len(message.content)} bytes of output left out: this client takes {limit} at once]"
    if isinstance(content.get("data"), dict):
        content = {**content, "data": {"text/plain": note}, "metadata": {}}
    elif isinstance(content.get("text"), str):
        half = limit // 8  # of characters, each of which may be as many as six bytes
        content["text"] = f"{content['text'][:half]}\n{note}\n{content['text'][-half:]}"
    else:
        content = {"status": content["status"]} if isinstance(content.get("status"), str) else {}
    return replace(message, content=json.dumps(content).encode(), metadata=b"{}")


def _header(header: dict[str, Any], fields: Mapping[str, Any], now: float) -> dict[str, Any]:
    """With a date that is one, and the id and type that some send beside it."""
    date = header.get("date")
    if not isinstance(date, str):  # jupyter_server's GatewayKernelClient sends a number, smolagents nothing
        seconds = date if isinstance(date, int | float) and 0 <= date < 1e11 else now
        header = {**header, "date": _date(seconds)}
    beside = {name: fields[name] for name in ("msg_id", "msg_type") if isinstance(fields.get(name), str)}
    return {**beside, **header}


def _channel_of(fields: Mapping[str, Any]) -> str:
    header = fields.get("header")
    kind = header.get("msg_type") if isinstance(header, dict) else None
    if kind == "input_reply":
        return "stdin"
    return "control" if kind in CONTROL else "shell"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
