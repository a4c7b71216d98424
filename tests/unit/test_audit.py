"""The audit log: appended to, private, never in the way, and no line lost without a word."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kernelpool.errors import StartFailed
from kernelpool.telemetry.audit import Action, AuditLog, Entry
from kernelpool.telemetry.observer import Silent


class Counting(Silent):
    def __init__(self) -> None:
        self.count = 0
        self.lost = 0

    def audited(self, count: int, *, lost: bool = False) -> None:
        if lost:
            self.lost += count
        else:
            self.count += count


def entry(**facts: Any) -> Entry:
    return Entry(**{"action": Action.EXECUTE, "outcome": "succeeded", "tenant": "t", "principal": "p", **facts})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_what_was_recorded_is_there_at_the_end_in_order(tmp_path: Path) -> None:
    async with AuditLog(tmp_path / "audit", Silent()) as audit:
        for number in range(100):
            audit.record(entry(size=number))

    written = lines(tmp_path / "audit")
    assert [line["size"] for line in written] == list(range(100))
    assert {"at", "action", "outcome", "tenant", "principal", "pool", "session", "seconds"} <= written[0].keys()


async def test_it_is_for_its_owner_only_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    for _ in range(2):
        async with AuditLog(path, Silent()) as audit:
            audit.record(entry())

    assert path.stat().st_mode & 0o777 == 0o600
    assert len(lines(path)) == 2


@pytest.mark.parametrize("with_code", [False, True])
async def test_code_is_kept_only_when_that_is_wanted(tmp_path: Path, with_code: bool) -> None:
    async with AuditLog(tmp_path / "audit", Silent(), with_code=with_code) as audit:
        audit.record(entry(code="print('a\nb')\u2028"))

    [line] = lines(tmp_path / "audit")
    assert line.get("code") == ("print('a\nb')\u2028" if with_code else None)
    assert (tmp_path / "audit").read_text().count("\n") == 1


async def test_what_does_not_fit_is_counted_and_told(tmp_path: Path) -> None:
    counting = Counting()
    async with AuditLog(tmp_path / "audit", counting, queue=10) as audit:
        for _ in range(25):  # without an await: nothing can be written meanwhile
            audit.record(entry())

    *kept, told = lines(tmp_path / "audit")
    assert (counting.count, counting.lost) == (10, 15)
    assert len(kept) == 10
    assert (told["action"], told["count"]) == ("lost", 15)


async def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    async with AuditLog(path, Silent()) as audit:
        audit.record(entry(size=1))
        await until(lambda: path.stat().st_size > 0)
        path.rename(tmp_path / "audit.1")
        audit.record(entry(size=2))

    assert [line["size"] for line in lines(tmp_path / "audit.1")] == [1]
    assert [line["size"] for line in lines(path)] == [2]


async def test_a_disk_that_is_full_for_a_while_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "audit"
    async with AuditLog(path, Silent()) as audit:
        path.unlink()
        path.mkdir()  # cannot be opened for writing
        audit.record(entry(size=1))
        await until(lambda: "audit log was not written" in caplog.text)
        path.rmdir()
        await until(path.exists)

    assert [line["size"] for line in lines(path)] == [1]


async def test_a_file_that_cannot_be_written_in_the_end_is_counted(tmp_path: Path) -> None:
    counting = Counting()
    async with AuditLog(tmp_path / "audit", counting) as audit:
        (tmp_path / "audit").unlink()
        (tmp_path / "audit").mkdir()
        audit.record(entry())

    assert counting.lost == 1


async def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    os.symlink(tmp_path / "elsewhere", tmp_path / "audit")

    with pytest.raises(StartFailed, match="audit log"):
        async with AuditLog(tmp_path / "audit", Silent()):
            pass

    assert not (tmp_path / "elsewhere").exists()


async def until(holds: Any) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.001)


async def test_what_waits_for_the_disk_is_bounded_in_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelpool.telemetry.audit.QUEUE_BYTES", 1 << 20)
    monkeypatch.setattr("kernelpool.telemetry.audit.MAX_CODE", 1000)
    counting = Counting()
    async with AuditLog(tmp_path / "audit", counting, with_code=True) as log:
        for _ in range(1000):
            log.record(Entry(Action.EXECUTE, "succeeded", size=4000, code="é" * 4000))

    first = lines(tmp_path / "audit")[0]
    assert 100 < counting.count < 300
    assert counting.count + counting.lost == 1000
    assert (len(first["code"]), first["size"]) == (1000, 4000)
