"""What a model reads of an execution: everything once, in order, and never too much of it."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelpool.api.mcp.transcript import (
    MAX_IMAGES,
    Image,
    errors,
    fitting,
    result,
    stderr,
    stream,
    transcript,
    window,
)
from kernelpool.models import (
    DisplayOutput,
    EndCause,
    ErrorOutput,
    Execution,
    ExecutionState,
    Output,
    ResultOutput,
    StreamOutput,
)

PNG = base64.b64encode(b"\x89PNG of a kind").decode()


def done(*outputs: Output, **facts: object) -> Execution:
    execution = Execution("run-1", ExecutionState.SUCCEEDED, 1.0, 2.0, 3.0, outputs=outputs)
    return replace(execution, **facts)  # type: ignore[arg-type]


def test_outputs_stand_in_their_order_each_on_a_line_of_its_own() -> None:
    execution = done(
        StreamOutput("stdout", "a"),
        StreamOutput("stderr", "careful\n"),
        DisplayOutput({"text/plain": "<Figure>", "image/png": PNG}, files=("plot.png",)),
        ResultOutput({"text/plain": "42", "text/html": "<b>42</b>"}),
    )

    seen = transcript(execution)

    assert seen.text == "a\ncareful\n[image 1, saved as /mnt/data/plot.png]\n42"
    assert seen.images == (Image("image/png", PNG),)
    assert (stream(execution, "stdout"), stderr(execution), result(execution)) == ("a", "careful\n", "42")


def test_an_image_is_never_text_too() -> None:
    seen = transcript(done(DisplayOutput({"image/png": PNG}), ResultOutput({"image/jpeg": PNG, "text/plain": "x"})))

    assert PNG not in seen.text
    assert [image.mime for image in seen.images] == ["image/png", "image/jpeg"]


def test_progress_bars_and_colours_are_what_is_left_of_them() -> None:
    seen = transcript(done(StreamOutput("stdout", "10%\r50%\r100%\n\x1b[31mred\x1b[0m")))

    assert seen.text == "100%\nred"


def test_a_long_traceback_keeps_its_head_and_its_innermost_frames() -> None:
    frames = tuple(f"frame {number}: {'x' * 100}" for number in range(200))
    execution = done(ErrorOutput("ValueError", "bad", ("Traceback", *frames, "ValueError: bad")))

    text = transcript(execution).text

    assert text.startswith("Traceback\nframe 0:")
    assert text.endswith("ValueError: bad")
    assert "characters left out" in text
    assert len(text) < 4200


def test_an_error_without_a_traceback_is_named_all_the_same() -> None:
    execution = done(ErrorOutput("ValueError", "bad"))

    assert transcript(execution).text == stderr(execution) == "ValueError: bad"
    assert [error.ename for error in errors(execution)] == ["ValueError"]


@pytest.mark.parametrize(
    ("facts", "note"),
    [
        ({"state_lost_before": "the kernel had died"}, "[the kernel had died]"),
        ({"cause": EndCause.TIMED_OUT}, "[The code ran into its time-out.]"),
        ({"cause": EndCause.CANCELED, "message": "stopped"}, "[stopped]"),
        ({"state_lost_during": "variables were lost"}, "[variables were lost]"),
        ({"dropped_bytes": 5}, "[5 bytes from the middle of the output were dropped for good]"),
        ({"files": ("a.txt", "b/c.txt")}, "[files written: /mnt/data/a.txt, /mnt/data/b/c.txt]"),
        ({"state": ExecutionState.RUNNING}, "[still running]"),
        ({"state": ExecutionState.QUEUED}, "[waits for the session's executions before it]"),
    ],
)
def test_what_else_happened_is_said_after_the_output_so_far(facts: dict[str, object], note: str) -> None:
    seen = transcript(done(StreamOutput("stdout", "so far\n"), **facts))

    assert seen.text == f"so far\n{note}"


def test_an_output_of_a_kind_that_nobody_can_read_is_named() -> None:
    assert transcript(done(DisplayOutput({"application/x-a": 1}))).text == "[an output of the kinds application/x-a]"
    assert transcript(done(DisplayOutput({}))).text == ""


@given(st.text(max_size=400), st.integers(10, 100))
def test_a_window_keeps_head_and_tail_and_counts_the_rest(text: str, limit: int) -> None:
    seen = window(text, limit, " at {offset}")

    if len(text) <= limit:
        assert (seen.text, seen.omitted) == (text, 0)
    else:
        head, _, rest = seen.text.partition(f"\n[… {len(text) - limit} characters left out at {limit // 2} …]\n")
        assert seen.omitted == len(text) - limit
        assert text.startswith(head)
        assert text.endswith(rest)
        assert len(head) + len(rest) == limit


def test_only_what_is_base64_and_fits_is_an_image() -> None:
    large, small = Image("image/png", PNG[:4] + "A" * 400), Image("image/png", PNG)

    assert fitting(
        [Image("image/png", "not base64!"), small, Image("image/png", ""), Image("image/gif", PNG)], 1000
    ) == [small]
    assert fitting([large, small], 100) == [small]
    assert len(fitting([small] * 20, 10_000)) == MAX_IMAGES


@given(
    st.lists(
        st.builds(StreamOutput, st.sampled_from(["stdout", "stderr"]), st.text())
        | st.builds(ErrorOutput, st.text(), st.text(), st.tuples(st.text()))
        | st.builds(
            ResultOutput,
            st.dictionaries(st.sampled_from(["text/plain", "image/png", "x/y"]), st.text() | st.integers() | st.none()),
        ),
        max_size=5,
    )
)
def test_whatever_a_sandbox_says_is_text_that_can_be_sent(outputs: list[Output]) -> None:
    execution = done(*outputs, state_lost_before="\ud800")

    for text in (transcript(execution).text, stream(execution, "stdout"), stderr(execution), result(execution)):
        text.encode()
