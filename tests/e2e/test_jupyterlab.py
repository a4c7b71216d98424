"""JupyterLab in a browser, its kernels here: what a user sees when he runs a cell."""

from __future__ import annotations

import base64
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.browser import Page, json_at, opened, running, until
from tests.e2e.gateways import TOKEN, Gateway, free_port

CELLS = (
    "import os; print('runs in', os.getcwd())",
    "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.title('on a kernelpool kernel')\nplt.show()",
)
STATUS = """(() => {
    const widget = window.jupyterapp.shell.currentWidget;
    const session = widget && widget.sessionContext && widget.sessionContext.session;
    return (session && session.kernel && session.kernel.status) || "none";
})()"""


@pytest.fixture
def lab(gateway: Gateway, tmp_path: Path) -> Iterator[str]:
    """Its URL with a notebook."""
    gateway.wait_ready()
    if importlib.util.find_spec("jupyterlab") is None:
        pytest.skip("no jupyterlab, which comes with kernelpool[jupyter]")
    cells: list[dict[str, Any]] = [
        {"id": f"c{n}", "cell_type": "code", "source": text, "metadata": {}, "outputs": [], "execution_count": None}
        for n, text in enumerate(CELLS)
    ]
    kernelspec = {"name": "python", "display_name": "Python 3", "language": "python"}
    made = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernelspec}, "cells": cells}
    (tmp_path / "plot.ipynb").write_text(json.dumps(made))
    port = free_port()
    arguments = [
        *("-m", "jupyterlab", f"--port={port}", "--no-browser", "--allow-root", f"--notebook-dir={tmp_path}"),
        *(f"--gateway-url=http://127.0.0.1:{gateway.port}", f"--GatewayClient.auth_token={TOKEN}"),
        *("--IdentityProvider.token=local", "--LabApp.expose_app_in_browser=True"),
    ]
    with running([sys.executable, *arguments], tmp_path):
        until(lambda: json_at(f"http://127.0.0.1:{port}/api"))
        yield f"http://127.0.0.1:{port}/lab/tree/plot.ipynb?token=local"


@pytest.fixture
def page(lab: str, tmp_path: Path) -> Iterator[Page]:
    with opened(lab, tmp_path) as page:
        yield page


@pytest.mark.timeout(400)
def test_a_cell_of_jupyterlab_shows_its_plot(gateway: Gateway, page: Page, tmp_path: Path) -> None:
    page.until("!!(window.jupyterapp && window.jupyterapp.shell)")
    page.until(f"{STATUS} === 'idle'")

    page.value("window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)")
    page.until("[...document.querySelectorAll('.jp-OutputArea-output img')].some(image => image.naturalWidth > 100)")
    printed = page.value("document.querySelector('.jp-OutputArea-output').innerText")

    (tmp_path / "screenshot.png").write_bytes(base64.b64decode(page.call("Page.captureScreenshot")["data"]))
    assert printed.strip() == "runs in /mnt/data"
    page.until(f"{STATUS} === 'idle'")
    assert page.value("window.jupyterapp.serviceManager.kernelspecs.specs.default") == "python"
