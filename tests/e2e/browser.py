"""A page in a real browser, driven by Chromium's DevTools protocol."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import websocket

from tests.e2e.gateways import SECONDS, free_port

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--remote-allow-origins=*", "--window-size=1280,900"),
)


class PageError(Exception):
    """What DevTools have against a question."""


class Page:
    def __init__(self, url: str) -> None:
        """`url` of its DevTools."""
        self._socket = websocket.create_connection(url, timeout=SECONDS)
        self._count = 0
        self.told: list[str] = []
        """What its console says: errors, and what a policy has kept from loading."""
        self.call("Log.enable")

    def close(self) -> None:
        self._socket.close()

    def call(self, method: str, **parameters: Any) -> Any:
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("method") == "Log.entryAdded":
                self.told.append(answer["params"]["entry"]["text"])
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise PageError(answer["error"]["message"])
                return answer["result"]

    def value(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        return answer["result"].get("value")

    def until(self, expression: str) -> Any:
        def look() -> Any:
            try:
                return self.value(expression)
            except PageError:  # it is being loaded: what was there is gone
                return None

        return until(look)


@contextmanager
def opened(url: str, folder: Path, *flags: str) -> Iterator[Page]:
    """A page that is being loaded. Skips the test where there is no browser."""
    if BROWSER is None:
        pytest.skip("!!! there is no Chromium (apt-get install chromium)")
    port = free_port()
    places = [f"--user-data-dir={folder / 'browser'}", f"--remote-debugging-port={port}"]
    with running([BROWSER, *FLAGS, *flags, *places, url], folder):
        pages = until(
            lambda: [each for each in json_at(f"http://127.0.0.1:{port}/json") or [] if each["type"] == "page"]
        )
        page = Page(pages[0]["webSocketDebuggerUrl"])
        yield page
        page.close()


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[None]:
    """A program, ended with the block."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(SECONDS)


def until(what: Callable[[], Any]) -> Any:
    """What it answers, once that is something."""
    deadline = time.monotonic() + 2 * SECONDS
    while not (answer := what()):
        if time.monotonic() > deadline:
            raise TimeoutError("it did not come")
        time.sleep(0.2)
    return answer


def json_at(url: str) -> Any:
    try:
        return requests.get(url, timeout=SECONDS).json()
    except requests.ConnectionError:
        return None
