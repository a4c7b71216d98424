"""What a `history_request` is answered with, whatever it asks."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelpool.protocol.past import MAX_ENTRIES, answer

PAST = [(1, "a = 1"), (2, "print(a)"), (3, "a = 2"), (4, "print(a)")]


def lines(**content: Any) -> list[int]:
    return [line for _, line, _ in answer(content, PAST)["history"]]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"hist_access_type": "tail", "n": 2}, [3, 4]),
        ({"hist_access_type": "tail", "n": 0}, []),
        ({"hist_access_type": "range", "session": 0, "start": 2, "stop": 4}, [2, 3]),
        ({"hist_access_type": "range", "session": 1}, [1, 2, 3, 4]),
        ({"hist_access_type": "range", "session": -1, "start": 1}, []),
        ({"hist_access_type": "search", "pattern": "a = *"}, [1, 3]),
        ({"hist_access_type": "search", "pattern": "*a*", "n": 1}, [4]),
        ({"hist_access_type": "search", "pattern": "print*", "unique": True}, [4]),
        ({"hist_access_type": "search", "pattern": "a ? *"}, [1, 3]),
        ({"hist_access_type": "search", "pattern": "[ab] = *"}, [1, 3]),
        ({"hist_access_type": "nothing"}, []),
        ({}, []),
    ],
)
def test_what_is_asked_for_is_found(content: dict[str, Any], found: list[int]) -> None:
    assert lines(**content) == found


def test_outputs_stand_beside_the_code_when_they_are_asked_for() -> None:
    found = answer({"hist_access_type": "tail", "n": 1, "output": True}, PAST)

    assert found == {"status": "ok", "history": [[1, 4, ["print(a)", None]]]}


@given(
    st.dictionaries(
        st.sampled_from(["hist_access_type", "n", "start", "stop", "session", "pattern", "unique"]),
        st.none()
        | st.integers()
        | st.text()
        | st.booleans()
        | st.sampled_from(["tail", "range", "search"])
        | st.lists(st.integers()),
    )
)
def test_nonsense_is_answered_too(content: dict[str, Any]) -> None:
    assert answer(content, PAST)["status"] == "ok"


def test_an_answer_is_bounded_and_so_is_its_time() -> None:
    past = [(number, "a" * 5000) for number in range(2000)]
    before = time.monotonic()

    found = answer({"hist_access_type": "search", "pattern": "*a" * 100 + "b"}, past)
    everything = answer({"hist_access_type": "range"}, past)

    assert (found["history"], len(everything["history"])) == ([], MAX_ENTRIES)
    assert time.monotonic() - before < 30
