"""The gateway's side of the egress proxy, with the real process: what it may, how it ends, and what is heard of it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kernelpool.egress.doors import Doors
from kernelpool.egress.policy import EgressPolicy
from kernelpool.telemetry import Telemetry
from kernelpool.telemetry.metrics import CollectorRegistry, Metrics

POLICY = EgressPolicy.of(["kernelpool.invalid"])
REFUSED = b"HTTP/1.1 403 evil.test at port 443 is not among the domains that this session may reach\r\n"


@asynccontextmanager
async def doors_of(metrics: Metrics | None = None) -> AsyncIterator[Doors]:
    async with Doors(Telemetry(metrics or Metrics(CollectorRegistry()))) as doors:
        yield doors


async def knock(folder: Path, host: str = "evil.test") -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(folder / "egress.sock"))
    try:
        writer.write(f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.close()


def proxies() -> list[int]:
    """Processes of ours that are the proxy."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, status = (folder / "cmdline").read_bytes(), (folder / "status").read_text()
        except OSError:
            continue
        if command.endswith(b"\0-m\0kernelpool.egress\0") and f"PPid:\t{os.getpid()}\n" in status:
            found.append(int(folder.name))
    return found


async def text_of(metrics: Metrics) -> str:
    return (await asyncio.to_thread(metrics.render, [])).decode()


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(20):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)


async def test_a_door_opens_when_a_sandbox_needs_it_and_closes_with_it(tmp_path: Path) -> None:
    async with doors_of() as doors:
        assert proxies() == []
        await doors.open("box", "python", POLICY, tmp_path, None)
        answer = await knock(tmp_path)
        await doors.close("box")
        await doors.close("box")
        async with asyncio.timeout(20):
            while True:  # the process closes what it was lent as soon as it hears of it
                try:
                    await knock(tmp_path)
                except ConnectionRefusedError:
                    break
                except ConnectionError:
                    continue

    assert answer.startswith(REFUSED)


async def test_the_process_has_no_rights_and_ends_with_its_gateway(tmp_path: Path) -> None:
    async with doors_of() as doors:
        await doors.open("box", "python", POLICY, tmp_path, None)
        await knock(tmp_path)
        [pid] = proxies()
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        limits = Path(f"/proc/{pid}/limits").read_text()

    assert status["NoNewPrivs"] == "1"
    assert status["Uid"].split() == [str(os.geteuid() or 65534)] * 4
    if os.geteuid() == 0:
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert status["Groups"].split() == []
    assert limits.splitlines()[3].split()[3] == str(1 << 30)  # max data size
    await until_gone(pid)


async def test_a_process_that_dies_is_replaced_and_who_knocks_meanwhile_is_served(tmp_path: Path) -> None:
    async with doors_of() as doors:
        await doors.open("box", "python", POLICY, tmp_path, None)
        await knock(tmp_path)
        [pid] = proxies()

        os.kill(pid, signal.SIGKILL)
        await until_gone(pid)
        answer = await knock(tmp_path)

        assert answer.startswith(REFUSED)
        assert proxies() != [pid]


async def test_the_next_gateway_serves_at_the_same_place(tmp_path: Path) -> None:
    async with doors_of() as doors:
        await doors.open("box", "python", POLICY, tmp_path, None)
        await knock(tmp_path)
    with pytest.raises(ConnectionRefusedError):
        await knock(tmp_path)

    async with doors_of() as doors:
        await doors.open("box", "python", POLICY, tmp_path, None)
        assert (await knock(tmp_path)).startswith(REFUSED)


