"""What every `Agent` promises, and what only a real kernel can show."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kernelpool.agents import Agent, HttpAgent
from kernelpool.errors import (
    Conflict,
    ExecutionNotFound,
    ExecutionQueueFull,
    FileNotFound,
    InvalidRequest,
    RangeNotSatisfiable,
    SandboxLost,
)
from kernelpool.models import (
    Activation,
    AgentStatus,
    Cell,
    Command,
    DisplayOutput,
    EndCause,
    ErrorOutput,
    Event,
    ExecuteRequest,
    Execution,
    ExecutionState,
    KeptExecution,
    Kind,
    Origin,
    ResultOutput,
    StreamOutput,
    WorkspacePath,
)
from kernelpool.protocol.outputs import fold
from tests.contract.agents import AGENTS, real_agent
from tests.extra import extra

ACTIVATION = Activation(session="s", cooldown=60, max_alive=600)


@pytest.fixture(params=sorted(AGENTS))
async def any_agent(request: pytest.FixtureRequest) -> AsyncIterator[Agent]:
    async with AGENTS[request.param]() as agent:
        await agent.activate(ACTIVATION)
        yield agent


@pytest.fixture
async def agent() -> AsyncIterator[HttpAgent]:
    async with real_agent() as agent:
        await agent.activate(ACTIVATION)
        yield agent


ids = iter(range(10**6))


async def run(agent: Agent, code: str, timeout: float = 60) -> Execution:
    return await agent.execute(ExecuteRequest(f"e{next(ids)}", code, timeout))


def stdout(execution: Execution) -> str:
    return "".join(o.text for o in execution.outputs if isinstance(o, StreamOutput) and o.name == "stdout")


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(agent: Agent, path: str, start: int | None = None, stop: int | None = None) -> bytes:
    async with agent.read_file(WorkspacePath.parse(path), start, stop) as content:
        data = b"".join([chunk async for chunk in content.chunks])
    assert len(data) == content.stop - content.start
    return data


async def drain(agent: Agent, id: str, after: int = -1) -> list[Event]:
    return [event async for event in agent.events(id, after) if event is not None]


# For code that the test lets go on, when all is as it should be.
WAIT = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\n"


async def let_go(agent: Agent) -> None:
    await agent.write_file(WorkspacePath.parse("go"), chunks(b""))


async def until(agent: Agent, holds: Callable[[AgentStatus], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds(await agent.status()):
            await asyncio.sleep(0.01)


# --- the contract, real and fake -------------------------------------------------------------------------------


async def test_an_agent_is_activated_once(any_agent: Agent) -> None:
    with pytest.raises(Conflict):
        await any_agent.activate(ACTIVATION)
    assert (await any_agent.status()).activated


async def test_code_runs_and_its_text_comes_back(any_agent: Agent) -> None:
    execution = await run(any_agent, "print('hi')")

    assert (execution.state, execution.cause) == (ExecutionState.SUCCEEDED, EndCause.COMPLETED)
    assert stdout(execution) == "hi\n"


async def test_the_same_id_runs_once(any_agent: Agent) -> None:
    request = ExecuteRequest("twice", "print('hi')", 30)

    first, second = await asyncio.gather(any_agent.execute(request), any_agent.execute(request))

    assert first == second
    assert await any_agent.execution("twice") == first
    assert (await run(any_agent, "print('hi')")).execution_count == 2


async def test_a_command_runs_beside_the_code(any_agent: Agent) -> None:
    await any_agent.submit(ExecuteRequest("busy", "while True: pass", 60))

    shell = await any_agent.execute(ExecuteRequest("shell", "echo hi; exit 3", 30, command=Command()))
    program = await any_agent.execute(ExecuteRequest("program", "", 30, command=Command(("echo", "a b"))))

    assert (stdout(shell), shell.exit_code, shell.kind) == ("hi\n", 3, Kind.COMMAND)
    assert (shell.state, shell.cause) == (ExecutionState.FAILED, EndCause.RAISED)
    assert (stdout(program), program.exit_code, program.state) == ("a b\n", 0, ExecutionState.SUCCEEDED)
    assert (await any_agent.cancel("busy")).kind is Kind.CODE


async def test_a_command_past_its_time_has_no_exit_code(any_agent: Agent) -> None:
    execution = await any_agent.execute(ExecuteRequest("slow", "sleep 1000", 0.2, command=Command()))

    assert (execution.state, execution.cause, execution.exit_code) == (ExecutionState.FAILED, EndCause.TIMED_OUT, None)


async def test_an_unknown_execution_is_not_found(any_agent: Agent) -> None:
    for ask in (any_agent.execution, any_agent.cancel):
        with pytest.raises(ExecutionNotFound):
            await ask("nobody")
    with pytest.raises(ExecutionNotFound):
        await drain(any_agent, "nobody")


async def listed(agent: Agent, after: int = 0, **options: Any) -> tuple[list[KeptExecution], int]:
    *kept, count = [item async for item in agent.executions(after, **options)]
    assert isinstance(count, int)
    return [item for item in kept if isinstance(item, KeptExecution)], count


async def test_executions_are_listed_with_their_code_whoever_submitted_them(any_agent: Agent) -> None:
    cell = Cell("intro", {"tags": ["raises-exception"]})
    await any_agent.execute(ExecuteRequest("a", "print('hi')", 30))
    await any_agent.execute(ExecuteRequest("b", "1/0", 30, origin=Origin.NOTEBOOK, cell=cell))

    kept, count = await listed(any_agent)

    assert [(item.number, item.execution.id, item.code, item.cell) for item in kept] == [
        (1, "a", "print('hi')", None),
        (2, "b", "1/0", cell),
    ]
    assert [(item.execution.origin, item.execution.state) for item in kept] == [
        (Origin.REST, ExecutionState.SUCCEEDED),
        (Origin.NOTEBOOK, ExecutionState.FAILED),
    ]
    assert [item.execution.outputs for item in kept] == [(), ()]
    assert count == 2


async def test_the_list_of_executions_has_pages_and_outputs_when_wanted(any_agent: Agent) -> None:
    for id in ("a", "b", "c"):
        await any_agent.execute(ExecuteRequest(id, f"print({id!r})", 30))

    kept, count = await listed(any_agent, after=1, limit=1, outputs=True)

    assert [(item.number, stdout(item.execution)) for item in kept] == [(2, "b\n")]
    assert count == 3
    assert await listed(any_agent, after=2**31) == ([], 3)


async def test_events_end_with_done_and_can_be_resumed(any_agent: Agent) -> None:
    await any_agent.submit(ExecuteRequest("e", "print('hi')", 30))

    events = await drain(any_agent, "e")
    resumed = await drain(any_agent, "e", after=events[1].seq)

    assert [event.kind for event in events][-1] == "done"
    assert "output" in [event.kind for event in events]
    assert resumed == events[2:]


async def test_files_go_up_and_come_down(any_agent: Agent) -> None:
    info = await any_agent.write_file(WorkspacePath.parse("a/b.bin"), chunks(b"0123", b"456789"))

    assert (info.path, info.size) == ("a/b.bin", 10)
    assert await read(any_agent, "a/b.bin") == b"0123456789"
    assert await read(any_agent, "a/b.bin", 2, 5) == b"234"
    assert await read(any_agent, "a/b.bin", -3) == b"789"
    assert await read(any_agent, "a/b.bin", -4, 8) == b"67"
    found = await any_agent.list_files(WorkspacePath.parse(""), recursive=True)
    assert [(f.path, f.is_directory) for f in found if not f.name.startswith(".")] == [("a", True), ("a/b.bin", False)]


async def test_a_deleted_file_is_gone(any_agent: Agent) -> None:
    path = WorkspacePath.parse("x")
    await any_agent.write_file(path, chunks(b"x"))

    await any_agent.delete_file(path)

    for ask in (any_agent.file_info, any_agent.delete_file):
        with pytest.raises(FileNotFound):
            await ask(path)
    with pytest.raises(FileNotFound):
        await read(any_agent, "x")


async def test_a_range_beyond_the_end_is_refused(any_agent: Agent) -> None:
    await any_agent.write_file(WorkspacePath.parse("x"), chunks(b"abc"))

    with pytest.raises(RangeNotSatisfiable):
        await read(any_agent, "x", 5)


# --- real kernels ------------------------------------------------------------------------------------------------


async def test_nothing_runs_before_activation() -> None:
    async with real_agent() as agent:
        with pytest.raises(Conflict):
            await run(agent, "1")
        with pytest.raises(Conflict):
            await agent.list_files(WorkspacePath.parse(""))


async def test_state_persists_and_results_come_with_their_count(agent: HttpAgent) -> None:
    await run(agent, "x = 41")

    execution = await run(agent, "x + 1")

    (result,) = execution.outputs
    assert isinstance(result, ResultOutput)
    assert (result.data["text/plain"], result.execution_count) == ("42", 2)


async def test_code_that_raises_is_an_output_and_the_next_call_runs(agent: HttpAgent) -> None:
    failed, after = await asyncio.gather(run(agent, "1/0"), run(agent, "print('next')"))

    assert (failed.state, failed.cause) == (ExecutionState.FAILED, EndCause.RAISED)
    assert isinstance(failed.outputs[-1], ErrorOutput)
    assert failed.outputs[-1].ename == "ZeroDivisionError"
    assert stdout(after) == "next\n"


async def test_a_timeout_interrupts_and_keeps_output_and_variables(agent: HttpAgent) -> None:
    # Long enough for the code to have begun: before that, an interrupt goes unheard.
    execution = await run(agent, "x = 1\nprint('begun', flush=True)\nwhile True: pass", timeout=5)

    assert (execution.state, execution.cause) == (ExecutionState.FAILED, EndCause.TIMED_OUT)
    assert (execution.interrupted, execution.kernel_restarted) == (True, False)
    assert stdout(execution) == "begun\n"
    assert "exceeded 5 s" in (execution.message or "")
    assert stdout(await run(agent, "print(x)")) == "1\n"


async def test_an_ignored_interrupt_ends_in_a_restart_that_is_told() -> None:
    async with real_agent(interrupt_grace=0.5) as agent:
        await agent.activate(ACTIVATION)
        code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nprint(1, flush=True)\nwhile True: pass"

        execution = await run(agent, code, timeout=5)
        after = await run(agent, "print('alive')")

        assert (execution.cause, execution.kernel_restarted) == (EndCause.TIMED_OUT, True)
        assert execution.state_lost_during
        assert stdout(execution) == "1\n"
        assert after.state_lost_before
        assert stdout(after) == "alive\n"
        assert (await run(agent, "1")).state_lost_before is None


async def test_code_that_is_stopped_before_the_kernel_has_begun_it_costs_no_variables() -> None:
    async with real_agent(interrupt_grace=30) as agent:
        await agent.activate(ACTIVATION)
        kernel = int(stdout(await run(agent, "import os; x = 1; print(os.getpid())")))
        os.kill(kernel, signal.SIGSTOP)
        stopped = asyncio.create_task(run(agent, "while True: pass", timeout=0.1))
        await asyncio.sleep(1)  # an agent that is slower still than this interrupts later, and passes

        os.kill(kernel, signal.SIGCONT)

        execution = await stopped
        assert (execution.cause, execution.kernel_restarted) == (EndCause.TIMED_OUT, False)
        assert stdout(await run(agent, "print(x)")) == "1\n"


HEARS_INTERRUPTS = """
import os, subprocess, sys, time
hears = "import signal, time; signal.signal(2, lambda *_: open('interrupted', 'w')); print(flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", hears], stdout=subprocess.PIPE)
child.stdout.readline()
x = 1
print(os.getpid(), os.getcwd())
"""


async def test_code_that_is_begun_after_the_interrupt_is_interrupted_again() -> None:
    async with real_agent(interrupt_grace=5) as agent:
        await agent.activate(ACTIVATION)
        kernel, folder = stdout(await run(agent, HEARS_INTERRUPTS)).split()
        os.kill(int(kernel), signal.SIGSTOP)
        stopped = asyncio.create_task(run(agent, "while True: pass", timeout=0.1))
        async with asyncio.timeout(60):
            while not await asyncio.to_thread(Path(folder, "interrupted").exists):
                await asyncio.sleep(0.05)

        os.kill(int(kernel), signal.SIGCONT)

        execution = await stopped
        assert (execution.cause, execution.kernel_restarted) == (EndCause.TIMED_OUT, False)
        assert stdout(await run(agent, "child.kill(); print(x)")) == "1\n"


async def test_a_kernel_that_dies_before_it_has_begun_leaves_the_next_one_alone(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with real_agent(interrupt_grace=30) as agent:
        await agent.activate(ACTIVATION)
        kernel = int(stdout(await run(agent, "import os; print(os.getpid())")))
        os.kill(kernel, signal.SIGSTOP)
        stopped = asyncio.create_task(run(agent, "while True: pass", timeout=0.1))
        await asyncio.sleep(1)  # as above

        os.kill(kernel, signal.SIGKILL)

        assert (await stopped).state_lost_during
        assert stdout(await run(agent, "print(1)")) == "1\n"
    told = capfd.readouterr().err
    assert "kernel lost" in told
    assert "did not start" not in told


# A kernel's flush is over when ZMQ has the text, whose own thread then writes it. That thread dies with the kernel:
# what it had written is what is promised to arrive.
LAST_WORDS = "import ctypes, os, signal, time\nprint('x', flush=True)\ntime.sleep(1)\n"


@pytest.mark.parametrize(
    ("death", "said"),
    [
        ("os._exit(3)", "exited with code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "out of memory"),
        ("ctypes.string_at(0)", "SIGSEGV"),
    ],
)
async def test_a_kernel_that_dies_ends_the_call_at_once_and_is_replaced(
    agent: HttpAgent, death: str, said: str
) -> None:
    execution = await run(agent, LAST_WORDS + death)
    after = await run(agent, "print('alive')")

    assert (execution.state, execution.cause) == (ExecutionState.FAILED, EndCause.KERNEL_DIED)
    assert said in (execution.message or "")
    assert stdout(execution) == "x\n"
    assert said in (after.state_lost_before or "")
    assert stdout(after) == "alive\n"


async def test_what_the_kernel_had_sent_is_read_though_its_death_is_seen_first(agent: HttpAgent) -> None:
    """The agent stands still until the kernel is gone: then everything is there at once, its death too."""
    code = "import os, signal, subprocess, time\nagent = os.getppid()\n"
    # Its parent stands still, so it stays a zombie.
    code += "dead = f'while grep -qs \"State:.[^ZX]\" /proc/{os.getpid()}/status; do sleep 0.05; done'\n"
    code += "subprocess.Popen(f'{dead}; kill -CONT {agent}', shell=True, start_new_session=True)\n"
    code += "os.kill(agent, signal.SIGSTOP)\nfor n in range(80): print(n, flush=True)\ntime.sleep(1)\nos._exit(3)"

    execution = await run(agent, code)

    assert execution.cause is EndCause.KERNEL_DIED
    assert stdout(execution).split() == [str(number) for number in range(80)]


async def test_calls_run_in_the_order_they_came_and_the_queue_is_bounded() -> None:
    async with real_agent(queue_size=3) as agent:
        await agent.activate(ACTIVATION)
        await agent.submit(ExecuteRequest("first", "order = ['first']\n" + WAIT, 60))
        await until(agent, lambda status: status.running == 1)
        for name in ("a", "b", "c"):
            await agent.submit(ExecuteRequest(name, f"order.append({name!r})", 30))

        with pytest.raises(ExecutionQueueFull):
            await agent.submit(ExecuteRequest("d", "order.append('d')", 30))
        await let_go(agent)
        await drain(agent, "c")

        assert stdout(await run(agent, "print(order)")) == "['first', 'a', 'b', 'c']\n"


async def test_cancel_interrupts_what_runs_and_unqueues_what_waits(agent: HttpAgent) -> None:
    await agent.submit(ExecuteRequest("running", "while True: pass", 30))
    await agent.submit(ExecuteRequest("waiting", "print('never')", 30))

    waiting = await agent.cancel("waiting")
    running = await agent.cancel("running")

    assert [waiting.state, running.state] == [ExecutionState.CANCELED] * 2
    assert (waiting.outputs, running.interrupted) == ((), True)


async def test_output_streams_while_the_code_runs(agent: HttpAgent) -> None:
    await agent.submit(ExecuteRequest("e", f"print('one', flush=True)\n{WAIT}print('two')", 60))
    texts = []

    async for event in agent.events("e"):
        if event is not None and event.kind == "output":
            texts.append(event.data["text"])
            await let_go(agent)

    assert "".join(texts) == "one\ntwo\n"
    assert texts[0] == "one\n"


async def test_a_flood_of_output_is_cut_in_the_middle_and_flagged() -> None:
    async with real_agent(output_bytes=1 << 20) as agent:
        await agent.activate(ACTIVATION)

        execution = await run(agent, "print('begin')\nfor _ in range(200): print('x' * 10**6)\nprint('end')", 60)

        text = stdout(execution)
        assert execution.state is ExecutionState.SUCCEEDED
        assert text.startswith("begin\nx")
        assert text.endswith("x\nend\n")
        assert len(text) < (1 << 20) + 200
        assert execution.dropped_bytes > 198 * 10**6


async def test_a_forged_idle_neither_ends_nor_leaks(agent: HttpAgent) -> None:
    forge = """
