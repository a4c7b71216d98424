"""What the demos share: a result as a cell shows it, and nothing of it that could act in the reader's page."""

from __future__ import annotations

import pytest
from demo import gateway, show

from kernelpool.client import DisplayOutput, ErrorOutput, ExecutionState, Result, ResultOutput, StreamOutput


def test_a_result_is_shown_in_its_order(capsys: pytest.CaptureFixture[str]) -> None:
    outputs = (
        StreamOutput("stdout", "one\n"),
        ResultOutput({"text/plain": "two"}),
        StreamOutput("stderr", "three\n"),
        ErrorOutput("ValueError", "four", ("a traceback",)),
    )

    show(Result("id", ExecutionState.FAILED, outputs=outputs, message="five"))

    assert capsys.readouterr().out == "one\ntwo\nthree\nValueError: four\n[five]\n"


@pytest.mark.parametrize(
    "kind", ["text/html", "image/svg+xml", "application/javascript", "text/latex", "text/markdown"]
)
def test_what_could_act_in_the_page_is_not_shown(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = DisplayOutput({kind: "<script>steal()</script>", "text/plain": "harmless", "image/png": ["no", "text"]})

    show(Result("id", ExecutionState.SUCCEEDED, outputs=(output,)))

    assert capsys.readouterr().out == "harmless\n"


def test_the_gateway_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELPOOL_URL", "http://sessions.example.com/")
    monkeypatch.setenv("KERNELPOOL_TOKEN", "token")

    assert gateway() == ("http://sessions.example.com", "token")
