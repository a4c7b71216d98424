"""Commands beside the kernel, by the real agent: their ends, their outputs to the last line, and what they leave."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kernelpool.agents import HttpAgent
from kernelpool.errors import AgentFault, ExecutionQueueFull, InvalidRequest
from kernelpool.models import (
    MAX_ARGUMENT,
    Activation,
    Command,
    EndCause,
    ExecuteRequest,
    Execution,
    ExecutionState,
    Kind,
    StreamOutput,
    WorkspacePath,
)
from tests.contract.agents import SHELL_LAUNCHER, real_agent

ACTIVATION = Activation(session="s", cooldown=60, max_alive=600)


@pytest.fixture
async def agent() -> AsyncIterator[HttpAgent]:
    async with real_agent(launcher=SHELL_LAUNCHER) as agent:  # the kernel that starts soonest
        await agent.activate(ACTIVATION)
        yield agent


ids = iter(range(10**6))


def request(
    code: str = "", *arguments: str, stdin: str = "", pty: bool = False, timeout: float = 60, id: str | None = None
) -> ExecuteRequest:
    return ExecuteRequest(id or f"c{next(ids)}", code, timeout, command=Command(arguments, stdin, pty))


async def shell(agent: HttpAgent, code: str, *, stdin: str = "", pty: bool = False, timeout: float = 60) -> Execution:
    return await agent.execute(request(code, stdin=stdin, pty=pty, timeout=timeout))


def text(execution: Execution, name: str = "stdout") -> str:
    return "".join(o.text for o in execution.outputs if isinstance(o, StreamOutput) and o.name == name)


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


async def until_dead(pid: int) -> None:
    async with asyncio.timeout(60):
        while is_alive(pid):
            await asyncio.sleep(0.01)


async def started(agent: HttpAgent, id: str) -> str:
    """What it has written, once it has written a line."""
    async for event in agent.events(id):
        if event is not None and event.kind == "output" and "\n" in event.data["text"]:
            return str(event.data["text"])
    raise AssertionError("it wrote nothing")


async def test_a_command_ends_with_its_exit_code_and_both_streams(agent: HttpAgent) -> None:
    execution = await shell(agent, "echo out; echo err >&2; exit 3")

    assert (execution.kind, execution.exit_code) == (Kind.COMMAND, 3)
    assert (execution.state, execution.cause) == (ExecutionState.FAILED, EndCause.RAISED)
    assert (text(execution), text(execution, "stderr")) == ("out\n", "err\n")


async def test_a_command_is_a_login_shell_in_the_workspace_with_nothing_on_stdin(agent: HttpAgent) -> None:
    execution = await shell(agent, 'shopt -q login_shell && echo login; cat; [ "$PWD" = "$HOME" ] && echo home')

    assert text(execution) == "login\nhome\n"
    assert execution.exit_code == 0


async def test_arguments_are_passed_as_they_are_and_stdin_to_its_end(agent: HttpAgent) -> None:
    words = ("printf", "[%s]", "a b", "$HOME", "", "'\"\n")
    stdin = "line\n" * 100_000

    printed = await agent.execute(request("", *words))
    counted = await agent.execute(request("", "wc", "-c", stdin=stdin))

    assert text(printed) == "[a b][$HOME][]['\"\n]"
    assert text(counted).split() == [str(len(stdin))]


async def test_what_cannot_be_started_has_the_exit_code_that_shells_give_it(agent: HttpAgent) -> None:
    await shell(agent, "echo data > plain; mkdir folder")

    missing = await agent.execute(request("", "no-such-program"))
    forbidden = await agent.execute(request("", "./plain"))

    assert (missing.exit_code, forbidden.exit_code) == (127, 126)
    assert "No such file" in text(missing, "stderr")
    assert "Permission denied" in text(forbidden, "stderr")


async def test_a_signal_that_ends_it_is_told_as_shells_do(agent: HttpAgent) -> None:
    execution = await shell(agent, "kill -KILL $$")

    assert execution.exit_code == 137
    assert "SIGKILL" in (execution.message or "")


async def test_no_last_line_is_lost(agent: HttpAgent) -> None:
    """ACA loses 16 to 40 of these thousand. `benchmarks/last_line.py` runs ten thousand."""

    async def one(number: int) -> str:
        return text(await shell(agent, f"head -c {number * 97} /dev/zero | tr '\\0' x; echo last-{number}"))

    for start in range(0, 300, 8):
        outputs = await asyncio.gather(*(one(number) for number in range(start, start + 8)))
        for number, output in enumerate(outputs, start):
            assert output == "x" * (number * 97) + f"last-{number}\n"


async def test_what_is_not_waited_for_has_its_last_words_too() -> None:
    # The agent lingers for longer than it does for users: on a busy machine `tee` starts slowly.
    first = "from kernelpool.agent import pipes; pipes.LINGER = 60; "
    async with real_agent(launcher=SHELL_LAUNCHER, first=first) as agent:
        await agent.activate(ACTIVATION)

        execution = await shell(agent, "echo logged > >(tee log)")

    assert text(execution) == "logged\n"


async def test_a_background_process_keeps_no_call_open_lives_on_and_is_heard_later(agent: HttpAgent) -> None:
    begun = await agent.execute(
        request("(while [ ! -e go ]; do sleep 0.01; done; echo later; sleep 1000) & echo $!", id="begun")
    )
    pid = int(text(begun))

    assert begun.seconds < 30  # of the 60 that it may take
    assert is_alive(pid)
    await shell(agent, "touch go")
    async with asyncio.timeout(60):
        while "later" not in text(await agent.execution("begun")):
            await asyncio.sleep(0.01)
    listed = await shell(agent, f"ps -o pid= -p {pid}; kill {pid}")
    assert text(listed).split() == [str(pid)]
    await until_dead(pid)


async def test_a_flood_in_the_background_leaves_the_agent_at_ease(agent: HttpAgent) -> None:
    begun = await shell(agent, "yes >&2 & echo $!")
    pid = int(text(begun))

    next_one = await shell(agent, f"echo next; kill {pid}")

    assert text(next_one) == "next\n"
    await until_dead(pid)


async def test_a_command_past_its_time_ends_with_all_that_it_started(agent: HttpAgent) -> None:
    # One that ignores SIGTERM, one in a process group of its own, one in a session of its own.
    code = (
        "bash -c 'trap \"\" TERM; while :; do sleep 0.1; done' & echo $!; set -m; sleep 1000 & echo $!; set +m; "
        "setsid sleep 1000 & echo $!; echo said; wait"
    )

    execution = await shell(agent, code, timeout=10)  # all of them are there by then

    *pids, said = text(execution).split()
    assert (execution.state, execution.cause, execution.exit_code) == (
        ExecutionState.FAILED,
        EndCause.TIMED_OUT,
        None,
    )
    assert said == "said"
    assert execution.seconds == pytest.approx(10, abs=1e-3)
    assert [pid for pid in pids if is_alive(int(pid))] == []


async def test_a_canceled_command_ends_and_so_does_one_that_waits(agent: HttpAgent) -> None:
    running = [request("echo on; sleep 1000") for _ in range(8)]
    waiting = request("echo never")
    for each in (*running, waiting):
        await agent.submit(each)
    await asyncio.gather(*(started(agent, each.id) for each in running))

    unqueued = await agent.cancel(waiting.id)
    ended = await asyncio.gather(*(agent.cancel(each.id) for each in running))

    assert (unqueued.state, unqueued.outputs) == (ExecutionState.CANCELED, ())
    assert {(each.state, each.cause, text(each)) for each in ended} == {
        (ExecutionState.CANCELED, EndCause.CANCELED, "on\n")
    }


async def test_too_many_waiting_commands_are_refused(agent: HttpAgent) -> None:
    for _ in range(8 + 16):
        await agent.submit(request("sleep 1000"))

    with pytest.raises(ExecutionQueueFull):
        await agent.submit(request("echo one more"))


async def test_commands_do_not_wait_for_code_and_can_end_it(agent: HttpAgent) -> None:
    await agent.submit(ExecuteRequest("stuck", "echo $$; while :; do :; done", 60))
    pid = int(await started(agent, "stuck"))

    execution = await shell(agent, f"kill -INT {pid}; echo sent")

    assert text(execution) == "sent\n"
    async for event in agent.events("stuck"):
        if event is not None and event.kind == "done":
            break
    assert (await agent.execution("stuck")).cause is EndCause.RAISED


async def test_a_command_is_kept_with_its_text_and_runs_once(agent: HttpAgent) -> None:
    once = request("echo x >> count; wc -l < count", id="once")

    first = await agent.execute(once)
    second = await agent.execute(once)
    kept = [item async for item in agent.executions(outputs=True)]

    assert text(first) == text(second) == "1\n"
    assert not isinstance(kept[0], int)
    assert (kept[0].code, kept[0].execution.kind, kept[0].execution.exit_code) == (once.code, Kind.COMMAND, 0)
    assert first.files == ("count",)


async def test_output_is_streamed_and_bounded(agent: HttpAgent) -> None:
    execution = await shell(agent, "echo first; yes 0123456789 | head -c 40000000; echo; echo last")

    assert text(execution).startswith("first\n")
    assert text(execution).endswith("\nlast\n")
    assert execution.dropped_bytes > 20_000_000
    assert sum(len(o.text) for o in execution.outputs if isinstance(o, StreamOutput)) < 9_000_000


async def test_a_hundred_thousand_lines_are_all_there(agent: HttpAgent) -> None:
    execution = await shell(agent, "for ((i = 0; i < 100000; i++)); do echo $i; done")

    assert text(execution).splitlines() == [str(number) for number in range(100_000)]


async def test_bytes_that_are_no_text_are_replaced_and_characters_stay_whole(agent: HttpAgent) -> None:
    execution = await shell(agent, r"printf '\303'; sleep 0.2; printf '\244\377|'; printf '\342\202'")

    assert text(execution) == "ä\ufffd|\ufffd"


async def test_a_terminal_where_one_is_asked_for(agent: HttpAgent) -> None:
    without = await shell(agent, "tty; [ -t 1 ] || echo none")
    within = await shell(agent, "tty; stty size; (exec 3<>/dev/tty && echo own) ; echo err >&2; exit 4", pty=True)

    assert text(without) == "not a tty\nnone\n"
    assert re.fullmatch(r"/dev/pts/\d+\n24 80\nown\nerr\n", text(within))
    assert within.exit_code == 4


async def test_what_is_typed_into_a_terminal_is_read_from_it(agent: HttpAgent) -> None:
    execution = await shell(agent, 'read -r line; echo "got $line"; cat; echo end', stdin="hello", pty=True)

    assert "got hello\n" in text(execution)
    assert text(execution).endswith("end\n")


async def test_no_last_line_is_lost_in_a_terminal(agent: HttpAgent) -> None:
    for number in range(100):
        execution = await shell(agent, f"seq {number * 10}; echo last-{number}", pty=True)

        assert text(execution).splitlines() == [*map(str, range(1, number * 10 + 1)), f"last-{number}"]


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ({"arguments": ("x" * (MAX_ARGUMENT + 1),)}, "131071"),
        ({"arguments": ("x" * 100_000,) * 11}, "1048576"),
        ({"arguments": ("a\0b",)}, "NUL"),
        ({"arguments": ("\ud800",)}, "Unicode"),
        ({"pty": True, "stdin": "x" * 4001}, "4000"),
    ],
)
def test_what_no_program_can_be_told_is_refused(command: dict[str, object], what: str) -> None:
    with pytest.raises(InvalidRequest, match=what):
        Command(**command)  # type: ignore[arg-type]


async def test_an_argument_as_long_as_linux_allows_gets_through(agent: HttpAgent) -> None:
    longest = await agent.execute(request("", "/bin/echo", "x" * MAX_ARGUMENT))
    command = await shell(agent, f"echo {'x' * (MAX_ARGUMENT - 5)}")
    many = await agent.execute(request("", "/bin/echo", *["x" * 100_000] * 10))

    assert [len(text(each)) for each in (longest, command, many)] == [MAX_ARGUMENT + 1, MAX_ARGUMENT - 4, 1_000_010]
    with pytest.raises(InvalidRequest, match="the command has 131072 bytes"):
        request("x" * (MAX_ARGUMENT + 1))


async def test_what_pip_installs_is_found_by_commands(agent: HttpAgent) -> None:
    execution = await agent.execute(request("", "env"))

    found = dict(line.split("=", 1) for line in text(execution).splitlines())
    local = f"{found['HOME']}/.local"
    assert found["PIP_PREFIX"] == local
    assert found["PATH"].startswith(f"{local}/bin:")
    assert found["PYTHONPATH"].startswith(f"{local}/lib/python3.")


async def test_processes_in_the_background_live_on_when_there_are_too_many_to_listen_to(agent: HttpAgent) -> None:
    """Those that write nothing do not mind."""
    pids = [text(await shell(agent, "sleep 1000 & echo $!")).strip() for _ in range(40)]

    counted = await shell(agent, f"ps -o pid= -p {','.join(pids)} | wc -l; kill {' '.join(pids)}")

    assert text(counted) == "40\n"


async def test_the_files_of_a_command_are_told(agent: HttpAgent) -> None:
    execution = await shell(agent, "mkdir a; echo x > a/b; echo y > c")

    assert execution.files == ("a/b", "c")
    assert (await agent.file_info(WorkspacePath.parse("a/b"))).size == 2


async def test_what_an_agent_says_of_a_command_is_checked(agent: HttpAgent) -> None:
    """The exit code becomes a status: it is one, or the agent is no honest one."""
    from kernelpool.agents.answers import EXECUTION, parse

    said = b'{"id": "a", "state": "failed", "created_at": 1, "kind": "command", "exit_code": %d}'

    assert parse(EXECUTION, said % 3).exit_code == 3
    for impossible in (-1, 256, 10**30):
        with pytest.raises(AgentFault):
            parse(EXECUTION, said % impossible)


assert os.path.exists("/bin/bash"), "these tests need bash"


async def test_signals_that_the_gateway_ignores_are_not_ignored_by_programs() -> None:
    signals = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    before = [signal.signal(number, signal.SIG_IGN) for number in signals]  # as `nohup … &` in a script
    async with real_agent(launcher=SHELL_LAUNCHER) as agent:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
        await agent.activate(ACTIVATION)

        for number in signals:
            assert text(await shell(agent, f"sh -c 'kill -{number} $$; echo ignored'; echo on")) == "on\n"