kernel = get_ipython().kernel
parent = kernel.get_parent()
kernel.session.send(kernel.iopub_socket, "status", {"execution_state": "idle"}, parent=parent)
import time; time.sleep(0.5)
print("late")
"""
    forged = await run(agent, forge)
    after = await run(agent, "print('mine')")

    assert stdout(forged) == "late\n"
    assert stdout(after) == "mine\n"


async def test_output_of_a_thread_goes_to_the_call_that_started_it(agent: HttpAgent) -> None:
    code = """
import threading
go = threading.Event()
def late():
    go.wait(); print("from the thread", flush=True)
thread = threading.Thread(target=late); thread.start()
"""
    started = await run(agent, code)
    second = await run(agent, "go.set(); thread.join(); print('second')")
    async with asyncio.timeout(60):
        while "thread" not in stdout(await agent.execution(started.id)):
            await asyncio.sleep(0.01)

    assert stdout(second) == "second\n"


async def test_displayed_images_become_files_and_the_output_names_them(agent: HttpAgent) -> None:
    code = "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.savefig('chart.png'); print('ok')"

    execution = await run(agent, code)

    (display,) = [output for output in execution.outputs if isinstance(output, DisplayOutput)]
    assert display.files == (f"image-{execution.id}-1.png",)
    assert await read(agent, display.files[0]) == base64.b64decode(display.data["image/png"])
    assert set(execution.files) == {"chart.png", display.files[0]}
    assert (await read(agent, "chart.png")).startswith(b"\x89PNG")


async def test_images_stay_in_the_output_when_they_are_not_to_be_saved() -> None:
    async with real_agent(save_images=False) as agent:
        await agent.activate(ACTIVATION)
        await run(agent, "import matplotlib.pyplot as plt")  # on a slow machine it warns that it looks for fonts

        execution = await run(agent, "plt.plot([1]); plt.show()")

        (display,) = execution.outputs
        assert isinstance(display, DisplayOutput)
        assert (display.files, execution.files) == ((), ())


async def test_what_is_no_regular_file_is_refused_without_waiting(agent: HttpAgent) -> None:
    await run(
        agent, "import os; os.mkfifo('fifo'); os.symlink('/dev/zero', 'zero'); os.mkdir('d'); os.symlink('l', 'l')"
    )

    for name in ("fifo", "zero", "d", "l"):
        with pytest.raises(InvalidRequest):
            await read(agent, name)


async def test_a_planted_symlink_is_deleted_not_followed(agent: HttpAgent) -> None:
    await run(agent, "import os; os.mkdir('real'); open('real/f', 'w').close(); os.symlink('real', 'link')")

    await agent.delete_file(WorkspacePath.parse("link"))

    assert (await agent.file_info(WorkspacePath.parse("real/f"))).size == 0


async def test_a_broken_upload_leaves_nothing(agent: HttpAgent) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    with pytest.raises(SandboxLost):
        await agent.write_file(WorkspacePath.parse("f"), broken())

    await until(agent, lambda status: status.idle_seconds > 0)
    assert (
        stdout(await run(agent, "import os; print([n for n in os.listdir() if 'f' == n or 'upload' in n])")) == "[]\n"
    )


async def test_a_killed_agent_is_a_lost_sandbox(agent: HttpAgent) -> None:
    with pytest.raises(SandboxLost):
        await run(agent, "import os, signal; os.kill(os.getppid(), signal.SIGKILL)")


async def test_a_stopped_agent_is_lost_after_the_silence_limit() -> None:
    async with real_agent() as agent:
        await agent.activate(ACTIVATION)
        pid = int(stdout(await run(agent, "import os; print(os.getppid())")))
        impatient = HttpAgent(agent.address, "secret", silence=1)
        try:
            with pytest.raises(SandboxLost):
                await run(impatient, "import os, signal; os.kill(os.getppid(), signal.SIGSTOP)")
        finally:
            await until_stopped(pid)  # whoever loses patience soon may do so before that
            os.kill(pid, signal.SIGCONT)
            await impatient.aclose()


async def until_stopped(pid: int) -> None:
    async with asyncio.timeout(60):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            await asyncio.sleep(0.01)


async def test_the_wrong_secret_opens_nothing(agent: HttpAgent) -> None:
    stranger = HttpAgent(agent.address, "guess")

    with pytest.raises(Exception, match="status 401"):
        await stranger.status()
    await stranger.aclose()


@pytest.mark.parametrize(
    "code",
    [
        "import numpy as np; float('nan')",
        "from IPython.display import display\ndisplay({'text/plain\\r\\nX': 'y', 'text/plain': 'z'}, raw=True)",
        "print('\\ud800 \\x00 \\x1b[31m')",
        "import sys; sys.stdout.buffer.write(bytes(range(256)))",
        "class X:\n def __repr__(self): raise ValueError\nX()",
        "from IPython.display import JSON, display\nx = []\nfor _ in range(400): x = [x]\ndisplay(JSON(x))",
        "raise type('E', (Exception,), {'__str__': lambda self: 1/0})()",
        "f = lambda: f()\nf()",
        "10 ** 10000",
        "raise ExceptionGroup('g', [ExceptionGroup('h', [ValueError(i) for i in range(50)]) for _ in range(50)])",
    ],
)
async def test_strange_output_is_always_clean_json(agent: HttpAgent, code: str) -> None:
    execution = await run(agent, code)

    assert execution.state.is_final
    json.dumps([o.text for o in execution.outputs if isinstance(o, StreamOutput)], ensure_ascii=False).encode()
    assert stdout(await run(agent, "print('alive')")) == "alive\n"


async def test_the_outputs_of_old_executions_make_room_and_their_ids_never_run_again() -> None:
    async with real_agent(history_size=2) as agent:
        await agent.activate(ACTIVATION)
        for id in ("a", "b", "c", "d"):
            await agent.execute(ExecuteRequest(id, "print(1)", 30))

        with pytest.raises(ExecutionNotFound):
            await agent.execution("a")
        with pytest.raises(Conflict):
            await agent.execute(ExecuteRequest("a", "print(1)", 30))
        assert (await agent.execution("d")).execution_count == 4


async def test_late_output_counts_towards_the_history() -> None:
    async with real_agent(history_bytes=3 << 20) as agent:
        await agent.activate(ACTIVATION)
        code = "import threading\ndef late():\n go.wait()\n for _ in range(40): print('x' * 65536)\n"
        code += "threads.append(threading.Thread(target=late)); threads[-1].start()"
        await run(agent, "import threading; go = threading.Event(); threads = []")
        late = [(await run(agent, code)).id for _ in range(6)]

        await run(agent, "go.set()\nfor thread in threads: thread.join()")

        async with asyncio.timeout(60):
            while (kept := [id for id in late if await is_kept(agent, id)]) == late:
                await asyncio.sleep(0.01)
        assert len(kept) < 6


async def is_kept(agent: Agent, id: str) -> bool:
    try:
        await agent.execution(id)
    except ExecutionNotFound:
        return False
    return True


async def test_many_things_in_little_text_are_left_out(agent: HttpAgent) -> None:
    code = "from IPython.display import display\n"
    code += "for count in (1_390_000, 200_000): display({'application/json': [{}] * count}, raw=True)"

    execution = await run(agent, code)

    assert execution.state is ExecutionState.SUCCEEDED
    for output in execution.outputs:
        assert isinstance(output, DisplayOutput)
        assert "was left out" in output.data["text/plain"]
    assert len(execution.outputs) == 2
    assert execution.dropped_bytes > 4_000_000


async def test_a_trace_reaches_the_kernel(agent: HttpAgent) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    code = "print(get_ipython().kernel.get_parent()['metadata'].get('traceparent'))"

    traced = await agent.execute(ExecuteRequest("traced", code, 30, trace))

    assert stdout(traced) == f"{trace}\n"
    assert stdout(await run(agent, code)) == "None\n"


async def test_the_status_tells_what_the_sandbox_uses(agent: HttpAgent) -> None:
    status = await agent.status()

    assert status.cpu_seconds > 0.1
    assert status.memory_bytes > 50 << 20
    assert status.workspace_bytes == 0  # here it is a part of some other file system


async def test_whoever_follows_the_events_sees_what_was_cleared(agent: HttpAgent) -> None:
    code = "from IPython.display import clear_output\nprint('old', flush=True)\n"
    code += WAIT + "clear_output(wait=True); print('new')"
    await agent.submit(ExecuteRequest("e", code, 60))
    events = []

    async for event in agent.events("e"):
        if event is not None:
            events.append(event)
            if event.kind == "output":
                await let_go(agent)

    assert fold(events) == (await agent.execution("e")).outputs == (StreamOutput("stdout", "new\n"),)


async def test_what_ended_before_the_kernel_died_has_ended_well(agent: HttpAgent) -> None:
    code = "import os, threading, time\ndef end():\n while not os.path.exists('go'): time.sleep(0.01)\n os._exit(3)\n"
    code += "threading.Thread(target=end).start()"
    execution = await run(agent, code)
    await let_go(agent)
    async with asyncio.timeout(60):
        while (after := await run(agent, "1")).state_lost_before is None and after.cause is EndCause.COMPLETED:
            pass

    assert await agent.execution(execution.id) == execution
    assert (execution.cause, execution.state_lost_during) == (EndCause.COMPLETED, None)


async def test_a_notice_of_activation_is_told_to_the_first_execution_only() -> None:
    async with real_agent() as agent:
        await agent.activate(Activation("s", 60, 600, notice="the sandbox ran out of memory"))

        first, second = await run(agent, "1"), await run(agent, "2")

        assert (first.state_lost_before, second.state_lost_before) == ("the sandbox ran out of memory", None)


async def test_an_upload_that_is_refused_says_why_after_its_body(agent: HttpAgent) -> None:
    await run(agent, "import os; os.mkdir('d')")

    with pytest.raises(InvalidRequest, match="is a directory"):
        await agent.write_file(WorkspacePath.parse("d"), chunks(*[b"x" * (1 << 20)] * 20))
    assert (await agent.status()).ready


async def test_a_file_of_any_name_comes_down(any_agent: Agent) -> None:
    for name in ("ü日😀.txt", "a b.txt", 'q"uote', "\u2028"):
        await any_agent.write_file(WorkspacePath.parse(name), chunks(b"0123456789"))

        assert await read(any_agent, name) == b"0123456789"
        assert await read(any_agent, name, 2, 4) == b"23"


async def test_a_directory_too_deep_to_be_named_does_not_break_the_list(agent: HttpAgent) -> None:
    await run(
        agent, "import os\nfor _ in range(25): os.mkdir('d' * 200); os.chdir('d' * 200)\nos.chdir(os.environ['HOME'])"
    )

    found = await agent.list_files(WorkspacePath.parse(""), recursive=True)

    assert 15 < sum("ddd" in info.path for info in found) < 25


async def test_an_error_is_told_once_and_last(agent: HttpAgent) -> None:
    for _ in range(40):
        execution = await run(agent, "print(1)\n1/0")

        assert [output.type for output in execution.outputs] == ["stream", "error"]


@extra
async def test_the_output_of_forgotten_executions_costs_no_memory() -> None:
    async with real_agent(history_bytes=1 << 20) as agent:
        await agent.activate(ACTIVATION)
        size = "print(next(l for l in open(f'/proc/{__import__(\"os\").getppid()}/status') if 'VmRSS' in l).split()[1])"
        for _ in range(40):  # by then the allocator has what it wants
            await run(agent, "print('x' * 6 * 10**6)")
        before = int(stdout(await run(agent, size)))
        for _ in range(40):
            await run(agent, "print('x' * 6 * 10**6)")

        assert int(stdout(await run(agent, size))) - before < 60_000  # of 240,000