async def test_decisions_are_logged_with_their_session_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics(CollectorRegistry())
    line = 'kernelpool_egress_decisions_total{outcome="refused_name",pool="python"} 200.0'
    with caplog.at_level(logging.INFO, "kernelpool.egress"):
        async with doors_of(metrics) as doors:
            doors.session_of = {"box": "the-session"}.__getitem__
            await doors.open("box", "python", POLICY, tmp_path, None)
            began = asyncio.get_running_loop().time()
            for _ in range(200):
                await knock(tmp_path)
            seconds = asyncio.get_running_loop().time() - began
            async with asyncio.timeout(20):
                while line not in await text_of(metrics):
                    await asyncio.sleep(0.01)

    decided = [record for record in caplog.records if record.getMessage() == "egress decided"]
    untold = [record for record in caplog.records if record.getMessage() == "egress untold"]
    facts = vars(decided[0])
    assert (facts["pool"], facts["sandbox"], facts["session"]) == ("python", "box", "the-session")
    assert (facts["host"], facts["port"], facts["outcome"]) == ("evil.test", 443, "refused_name")
    assert len(decided) <= 50 + 10 * seconds
    assert len(decided) + sum(vars(record)["count"] for record in untold) == 200


async def test_what_the_process_says_of_sandboxes_that_it_was_not_given_is_not_heard(tmp_path: Path) -> None:
    metrics = Metrics(CollectorRegistry())
    liar = tmp_path / "liar.py"
    liar.write_text(
        "import socket\n"
        "gateway = socket.socket(fileno=0)\n"
        "gateway.recv(1 << 17)\n"
        "for message in (b'{}', b'x' * 100_000, b'\\xff', b'[1]',\n"
        '        b\'{"sandbox": "other", "outcome": "allowed"}\', b\'{"sandbox": "box", "outcome": "invented"}\',\n'
        '        b\'{"sandbox": "box", "outcome": "allowed"}\'):\n'
        "    gateway.send(message)\n"
        "gateway.recv(1 << 17)\n"
    )
    async with Doors(Telemetry(metrics), (sys.executable, "-I", str(liar))) as doors:
        await doors.open("box", "python", POLICY, tmp_path, None)
        async with asyncio.timeout(20):
            while "kernelpool_egress_decisions_total{" not in await text_of(metrics):
                await asyncio.sleep(0.01)

    lines = [
        line for line in (await text_of(metrics)).splitlines() if line.startswith("kernelpool_egress_decisions_total{")
    ]
    assert lines == ['kernelpool_egress_decisions_total{outcome="allowed",pool="python"} 1.0']


async def test_the_socket_is_for_its_owner_and_no_link_is_followed(tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.write_text("kept")
    folder.mkdir()
    (folder / "egress.sock").symlink_to(victim)
    async with doors_of() as doors:
        await doors.open("box", "python", POLICY, folder, os.geteuid())
        mode = (folder / "egress.sock").lstat().st_mode
        await doors.open("open", "python", POLICY, tmp_path, None)
        public = (tmp_path / "egress.sock").lstat().st_mode

    assert victim.read_text() == "kept"
    assert stat.S_ISSOCK(mode)
    assert (mode & 0o777, public & 0o777) == (0o600, 0o666)


async def test_however_long_the_path_of_the_folder_is_a_socket_has_room(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    async with doors_of() as doors:
        await doors.open("box", "python", POLICY, folder, None)
        with socket.socket(socket.AF_UNIX) as client:
            descriptor = os.open(folder, os.O_PATH)
            await asyncio.to_thread(client.connect, f"/proc/self/fd/{descriptor}/egress.sock")
            os.close(descriptor)


async def test_many_doors_are_told_to_a_process_that_starts(tmp_path: Path) -> None:
    policy = EgressPolicy.of([f"{'x' * 60}.{'y' * 60}.{n}.test" for n in range(200)])
    async with doors_of() as doors:
        for n in range(40):
            (tmp_path / str(n)).mkdir()
            await doors.open(str(n), "python", policy, tmp_path / str(n), None)
        answers = await asyncio.gather(*(knock(tmp_path / str(n)) for n in range(40)))

    assert all(answer.startswith(REFUSED) for answer in answers)
