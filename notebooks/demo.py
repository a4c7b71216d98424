"""What the demos share: where the gateway is, and showing what a session answers."""

from __future__ import annotations

import base64
import os
from getpass import getpass

from IPython.display import Image, display

from kernelpool.client import DisplayOutput, ErrorOutput, Result, ResultOutput, StreamOutput

# What a session shows comes from a sandbox, and this page belongs to you: HTML, SVG and JavaScript could act in your
# name here. Pictures and text cannot.
PICTURES = ("image/png", "image/jpeg")


def gateway() -> tuple[str, str]:
    """URL and token, from KERNELPOOL_URL and KERNELPOOL_TOKEN. A token that is missing is asked for, never shown."""
    url = os.environ.get("KERNELPOOL_URL", "http://127.0.0.1:8080")
    return url.rstrip("/"), os.environ.get("KERNELPOOL_TOKEN") or getpass("the gateway's token: ")


def show(result: Result) -> None:
    """The outputs in their order, like those of a cell; what the code raised in one line."""
    for output in result.outputs:
        match output:
            case StreamOutput(text=text):
                print(text, end="")
            case DisplayOutput(data=data) | ResultOutput(data=data):
                _show_bundle(data)
            case ErrorOutput(ename=name, evalue=value):
                print(f"{name}: {value}")
    if result.message:
        print(f"[{result.message}]")


def _show_bundle(data: dict[str, object]) -> None:
    for kind in PICTURES:
        if isinstance(picture := data.get(kind), str):
            display(Image(data=base64.b64decode(picture), format=kind.partition("/")[2]))  # type: ignore[no-untyped-call]
            return
    print(data.get("text/plain", ""))
