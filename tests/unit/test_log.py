"""The event log: nothing is lost within the budget, and beyond it what is lost is counted."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kernelpool.models import DisplayOutput, ErrorOutput, Event, StreamOutput
from kernelpool.protocol.log import PIECE, EventLog
from kernelpool.protocol.outputs import fold


def text(value: str, name: str = "stdout") -> dict[str, Any]:
    return {"type": "stream", "name": name, "text": value}


def display(value: str, display_id: str | None = None) -> dict[str, Any]:
    data = {"text/plain": value}
    return {"type": "display_data", "data": data, "metadata": {}, "display_id": display_id, "files": []}


def folded_text(log: EventLog) -> str:
    return "".join(output.text for output in fold(log.after(-1)) if isinstance(output, StreamOutput))


@given(st.lists(st.text(max_size=30), max_size=30))
def test_within_the_budget_everything_stays_in_order(parts: list[str]) -> None:
    log = EventLog(1 << 20)
    for part in parts:
        log.output(text(part))

    assert folded_text(log) == "".join(parts)
    assert log.dropped_bytes == 0


@given(st.lists(st.integers(1, 3 * PIECE), min_size=1, max_size=20), st.integers(2 * PIECE, 6 * PIECE))
def test_what_is_kept_and_what_is_dropped_is_all_there_was(sizes: list[int], budget: int) -> None:
    log = EventLog(budget)
    for index, size in enumerate(sizes):
        log.output(text(chr(ord("a") + index) * size))

    kept = sum(len(event.data["text"]) for event in log.after(-1) if event.kind == "output")

    assert kept + log.dropped_bytes == sum(sizes)
    assert log.size <= budget


def test_beyond_the_budget_head_and_tail_stay_and_a_marker_counts_the_rest() -> None:
    log = EventLog(4000)
    log.output(text("first "))
    log.output(text("x" * 1_000_000))
    log.output(text(" last"))

    folded = folded_text(log)

    assert folded.startswith("first x")
    assert folded.endswith("x last")
    assert f"[… {log.dropped_bytes} bytes of output left out …]" in folded
    assert log.dropped_bytes > 990_000


def test_a_million_tiny_events_take_bounded_memory() -> None:
    log = EventLog(1 << 20, max_events=100)
    for _ in range(10_000):
        log.output(text("x"))

    assert sum(1 for _ in log.after(-1)) <= 101
    assert log.dropped_bytes == 9_900


def test_a_reader_resumes_where_it_was() -> None:
    log = EventLog(1 << 20)
    log.output(text("a"))
    log.output(text("b"))
    seen = [event.seq for event in log.after(-1)]
    log.output(text("c"))

    assert [event.data["text"] for event in log.after(seen[-1])] == ["c"]


def test_a_reader_that_was_behind_is_told_of_the_gap() -> None:
    log = EventLog(10_000)
    for index in range(1000):
        log.output(text(f"{index:100}"))

    kinds = [event.kind for event in log.after(60)]

    assert kinds[0] == "gap"
    assert kinds.count("gap") == 1


def test_an_update_replaces_the_display_and_the_update_before_it() -> None:
    log = EventLog(1 << 20)
    log.output(display("0 %", "bar"))
    for index in range(10_000):
        log.update_display("bar", {"text/plain": f"{index} %"}, {}, [])

    assert len(list(log.after(-1))) == 2
    (output,) = fold(log.after(-1))
    assert isinstance(output, DisplayOutput)
    assert output.data == {"text/plain": "9999 %"}


def test_clear_output_forgets_and_with_wait_only_when_the_next_comes() -> None:
    log = EventLog(1 << 20)
    log.output(text("old"))
    log.clear_output(wait=True)
    assert folded_text(log) == "old"

    log.output(text("new"))
    assert folded_text(log) == "new"

    log.clear_output(wait=False)
    assert folded_text(log) == ""


def test_an_animation_costs_one_frame() -> None:
    log = EventLog(1 << 20)
    for index in range(10_000):
        log.clear_output(wait=True)
        log.output(display(f"frame {index}" + "x" * 10_000))

    assert log.size < 30_000
    assert log.dropped_bytes == 0
    (output,) = fold(log.after(-1))
    assert isinstance(output, DisplayOutput)
    assert output.data["text/plain"].startswith("frame 9999x")


def test_one_output_larger_than_the_budget_is_replaced_by_a_note() -> None:
    log = EventLog(10_000)
    log.output(display("x" * 100_000))

    (output,) = fold(log.after(-1))

    assert isinstance(output, DisplayOutput)
    assert "was left out" in output.data["text/plain"]
    assert log.dropped_bytes > 100_000


def test_an_error_larger_than_the_budget_is_told_without_its_traceback_and_counted_once() -> None:
    log = EventLog(10_000)
    log.output({"type": "error", "ename": "E", "evalue": "v", "traceback": ["x" * 1000] * 100})

    (output,) = fold(log.after(-1))

    assert isinstance(output, ErrorOutput)
    assert (output.ename, output.evalue, len(output.traceback)) == ("E", "v", 1)
    assert "was left out" in output.traceback[0]
    assert 100_000 < log.dropped_bytes < 110_000


def test_an_update_larger_than_the_budget_says_so_in_its_place() -> None:
    log = EventLog(10_000)
    log.output(display("first", "d"))
    log.update_display("d", {"text/plain": "second"}, {}, [])
    log.update_display("d", {"text/plain": "x" * 100_000}, {}, [])

    (output,) = fold(log.after(-1))

    assert isinstance(output, DisplayOutput)
    assert "was left out" in output.data["text/plain"]


def test_what_costs_its_reader_much_is_left_out_though_its_text_is_short() -> None:
    log = EventLog(8 << 20)
    log.output({**display(""), "data": {"application/json": [{}] * 100_000}})

    (output,) = fold(log.after(-1))

    assert isinstance(output, DisplayOutput)
    assert list(output.data) == ["text/plain"]
    assert log.dropped_bytes > 100_000


def test_small_events_take_memory_too() -> None:
    log = EventLog(1 << 20)
    for _ in range(1000):
        log.output(text("x"))

    assert log.size == 1000
    assert log.memory > 400_000


def test_ids_of_displays_whose_updates_were_dropped_are_forgotten() -> None:
    log = EventLog(1 << 20, max_events=100)
    for index in range(1000):
        log.update_display(f"{index}", {}, {}, [])

    assert len(log._updated) <= 100


NAMES = st.sampled_from("ab")
OPERATIONS = st.one_of(
    st.tuples(st.just("text"), NAMES),
    st.tuples(st.just("display"), NAMES),
    st.tuples(st.just("update"), NAMES),
    st.tuples(st.just("clear"), st.booleans()),
    st.tuples(st.just("read"), st.none()),
)


@given(st.lists(OPERATIONS, max_size=30))
def test_whoever_follows_the_events_ends_with_what_a_late_look_shows(operations: list[tuple[str, Any]]) -> None:
    log = EventLog(1 << 20)
    followed: list[Event] = []
    for number, (what, value) in enumerate(operations):
        match what:
            case "text":
                log.output(text(f"{value}{number} "))
            case "display":
                log.output(display(f"{number}", value))
            case "update":
                log.update_display(value, {"text/plain": f"{number}"}, {}, [])
            case "clear":
                log.clear_output(value)
            case _:  # the reader comes back
                followed += log.after(followed[-1].seq if followed else -1)
    followed += log.after(followed[-1].seq if followed else -1)

    assert fold(followed) == fold(log.after(-1))
    assert [event.seq for event in followed] == sorted({event.seq for event in followed})
