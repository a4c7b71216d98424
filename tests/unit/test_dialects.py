"""Executions in the dialects of ACA, as tables: what goes in, what comes out."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelpool.api.bodies import InvalidBody, Rules, parse_submission
from kernelpool.api.dialects import AnswerOptions, Shape, event_data, execution_answer
from kernelpool.api.json_text import dump_json, parse_json
from kernelpool.api.quirks import percent_encodes_file_names, reads_results_as_text
from kernelpool.api.streams import cap, fold_lines
from kernelpool.api.values import json_value
from kernelpool.errors import InvalidRequest
from kernelpool.models import (
    DisplayOutput,
    EndCause,
    ErrorOutput,
    Event,
    Execution,
    ExecutionState,
    Kind,
    Output,
    ResultOutput,
    StreamOutput,
)

RULES = Rules(default_timeout=60.0, max_timeout=220.0, default_streams=4096)
DONE = Execution("e-1", ExecutionState.SUCCEEDED, 1.0, 2.0, 2.25, 7, cause=EndCause.COMPLETED)
FAILED = replace(DONE, state=ExecutionState.FAILED, cause=EndCause.RAISED)
ERROR = ErrorOutput("ValueError", "no", ("Cell In[7], line 1", "ValueError: no"))


def value(text: str) -> ResultOutput:
    return ResultOutput({"text/plain": text}, execution_count=7)


def answer(*outputs: Output, base: Execution = DONE, shape: Shape = Shape.MODERN, **options: Any) -> dict[str, Any]:
    options = {"streams_max_length": 4096, **options}
    execution = replace(base, outputs=outputs)
    return execution_answer(execution, "abcd", shape, AnswerOptions(**options), asynchronous=False)


def result(*outputs: Output, **rest: Any) -> Any:
    return answer(*outputs, **rest)["result"]["executionResult"]


# --- values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("True", True),
        ("False", False),
        ("None", ""),
        ("0", 0),
        ("-1530", -1530),
        ("007", "007"),
        (str(2**63 - 1), 2**63 - 1),
        (str(2**63), str(2**63)),
        ("9" * 5000, "9" * 5000),
        ("0.1", 0.1),
        ("1e-05", 1e-05),
        ("1e+400", "1e+400"),
        ("-0.0", -0.0),
        ("nan", None),
        ("inf", "inf"),
        ("-inf", "-inf"),
        ("'hi'", "hi"),
        ('"it\'s"', "it's"),
        ("'a\\n\\t\\\\\\'\\x41\\u00e9\\U0001f40d'", "a\n\t\\'Aé🐍"),
        ("'\\U00110000'", "\\U00110000"),
        ("'\\q'", "\\q"),
        ("''", ""),
        ("'a' + 'b'", "'a' + 'b'"),
        ("'unclosed", "'unclosed"),
        ("{'a': 1}", "{'a': 1}"),
        ("['a',\n 'b']", "['a',\n 'b']"),
        ("<object>", "<object>"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("١٢", "١٢"),
        ("1+2j", "1+2j"),
        ("np.float64(1.5)", 1.5),
        ("np.int64(6)", 6),
        ("np.float64(nan)", None),
        ("np.True_", True),
        ("np.str_('hi')", "hi"),
        ("np.complex128(1+2j)", "np.complex128(1+2j)"),
        ("np.array([1])", "np.array([1])"),
        ("", ""),
    ],
)
def test_only_primitives_become_json_types(text: str, expected: object) -> None:
    seen = json_value(text)

    assert seen == expected
    assert type(seen) is type(expected)


@given(
    st.one_of(
        st.text(), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)
    )
)
def test_the_repr_of_a_primitive_gives_the_primitive(original: object) -> None:
    assert json_value(repr(original)) == original


@given(st.text())
def test_any_text_gives_something_that_json_can_say(text: str) -> None:
    json.loads(dump_json(json_value(text)), parse_constant=pytest.fail)


# --- streams


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\n", "a\nb\n"),
        ("\r 10%\r 50%\r100%\n", "100%\n"),
        ("\r 10%\r 50%\r100%", "100%"),
        ("a\r\nb\r\n", "a\nb\n"),
        ("50%\r", "50%"),
        ("\r\r\n", "\n"),
    ],
)
def test_overwritten_lines_are_folded(text: str, expected: str) -> None:
    assert fold_lines(text) == expected


def test_what_fits_is_left_alone() -> None:
    assert cap(["ä" * 10, "b"], 21) == (["ä" * 10, "b"], 0)


def test_head_and_tail_stay_and_the_middle_is_counted() -> None:
    [text], dropped = cap(["a" * 1000 + "b" * 1000], 200)

    assert text.startswith("a" * 50)
    assert text.endswith("b" * 50)
    assert f"[… {dropped} bytes left out …]" in text
    assert text.count("a") + text.count("b") + dropped == 2000 + "bytes".count("b")
    assert len(text.encode()) <= 200


def test_a_limit_of_zero_is_none() -> None:
    assert cap(["x" * 10_000], 0) == (["x" * 10_000], 0)


@given(st.lists(st.text(max_size=80), max_size=8), st.integers(1, 400))
def test_a_cut_never_exceeds_its_limit_and_never_miscounts(pieces: list[str], limit: int) -> None:
    texts, dropped = cap(pieces, limit)

    total = sum(len(piece.encode(errors="replace")) for piece in pieces)
    if dropped:
        assert sum(len(text.encode()) for text in texts) <= limit
        marker = len(f"\n[… {dropped} bytes left out …]\n".encode()) if limit >= 128 else 0
        assert sum(len(text.encode()) for text in texts) == total - dropped + marker
    else:
        assert "".join(texts) == "".join(pieces)
    assert len(texts) == len(pieces)


# --- results


PNG, JPEG, SVG = "iVBORw0KGgo=", "/9j/4AAQ", "<svg/>"


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ((), ""),
        ((StreamOutput("stdout", "hi"),), ""),
        ((value("4"),), 4),
        ((value("{'a': 1}"),), "{'a': 1}"),
        ((ResultOutput({"text/html": "<b>"}),), ""),
        ((DisplayOutput({"text/plain": "shown"}),), ""),
        ((DisplayOutput({"image/png": "one"}), DisplayOutput({"image/png": PNG}), value("4")), ("png", PNG)),
        ((DisplayOutput({"image/png": PNG}), DisplayOutput({"image/jpeg": JPEG})), ("png", PNG)),
        ((DisplayOutput({"image/jpeg": JPEG}), DisplayOutput({"image/svg+xml": SVG})), ("jpeg", JPEG)),
        ((DisplayOutput({"image/svg+xml": SVG}),), ("svg", "PHN2Zy8+")),
        ((ResultOutput({"image/png": PNG, "text/plain": "<Figure>"}),), ("png", PNG)),
        ((ResultOutput({"image/png": ["not", "text"], "text/plain": "4"}),), 4),
    ],
)
def test_one_value_stands_for_the_execution(outputs: tuple[Output, ...], expected: Any) -> None:
    if isinstance(expected, tuple):
        expected = {"type": "image", "format": expected[0], "base64_data": expected[1]}

    assert result(*outputs) == expected


@pytest.mark.parametrize(("text", "expected"), [("4", "4"), ("'nan'", "'nan'"), ("nan", "nan"), ("True", "True")])
def test_in_jupyters_format_primitives_stay_as_the_kernel_wrote_them(text: str, expected: str) -> None:
    assert result(value(text), jupyter_format=True) == expected


def test_in_jupyters_format_no_value_is_null() -> None:
    assert result(jupyter_format=True) is None


@pytest.mark.parametrize("shape", Shape)
def test_a_failure_is_null_with_message_and_traceback_in_stderr(shape: Shape) -> None:
    seen = answer(StreamOutput("stderr", "warning"), ERROR, base=FAILED, shape=shape)

    fields = {Shape.WRAPPED: seen.get("properties"), Shape.FLAT: seen, Shape.MODERN: seen.get("result")}[shape]
    assert fields is not None
    assert fields["executionResult" if shape is Shape.MODERN else "result"] is None
    assert fields["stderr"] == "warning\nno  Cell In[7], line 1\nValueError: no\n"


def test_a_failure_without_a_traceback_still_names_the_exception() -> None:
    assert "ValueError: no" in answer(ErrorOutput("ValueError", "no"), base=FAILED)["result"]["stderr"]


def test_colours_never_reach_stderr() -> None:
    coloured = ErrorOutput("E", "no", ("\x1b[0;31mE\x1b[0m: no",))

    assert answer(coloured, base=FAILED)["result"]["stderr"] == "no  E: no\n"


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (EndCause.TIMED_OUT, "Timeout"),
        (EndCause.CANCELED, "Canceled"),
        (EndCause.KERNEL_DIED, "KernelDied"),
        (EndCause.RAISED, "ValueError"),
    ],
)
def test_what_ended_an_execution_is_said_in_error(cause: EndCause, code: str) -> None:
    outputs = (ERROR,) if cause is EndCause.RAISED else ()

    assert answer(*outputs, base=replace(FAILED, cause=cause))["error"]["code"] == code


def test_the_agents_own_sentence_is_passed_on() -> None:
    seen = answer(base=replace(FAILED, cause=EndCause.TIMED_OUT, message="Stopped after 5 s; variables are kept."))

    assert seen["error"]["message"] == "Stopped after 5 s; variables are kept."
    assert seen["result"]["stderr"] == "Stopped after 5 s; variables are kept.\n"


# --- shapes


@pytest.mark.parametrize(
    ("state", "legacy", "modern"),
    [
        (ExecutionState.QUEUED, "NotStarted", "NotStarted"),
        (ExecutionState.RUNNING, "Running", "Running"),
        (ExecutionState.SUCCEEDED, "Success", "Succeeded"),
        (ExecutionState.FAILED, "Failure", "Failed"),
        (ExecutionState.CANCELED, "Failure", "Canceled"),
    ],
)
def test_each_family_has_its_own_words_for_states(state: ExecutionState, legacy: str, modern: str) -> None:
    base = replace(DONE, state=state)

    assert answer(base=base, shape=Shape.WRAPPED)["properties"]["status"] == legacy
    assert answer(base=base, shape=Shape.FLAT)["status"] == legacy
    assert answer(base=base, shape=Shape.MODERN)["status"] == modern


def test_what_is_ours_has_the_same_names_in_all_shapes() -> None:
    base = replace(
        DONE, state_lost_before="died", state_lost_during=None, dropped_bytes=9, files=("a.png",), files_complete=False
    )
    modern = answer(value("4"), base=base)["result"]
    wrapped = answer(value("4"), base=base, shape=Shape.WRAPPED)["properties"]
    flat = answer(value("4"), base=base, shape=Shape.FLAT)

    assert modern["truncated"] == {"stdout": 0, "stderr": 0, "outputs": 9}
    assert modern["stateLost"] == {"before": "died", "during": None}
    assert (modern["files"], modern["filesComplete"]) == (["a.png"], False)
    assert (modern["executionCount"], modern["cause"], modern["message"]) == (7, "completed", None)
    assert modern["executionTimeInMilliseconds"] == 250
    for name in modern.keys() - {"executionResult"}:
        assert wrapped[name] == flat[name] == modern[name], name


def test_outputs_are_a_notebooks_and_can_be_left_out() -> None:
    outputs = (
        StreamOutput("stdout", "a"),
        DisplayOutput({"image/png": PNG}, {"w": 1}, files=("f.png",)),
        value("4"),
        ERROR,
    )

    assert answer(*outputs)["result"]["outputs"] == [
        {"output_type": "stream", "name": "stdout", "text": "a"},
        {"output_type": "display_data", "data": {"image/png": PNG}, "metadata": {"w": 1}, "files": ["f.png"]},
        {"output_type": "execute_result", "data": {"text/plain": "4"}, "metadata": {}, "execution_count": 7},
        {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": list(ERROR.traceback)},
    ]
    assert "outputs" not in answer(*outputs, with_outputs=False)["result"]


def test_a_flood_is_cut_in_outputs_as_in_stdout() -> None:
    flood: list[Output] = [StreamOutput("stdout", "x" * 1000), value("1"), StreamOutput("stdout", "y" * 1000)]

    seen = answer(*flood, streams_max_length=300)["result"]

    assert len(seen["stdout"].encode()) <= 300
    assert seen["truncated"]["stdout"] > 1700
    assert sum(len(entry.get("text", "").encode()) for entry in seen["outputs"]) <= 300


def test_events_name_outputs_as_answers_do() -> None:
    assert event_data(Event(1, "output", {"type": "stream", "name": "stdout", "text": "a"})) == {
        "output_type": "stream",
        "name": "stdout",
        "text": "a",
    }
    assert event_data(Event(0, "state", {"state": "running"})) == {"state": "running"}


# --- bodies


def parse(body: Any) -> Any:
    return parse_submission(json.dumps(body).encode(), RULES)


@pytest.mark.parametrize(
    "body",
    [
        {"code": "1"},
        {"Code": "1", "CODEINPUTTYPE": "INLINE"},
        {"properties": {"code": "1", "codeInputType": "inline", "executionType": "synchronous"}},
        {"properties": {"pythonCode": "1"}},
        {"properties": {"code": "1"}, "codeInputType": "InlineText"},
        {"code": "MQ==", "codeInputType": "inlineBase64"},
        {"code": "1", "useEmptyKernel": True, "somethingNew": {"of": "tomorrow"}},
    ],
)
def test_every_dialect_is_read_the_same(body: Any) -> None:
    submission = parse(body)

    assert (submission.code, submission.asynchronous, submission.timeout) == ("1", False, 60.0)


def test_several_faults_are_told_at_once() -> None:
    with pytest.raises(InvalidBody) as caught:
        parse({"code": 1, "executionType": "later", "timeoutInSeconds": "x"})

    assert caught.value.errors.keys() == {"code", "executionType", "timeoutInSeconds"}


def test_a_fault_never_repeats_what_was_sent() -> None:
    with pytest.raises(InvalidBody) as caught:
        parse({"code": "1", "executionType": "s3cret" * 1000})

    assert "s3cret" not in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with suppress(InvalidRequest):
        parse_submission(body, RULES)


@pytest.mark.parametrize(
    ("body", "code", "arguments"),
    [
        ({"shellCommand": "ls -l"}, "ls -l", ()),
        ({"SHELLCOMMAND": "ls", "stdin": None}, "ls", ()),
        ({"properties": {"shellCommand": ""}}, "", ()),
        ({"execCommandAndArgs": ["ls", "a b"]}, "ls 'a b'", ("ls", "a b")),
    ],
)
def test_a_command_is_read_and_shown_as_a_shell_would_take_it(body: Any, code: str, arguments: Any) -> None:
    submission = parse(body)

    assert (submission.code, submission.command.arguments) == (code, arguments)
    assert (submission.command.stdin, submission.command.pty) == ("", False)


def test_stdin_and_terminal_go_with_a_command() -> None:
    command = parse({"shellCommand": "cat", "stdin": "abc", "pty": True}).command

    assert (command.stdin, command.pty) == ("abc", True)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"shellCommand": "ls", "execCommandAndArgs": ["ls"]}, {"shellCommand", "execCommandAndArgs"}),
        ({"shellCommand": "ls", "code": "1"}, {"shellCommand", "code"}),
        ({"code": "1", "stdin": "x"}, {"stdin"}),
        ({"code": "1", "pty": True}, {"pty"}),
        ({"execCommandAndArgs": []}, {"execCommandAndArgs"}),
        ({"execCommandAndArgs": "ls"}, {"execCommandAndArgs"}),
        ({"execCommandAndArgs": ["ls", 1]}, {"execCommandAndArgs"}),
        ({"execCommandAndArgs": ["a\0b"]}, {"execCommandAndArgs"}),
        ({"shellCommand": ["ls"]}, {"shellCommand"}),
        ({"shellCommand": "x" * 131_072}, {"shellCommand"}),
        ({"shellCommand": "a\0b"}, {"shellCommand"}),
        ({"shellCommand": "ls", "pty": "yes"}, {"pty"}),
        ({}, {"code"}),
    ],
)
def test_what_makes_no_command_is_told_by_field(body: Any, fields: set[str]) -> None:
    with pytest.raises(InvalidBody) as caught:
        parse(body)

    assert caught.value.errors.keys() == fields


@pytest.mark.parametrize("field", ["codeInputType", "EXECUTIONTYPE"])
@pytest.mark.parametrize("body", [{"shellCommand": "ls"}, {"code": "ls"}])
def test_a_shell_pool_refuses_what_those_of_aca_refuse(body: Any, field: str) -> None:
    with pytest.raises(InvalidBody) as caught:
        parse_submission(
            json.dumps(body | {field: "Inline"}).encode(), Rules(60.0, 220.0, default_streams=4096, is_shell=True)
        )

    assert [name.lower() for name in caught.value.errors] == [field.lower()]


# --- commands

EXITED = replace(DONE, kind=Kind.COMMAND, exit_code=0, execution_count=None)


@pytest.mark.parametrize(
    ("execution", "status"),
    [
        (EXITED, "0"),
        (replace(EXITED, state=ExecutionState.FAILED, cause=EndCause.RAISED, exit_code=3), "3"),
        (replace(EXITED, state=ExecutionState.FAILED, cause=EndCause.TIMED_OUT, exit_code=None), "-1"),
        (replace(EXITED, state=ExecutionState.CANCELED, cause=EndCause.CANCELED, exit_code=None), "-1"),
        (replace(EXITED, state=ExecutionState.RUNNING, cause=None, exit_code=None), "Running"),
    ],
)
def test_the_status_of_a_command_is_its_exit_code(execution: Execution, status: str) -> None:
    answered = answer(StreamOutput("stdout", "hi\n"), base=execution)

    assert answered["status"] == status
    assert ("error" in answered) == (status == "-1")
    if status != "Running":
        assert answered["result"]["exitCode"] == execution.exit_code
        assert answered["result"]["stdout"] == "hi\n"
        assert "executionResult" not in answered["result"]


def test_a_command_on_the_old_routes_succeeds_or_fails_as_code_does() -> None:
    failed = replace(EXITED, state=ExecutionState.FAILED, cause=EndCause.RAISED, exit_code=3)

    assert answer(base=EXITED, shape=Shape.WRAPPED)["properties"]["status"] == "Success"
    assert answer(base=failed, shape=Shape.FLAT)["status"] == "Failure"
    assert answer(base=failed, shape=Shape.FLAT)["exitCode"] == 3


# --- JSON


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": math.nan, "b": [math.inf, -math.inf]}, {"a": None, "b": ["inf", "-inf"]}),
        ("a\ud800b", "a\ufffdb"),
        ({"\udfff": 1}, {"\ufffd": 1}),
        ("\ud83d\udc0d", "🐍"),
        ({"a": {1, 2}}, {"a": "{1, 2}"}),
        ({1: None}, {"1": None}),
    ],
)
def test_what_json_cannot_say_is_replaced(value: Any, expected: Any) -> None:
    assert parse_json(dump_json(value)) == expected


def test_depth_is_cut_and_not_an_error() -> None:
    deep: Any = "bottom"
    for _ in range(100_000):
        deep = [deep]

    assert "…" in dump_json(deep).decode()


# --- quirks


def test_clients_are_known_by_their_user_agents() -> None:
    assert reads_results_as_text("Semantic-Kernel/1.0 (Language=dotnet)")
    assert not reads_results_as_text("semantic-kernel/1.0 (Language=Python)")
    assert percent_encodes_file_names("Python/3.11 aiohttp/3.9.5")
    assert not percent_encodes_file_names("python-requests/2.32")
