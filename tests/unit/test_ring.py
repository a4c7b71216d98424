"""What is kept for Jupyter clients: bounded, in order, and the ends of things before their outputs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kernelpool.protocol.ring import ENTRY, VITAL_BYTES, Entry, Ring

entries = st.lists(
    st.builds(lambda size, vital: Entry(b"x" * size, "id", vital=vital), st.integers(0, 500), st.booleans())
)


def numbers(ring: Ring, start: int = 0) -> list[int]:
    found = []
    while (number := ring.first(start)) < ring.stop:
        found.append(number)
        start = number + 1
    return found


@given(entries, st.integers(1000, 20_000), st.integers(1, 20))
def test_memory_and_count_are_bounded_whatever_comes(all: list[Entry], most_bytes: int, most: int) -> None:
    ring = Ring(most_bytes, most)

    for entry in all:
        ring.append(entry)

    kept = numbers(ring)
    assert ring.memory == sum(ring.get(number).memory for number in kept)
    assert ring.memory <= most_bytes + 2 * (500 + ENTRY)  # the newest of both kinds stay whatever their size
    assert len(kept) <= 2 * most
    assert [ring.get(number) for number in kept] == [all[number] for number in kept]
    assert not all or ring.get(ring.stop - 1) == all[-1]


def test_outputs_make_room_before_what_somebody_waits_for() -> None:
    ring = Ring(40_000, 100)
    ring.append(Entry(b"busy", "busy", vital=True))
    for number in range(1000):
        ring.append(Entry(b"x" * 1000, str(number)))
    ring.append(Entry(b"idle", "idle", vital=True))

    kept = [ring.get(number).msg_id for number in numbers(ring)]

    assert (kept[0], kept[-1]) == ("busy", "idle")
    assert kept[1:-1] == [str(number) for number in range(1000 - len(kept) + 2, 1000)]


def test_a_long_message_is_no_vital_one() -> None:
    ring = Ring(1 << 20, 1000)
    for _ in range(100):
        ring.append(Entry(b"x" * VITAL_BYTES, "small", vital=True))
        ring.append(Entry(b"x" * (VITAL_BYTES + 1), "large", vital=True))

    kept = [ring.get(number).msg_id for number in numbers(ring)]

    assert kept.count("large") > kept.count("small")


def test_a_message_is_found_by_its_id_until_it_has_made_room() -> None:
    ring = Ring(10_000, 2)
    for id in ("a", "b", "c"):
        ring.append(Entry(b"", id))

    assert [ring.find(id) for id in ("a", "b", "c", "d")] == [None, 1, 2, None]
    ring.clear()
    assert (ring.find("c"), ring.first(0), ring.memory) == (None, 3, 0)
