"""What the executions of a session take in memory is counted at all times, and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelpool.agent.history import History
from kernelpool.agent.run import KEPT_CODE, OVERHEAD, Run
from kernelpool.errors import Conflict, ExecutionNotFound
from kernelpool.models import Cell, EndCause, ExecuteRequest, ExecutionState
from kernelpool.protocol.messages import Message

BUDGET = 1 << 20

Submit = Callable[..., Run]


@pytest.fixture
async def forgotten() -> list[str]:
    return []


@pytest.fixture
async def history(forgotten: list[str]) -> History:
    return History(1000, BUDGET, lambda run: forgotten.append(run.id))


def submit(history: History, id: str, code: str = "1") -> Run:
    run = Run(ExecuteRequest(id, code, 1), 10 * BUDGET, None, history.weigh)
    history.add(run)
    return run


def say(run: Run, size: int) -> None:
    run.receive_iopub(Message("stream", "p", {"name": "stdout", "text": "x" * size}))


def end(run: Run, **facts: object) -> None:
    run.finish(ExecutionState.SUCCEEDED, EndCause.COMPLETED, None, **facts)


async def test_output_after_the_end_counts_too(history: History, forgotten: list[str]) -> None:
    runs = [submit(history, f"{number}") for number in range(8)]
    for run in runs:
        end(run)
    for run in runs:
        say(run, BUDGET // 4)

    assert history.memory <= BUDGET
    assert forgotten == ["0", "1", "2", "3", "4"]


async def test_code_is_kept_and_counts_for_what_it_takes(history: History) -> None:
    run = submit(history, "a", "\U0001f40d" * 100_000)
    run.take_code()
    run.start(None)
    end(run)

    assert history.memory > 400_000
    assert run.keep(outputs=False).code == "\U0001f40d" * 100_000


async def test_long_code_counts_until_it_is_sent_and_is_not_kept(history: History) -> None:
    run = submit(history, "a", "x" * (KEPT_CODE + 1))
    assert history.memory > KEPT_CODE

    assert run.take_code() == "x" * (KEPT_CODE + 1)
    run.start(None)
    assert history.memory < 2 * OVERHEAD

    assert run.keep(outputs=False).code is None


async def test_long_code_that_was_canceled_before_it_began_is_not_kept(history: History) -> None:
    run = submit(history, "a", "x" * (KEPT_CODE + 1))

    run.finish(ExecutionState.CANCELED, EndCause.CANCELED, None)

    assert history.memory < 2 * OVERHEAD


async def test_a_cells_metadata_counts_for_what_it_takes(history: History) -> None:
    run = Run(ExecuteRequest("a", "1", 1, cell=Cell("c", {"x": [[]] * 3000})), BUDGET, None, history.weigh)
    history.add(run)

    assert history.memory > 300_000


async def test_the_list_says_by_numbers_what_is_no_longer_kept(history: History) -> None:
    runs = [submit(history, id) for id in ("a", "b", "c")]
    end(runs[1])
    say(runs[1], BUDGET)

    assert [(run.number, run.id) for run in history.after(0)] == [(1, "a"), (3, "c")]
    assert [run.id for run in history.after(1)] == ["c"]
    assert history.count == 3


async def test_a_slow_reader_of_the_list_holds_nothing_that_was_forgotten(history: History) -> None:
    runs = [submit(history, id) for id in ("a", "b", "c")]
    listed = history.after(0)
    assert next(listed) is runs[0]

    end(runs[1])
    say(runs[1], BUDGET)

    assert next(listed) is runs[2]


async def test_names_of_files_count(history: History) -> None:
    run = submit(history, "a")

    end(run, files=("x" * 1000,) * 100)

    assert history.memory > 100_000


async def test_many_small_outputs_count_for_what_they_take(history: History) -> None:
    run = submit(history, "a")

    for _ in range(1000):
        say(run, 1)

    assert history.memory > 400_000


async def test_what_has_not_ended_is_never_forgotten(history: History, forgotten: list[str]) -> None:
    running, ended = submit(history, "running"), submit(history, "ended")
    end(ended)
    say(running, 2 * BUDGET)

    assert history.get("running") is running
    assert forgotten == ["ended"]
    with pytest.raises(ExecutionNotFound):
        history.get("ended")
    with pytest.raises(Conflict):
        history.find("ended")


async def test_a_forgotten_run_counts_no_more(history: History) -> None:
    run = submit(history, "a")
    end(run)
    say(run, 2 * BUDGET)
    say(run, BUDGET)

    assert history.memory == 0


STEPS = st.lists(st.tuples(st.sampled_from(["submit", "say", "end"]), st.integers(0, 5), st.integers(1, BUDGET // 3)))


@given(STEPS)
def test_the_sum_is_right_whatever_happens(steps: list[tuple[str, int, int]]) -> None:
    async def live() -> None:
        history = History(4, BUDGET, lambda _run: None)
        runs: dict[int, Run] = {}
        for what, number, size in steps:
            if what == "submit" and number not in runs:
                runs[number] = submit(history, f"{number}", "x" * size)
            elif what == "say" and number in runs:
                say(runs[number], size)
            elif what == "end" and number in runs and not runs[number].state.is_final:
                end(runs[number])
            kept = list(history._runs.values())
            assert history.memory == sum(run.memory for run in kept)
            assert history.memory <= BUDGET or not any(run.state.is_final for run in kept)

    asyncio.run(live())
