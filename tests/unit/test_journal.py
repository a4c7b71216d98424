"""The journal: what is on disk after any stop, and what is made of whatever is found there."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path

import pytest

from kernelpool.errors import BackendUnavailable
from kernelpool.journal import MAX_RECORD_BYTES, Journal, Record

RECORD = Record(
    sandbox="0123456789ab", pool="default", tenant="default", identifier="user/1", session="s-1", created_at=1.5
)


def files(state: Path) -> list[str]:
    return sorted(path.name for path in (state / "sessions").iterdir())


async def test_what_was_written_is_read_by_the_next_gateway(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        await journal.write(RECORD)

    async with Journal(tmp_path) as successor:
        assert (await successor.load()).records == {RECORD.sandbox: RECORD}


async def test_an_empty_state_directory_has_no_sessions(tmp_path: Path) -> None:
    async with Journal(tmp_path / "not made yet") as journal:
        contents = await journal.load()

    assert (contents.records, contents.corrupt) == ({}, frozenset())


async def test_only_the_gateways_user_may_read_it(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        await journal.write(RECORD)

    assert (tmp_path / "sessions").stat().st_mode & 0o077 == 0
    assert (tmp_path / "sessions" / "0123456789ab.json").stat().st_mode & 0o077 == 0


async def test_a_removed_record_is_gone_and_may_be_removed_again(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        await journal.write(RECORD)
        await journal.remove(RECORD.sandbox)
        await journal.remove(RECORD.sandbox)

    assert files(tmp_path) == []


class SlowDisk(Journal):
    """Writes when told to."""

    def __init__(self, state: Path) -> None:
        super().__init__(state)
        self.began = threading.Event()
        self.go = threading.Event()

    def _write(self, record: Record) -> None:
        self.began.set()
        assert self.go.wait(60)
        super()._write(record)


async def test_a_cancelled_write_is_over_before_the_record_is_removed(tmp_path: Path) -> None:
    async with SlowDisk(tmp_path) as journal:
        writing = asyncio.create_task(journal.write(RECORD))
        await asyncio.to_thread(journal.began.wait)
        writing.cancel()
        removing = asyncio.create_task(journal.remove(RECORD.sandbox))
        done, _ = await asyncio.wait((removing,), timeout=0.05)
        journal.go.set()
        await removing

        assert not done
        assert files(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\x00" * 100,
        "null",
        json.dumps(RECORD.model_dump() | {"sandbox": "ffffffffffff"}),
        json.dumps(RECORD.model_dump() | {"created_at": "now"}),
        json.dumps(RECORD.model_dump() | {"created_at": float("inf")}),
        json.dumps(RECORD.model_dump() | {"tenant": None}),
        json.dumps(RECORD.model_dump() | {"extra": 1}),
        json.dumps(RECORD.model_dump() | {"identifier": "x" * MAX_RECORD_BYTES}),
        "[" * 60_000,
    ],
)
async def test_a_corrupt_record_is_told_apart_and_never_believed(tmp_path: Path, text: str) -> None:
    async with Journal(tmp_path) as journal:
        await journal.write(RECORD)
        (tmp_path / "sessions" / "0123456789ab.json").write_text(text)

        contents = await journal.load()

    assert (contents.records, contents.corrupt) == ({}, frozenset({"0123456789ab"}))


async def test_what_is_no_record_is_left_alone_but_half_a_write_is_removed(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        await journal.write(RECORD)
        (tmp_path / "sessions" / "README").write_text("hello")
        (tmp_path / "sessions" / "zz.json").write_text("hello")
        (tmp_path / "sessions" / "ba9876543210.tmp").write_text("{")

        contents = await journal.load()

    assert (set(contents.records), contents.corrupt) == ({RECORD.sandbox}, frozenset())
    assert files(tmp_path) == ["0123456789ab.json", "README", "zz.json"]


async def test_a_directory_or_device_in_place_of_a_record_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "sessions" / "0123456789ab.json").mkdir(parents=True)
    os.mkfifo(tmp_path / "sessions" / "0123456789ac.json")

    async with asyncio.timeout(30), Journal(tmp_path) as journal:
        contents = await journal.load()

    assert contents.corrupt == {"0123456789ab", "0123456789ac"}


async def test_a_state_directory_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "sessions").write_text("a file where the folder belongs")

    async with Journal(tmp_path) as journal:
        with pytest.raises(BackendUnavailable, match="state cannot be written"):
            await journal.write(RECORD)


async def test_no_id_leads_out_of_the_folder(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        with pytest.raises(ValueError, match="no sandbox id"):
            await journal.remove("../../etc/passwd")
