"""What the channels of every `Agent` promise to Jupyter clients, and what only a real kernel can show."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kernelpool.agents import Agent, HttpAgent
from kernelpool.errors import Conflict, InvalidRequest
from kernelpool.models import (
    Activation,
    EndCause,
    ExecuteRequest,
    ExecutionState,
    KeptExecution,
    KernelPhase,
    KernelState,
    Origin,
    StreamOutput,
    WorkspacePath,
)
from kernelpool.protocol.framing import WireMessage, encode_v1
from tests.contract.agents import AGENTS, LAUNCHER, SHELL_LAUNCHER, real_agent
from tests.jupyter import Told, jupyter

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


async def until(agent: Agent, holds: Callable[[KernelState], bool]) -> KernelState:
    async with asyncio.timeout(60):
        while not holds(state := await agent.kernel()):
            await asyncio.sleep(0.01)
    return state


async def kept(agent: Agent) -> list[KeptExecution]:
    return [one async for one in agent.executions(outputs=True) if isinstance(one, KeptExecution)]


# --- the contract, real and fake -------------------------------------------------------------------------------


async def test_a_cell_is_an_execution_of_the_session(any_agent: Agent) -> None:
    async with jupyter(any_agent) as client:
        reply = await client.run("x = 41; print('hi')")
        id = reply.parent["msg_id"]

        assert (reply.channel, reply.content["status"]) == ("shell", "ok")
        assert [m.state for m in client.of(id, "status")] == ["busy", "idle"]
        assert client.of(id, "execute_input")[0].content["code"] == "x = 41; print('hi')"
        assert client.text(id) == "hi\n"
    (execution,) = [one.execution for one in await kept(any_agent)]
    assert (execution.id, execution.origin, execution.state) == (
        f"jupyter-{id}",
        Origin.JUPYTER,
        ExecutionState.SUCCEEDED,
    )
    assert execution.outputs == (StreamOutput("stdout", "hi\n"),)


async def test_variables_are_shared_and_what_others_run_is_seen(any_agent: Agent) -> None:
    async with jupyter(any_agent) as client:
        await client.run("x = 41")

        execution = await any_agent.execute(ExecuteRequest("rest", "print(x + 1)", 30))

        assert execution.outputs == (StreamOutput("stdout", "42\n"),)
        await client.until(lambda: any(m.kind == "stream" and m.content["text"] == "42\n" for m in client.heard))
        await client.until(lambda: client.heard[-1].state == "idle")
        kinds = [m.kind for m in client.heard if m.parent.get("msg_id") == client.heard[-1].parent["msg_id"]]
        assert kinds == ["status", "execute_input", "stream", "status"]


async def test_executions_of_both_sides_run_in_one_order(any_agent: Agent) -> None:
    async with jupyter(any_agent) as client:
        await client.run("import time; order = []")
        first = await client.execute("time.sleep(0.3); order.append('a')")
        await client.until(lambda: bool(client.of(first, "execute_input")))
        await any_agent.submit(ExecuteRequest("b", "order.append('b')", 30))
        await until(any_agent, lambda state: state.queued == 1 or state.execution_state is KernelPhase.IDLE)
        last = await client.execute("order.append('c'); print(order)")

        await client.result(last)

        assert client.text(last) == "['a', 'b', 'c']\n"


async def test_a_client_that_comes_back_gets_what_it_missed_once(any_agent: Agent, tmp_path: Path) -> None:
    go = tmp_path / "go"
    async with jupyter(any_agent) as client:
        await client.run("import os, time; print('seen')")
        id = await client.execute(f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\nprint('missed')")
        await client.until(lambda: bool(client.of(id, "execute_input")))
    await until(any_agent, lambda state: state.connections == 0)
    go.touch()
    await until(any_agent, lambda state: state.execution_state is KernelPhase.IDLE)

    async with jupyter(any_agent) as again:
        await again.result(id)

        assert again.text(id) == "missed\n"
        assert "seen\n" not in [m.content.get("text") for m in again.heard]


async def test_what_was_not_confirmed_is_told_again_and_the_last_message_is_exact(any_agent: Agent) -> None:
    async with jupyter(any_agent, confirm=False) as client:
        reply = await client.run("print(1)")
        heard = [m.header["msg_id"] for m in client.heard]
    await until(any_agent, lambda state: state.connections == 0)

    async with jupyter(any_agent, confirm=False) as again:
        await again.result(reply.parent["msg_id"])
        assert [m.header["msg_id"] for m in again.heard] == heard
    async with jupyter(any_agent, last_msg_id=heard[1]) as third:
        await third.until(lambda: len(third.heard) == len(heard) - 2)
        assert [m.header["msg_id"] for m in third.heard] == heard[2:]


async def test_a_new_session_hears_only_what_comes(any_agent: Agent) -> None:
    async with jupyter(any_agent, "old") as client:
        await client.run("print('before')")
    async with jupyter(any_agent, "new") as other:
        id = (await other.run("print('after')")).parent["msg_id"]

        assert {m.parent.get("msg_id") for m in other.heard} == {id}


async def test_replies_go_to_who_asked_and_outputs_to_all(any_agent: Agent) -> None:
    async with jupyter(any_agent, "one") as one, jupyter(any_agent, "two") as two:
        id = (await one.run("print('hi')")).parent["msg_id"]
        await two.until(lambda: any(m.state == "idle" for m in two.of(id)))

        assert two.text(id) == "hi\n"
        assert {m.channel for m in two.heard} == {"iopub"}


async def test_the_newer_connection_of_a_session_takes_the_place_of_the_older(any_agent: Agent) -> None:
    async with jupyter(any_agent) as older:
        await older.run("1")
        async with jupyter(any_agent) as newer:
            await older.until(lambda: older.ended)

            await newer.run("2")
            assert (await any_agent.kernel()).connections == 1


async def test_an_interrupt_ends_what_runs(any_agent: Agent) -> None:
    async with jupyter(any_agent) as client:
        id = await client.execute("print('begun')\nwhile True: pass")
        await client.until(lambda: bool(client.text(id)))  # before that, an interrupt goes unheard

        await any_agent.interrupt()

        assert (await client.result(id)).content["status"] == "error"
        assert (await client.run("print('alive')")).content["status"] == "ok"


async def test_a_restart_loses_variables_and_tells_everybody(any_agent: Agent) -> None:
    await any_agent.execute(ExecuteRequest("a", "x = 1", 30))
    async with jupyter(any_agent) as client:
        before = await any_agent.kernel()

        state = await any_agent.restart()

        assert (state.execution_state, state.restarts) == (KernelPhase.IDLE, before.restarts + 1)
        assert (await client.run("x")).content["status"] == "error"
    after = await any_agent.execute(ExecuteRequest("b", "x", 30))
    assert (after.cause, after.state_lost_before) == (EndCause.RAISED, "the kernel was restarted on request")


async def test_an_impossible_session_id_is_refused(any_agent: Agent) -> None:
    with pytest.raises(InvalidRequest):
        async with any_agent.channels("x" * 300):
            pass


@pytest.mark.parametrize("name", sorted(AGENTS))
async def test_there_are_no_channels_before_activation(name: str) -> None:
    async with AGENTS[name]() as agent:
        with pytest.raises(Conflict):
            async with agent.channels("s"):
                pass


# --- real kernels ------------------------------------------------------------------------------------------------

WAIT = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\n"


async def let_go(agent: Agent) -> None:
    await agent.write_file(WorkspacePath.parse("go"), one_chunk())


async def one_chunk() -> AsyncIterator[bytes]:
    yield b""


async def test_what_a_client_sends_reaches_the_kernel_unchanged(agent: HttpAgent) -> None:
    async with jupyter(agent) as client:
        code = "parent = get_ipython().kernel.get_parent()\nparent['header']['extra'], parent['content']['mine']"
        id = await client.send(
            "execute_request", {"code": code, "mine": [1], "user_expressions": {"a": "6*7"}}, extra="x"
        )

        reply = await client.result(id)

        assert client.of(id, "execute_result")[0].content["data"]["text/plain"] == "('x', [1])"
        assert reply.content["user_expressions"]["a"]["data"]["text/plain"] == "42"
        assert reply.parent["extra"] == "x"


async def test_input_is_asked_of_the_client_whose_cell_it_is(agent: HttpAgent) -> None:
    async with jupyter(agent, "one") as one, jupyter(agent, "two") as two:
        id = await one.execute("print(input('name? '))", allow_stdin=True)
        await one.until(lambda: bool(one.of(id, "input_request")))
        asked = one.of(id, "input_request")[0]

        await two.send("input_reply", {"value": "thief", "status": "ok"}, channel="stdin")
        await one.send("input_reply", {"value": "me", "status": "ok"}, channel="stdin", parent_header=asked.header)

        assert (asked.channel, asked.content["prompt"]) == ("stdin", "name? ")
        assert (await one.result(id)).content["status"] == "ok"
        assert one.text(id) == "me\n"
        assert not two.of(id, "input_request")


async def test_input_that_nobody_gave_is_asked_again_of_who_comes_back(agent: HttpAgent) -> None:
    async with jupyter(agent) as client:
        id = await client.execute("print(input('name? '))", allow_stdin=True)
        await client.until(lambda: bool(client.of(id, "input_request")))
        await client.ask("history_request", {"hist_access_type": "tail", "n": 1})  # by now it is confirmed
    async with jupyter(agent) as again:
        await again.until(lambda: bool(again.of(id, "input_request")))

        await again.send("input_reply", {"value": "back", "status": "ok"}, channel="stdin")

        await again.result(id)
        assert again.text(id) == "back\n"


async def test_an_interrupt_ends_the_wait_for_input(agent: HttpAgent) -> None:
    async with jupyter(agent) as client:
        id = await client.execute("input()", allow_stdin=True)
        await client.until(lambda: bool(client.of(id, "input_request")))

        assert (await client.ask("interrupt_request", {}, channel="control")).content["status"] == "ok"

        assert (await client.result(id)).content["ename"] == "KeyboardInterrupt"


async def test_executions_over_rest_have_nobody_to_ask_for_input(agent: HttpAgent) -> None:
    async with jupyter(agent):
        execution = await agent.execute(ExecuteRequest("e", "input()", 30))

    assert "StdinNotImplementedError" in str(execution.outputs)


async def test_a_cell_that_fails_aborts_what_its_client_has_waiting_and_nobody_elses(agent: HttpAgent) -> None:
    async with jupyter(agent, "one") as one, jupyter(agent, "two") as two:
        failing = await one.execute(WAIT + "1/0")
        await one.until(lambda: bool(one.of(failing, "execute_input")))
        mine = [await one.execute("print('never')") for _ in range(3)]
        await until(agent, lambda state: state.queued == 3)
        other = await two.execute("print('two')")
        rest = await agent.submit(ExecuteRequest("rest", "print('rest')", 30))
        await let_go(agent)

        assert (await one.result(failing)).content["status"] == "error"
        assert [(await one.result(id)).content["status"] for id in mine] == ["aborted"] * 3
        assert (await two.result(other)).content["status"] == "ok"
        assert (await agent.execute(ExecuteRequest(rest.id, "", 30))).state is ExecutionState.SUCCEEDED
        assert (await one.run("print('again')")).content["status"] == "ok"


async def test_a_cell_that_does_not_stop_on_errors_aborts_nothing(agent: HttpAgent) -> None:
    async with jupyter(agent) as client:
        failing = await client.execute(WAIT + "1/0", stop_on_error=False)
        await client.until(lambda: bool(client.of(failing, "execute_input")))
        after = await client.execute("print('after')")
        await let_go(agent)

        assert (await client.result(after)).content["status"] == "ok"


async def test_cells_that_a_program_sends_beside_are_no_executions(agent: HttpAgent) -> None:
    async with jupyter(agent) as client:
        await client.run("x = 1", silent=True, store_history=False)
        await client.run("x + 1", store_history=False)
        await client.run("x + 2")

    assert [one.code for one in await kept(agent)] == ["x + 2"]


async def test_the_same_message_never_runs_twice(agent: HttpAgent) -> None:
    async with jupyter(agent) as client:
        await client.run("n = 0")
        content = {"code": "n += 1", "silent": False}
        await client.ask("execute_request", content, msg_id="mine")

        await client.send("execute_request", content, msg_id="mine")

        await client.until(lambda: len(client.of("mine", "execute_reply")) == 2)
        assert client.of("mine", "execute_reply")[1].content["ename"] == "Conflict"
        assert client.text((await client.run("print(n)")).parent["msg_id"]) == "1\n"


async def test_too_many_cells_are_refused_and_the_others_run() -> None:
    async with real_agent(cell_queue_size=2, queue_size=1) as agent:
        await agent.activate(ACTIVATION)
        async with jupyter(agent) as client:
            first = await client.execute(WAIT)
            await client.until(lambda: bool(client.of(first, "execute_input")))
            cells = [await client.execute("1") for _ in range(3)]

            refused = await client.result(cells[2])
            await agent.submit(ExecuteRequest("rest", "1", 30))  # is counted apart
            await let_go(agent)

            assert refused.content["ename"] == "ExecutionQueueFull"
            assert [(await client.result(id)).content["status"] for id in cells[:2]] == ["ok", "ok"]


async def test_a_kernel_that_dies_ends_all_that_was_asked_of_it(agent: HttpAgent) -> None:
    async with jupyter(agent) as client:
        dying = await client.execute(WAIT + "os._exit(3)")
        await client.until(lambda: bool(client.of(dying, "execute_input")))
        waiting = await client.execute("1")
        completion = await client.send("complete_request", {"code": "x", "cursor_pos": 1})
        await until(agent, lambda state: state.queued == 1)
        await let_go(agent)

        replies = [(await client.result(id)).content for id in (dying, waiting, completion)]

        assert [reply["status"] for reply in replies] == ["error", "aborted", "error"]
        assert "exited with code 3" in replies[0]["evalue"]
        await client.until(lambda: client.heard[-1].state == "idle" and not client.heard[-1].parent)
        assert [m.state for m in client.heard if not m.parent] == ["restarting", "starting", "idle"]
        assert (await client.run("print('alive')")).content["status"] == "ok"
    assert (await agent.execute(ExecuteRequest("r", "1", 30))).state_lost_before


async def test_a_client_may_restart_the_kernel(agent: HttpAgent) -> None:
    async with jupyter(agent) as client:
        running = await client.execute("x = 1\n" + WAIT)
        await client.until(lambda: bool(client.of(running, "execute_input")))

        reply = await client.ask("shutdown_request", {"restart": True}, channel="control")

        assert reply.content == {"status": "ok", "restart": True}
        assert (await client.result(running)).content["status"] == "error"
        await client.until(lambda: client.heard[-1].state == "idle" and not client.heard[-1].parent)
        assert [m.kind for m in client.heard if not m.parent] == ["shutdown_reply", "status", "status"]
        assert (await client.run("x")).content["ename"] == "NameError"


async def test_how_a_kernel_was_waited_for_is_told_to_no_client(tmp_path: Path) -> None:
    """Asked again and again while it starts, it answers all at once."""
    slow = tmp_path / "launch.py"
    slow.write_text(f"import runpy, time\ntime.sleep(2)\nrunpy.run_path({str(LAUNCHER)!r}, run_name='__main__')\n")
    async with real_agent(launcher=slow) as agent:
        await agent.activate(ACTIVATION)
        async with jupyter(agent) as client:
            await client.ask("shutdown_request", {"restart": True}, channel="control")
            await client.run("1")

            assert {m.parent["session"] for m in client.heard if m.parent} == {client.session}


async def test_what_is_asked_while_the_kernel_restarts_is_answered_by_the_next(agent: HttpAgent) -> None:
    async with jupyter(agent) as client:
        await client.ask("shutdown_request", {"restart": True}, channel="control")

        info = await client.ask("kernel_info_request", {})

        assert info.content["status"] == "ok"


async def test_a_busy_kernel_can_be_opened_and_looked_into(agent: HttpAgent) -> None:
    async with jupyter(agent, "one") as one, jupyter(agent, "two") as two:
        busy = await one.execute("x = 42\nprint('begun', flush=True)\n" + WAIT)
        await one.until(lambda: bool(one.text(busy)))

        info = await two.ask("kernel_info_request", {})
        await two.until(lambda: [m.state for m in two.heard if m.kind == "status"][-1] == "busy")
        created = await two.ask("create_subshell_request", {}, channel="control")
        look = await two.ask("execute_request", {"code": "x"}, subshell_id=created.content["subshell_id"])

        assert "kernel subshells" in info.content["supported_features"]
        id = look.parent["msg_id"]
        assert (look.channel, two.of(id, "execute_result")[0].content["data"]["text/plain"]) == ("shell", "42")
        assert not one.is_over(busy)
        await let_go(agent)
        await one.result(busy)


async def test_the_history_is_that_of_the_session_and_survives_the_kernel(agent: HttpAgent) -> None:
    await agent.execute(ExecuteRequest("rest", "a = 1", 30))
    async with jupyter(agent) as client:
        await client.run("b = 2")
        await agent.restart()

        tail = await client.ask("history_request", {"hist_access_type": "tail", "n": 10, "output": False, "raw": True})

        assert tail.content == {"status": "ok", "history": [[1, 1, "a = 1"], [1, 2, "b = 2"]]}


async def test_comms_and_their_buffers_pass_both_ways(agent: HttpAgent) -> None:
    data = bytes(range(256)) * 40_000
    async with jupyter(agent) as client:
        code = "from comm import create_comm\ncomm = create_comm('t')\n"
        code += "comm.on_msg(lambda m: comm.send({'n': len(m['buffers'][0])}, buffers=[bytes(m['buffers'][0])]))"
        id = (await client.run(code)).parent["msg_id"]
        comm = client.of(id, "comm_open")[0].content["comm_id"]

        sent = await client.send("comm_msg", {"comm_id": comm, "data": {}}, buffers=(data,))

        await client.until(lambda: any(m.state == "idle" for m in client.of(sent)))
        (answer,) = client.of(sent, "comm_msg")
        assert answer.content["data"] == {"n": len(data)}
        assert answer.buffers == (data,)


async def test_a_large_output_passes_whole(agent: HttpAgent) -> None:
    async with jupyter(agent) as client:
        id = (await client.run("'x' * 20_000_000")).parent["msg_id"]

        assert len(client.of(id, "execute_result")[0].content["data"]["text/plain"]) == 20_000_002


async def test_a_message_that_is_too_large_is_a_note_in_its_place(agent: HttpAgent) -> None:
    async with jupyter(agent) as client:
        code = "from comm import create_comm\ncreate_comm('t', buffers=[b'x' * (65 << 20)])\nprint('after')"
        id = (await client.run(code)).parent["msg_id"]

        (opened,) = client.of(id, "comm_open")
        assert "was left out" in opened.content["text"]
        assert opened.buffers == ()
        assert client.text(id) == "after\n"


async def test_a_client_that_reads_nothing_holds_up_nobody_and_is_told_what_it_missed() -> None:
    async with real_agent(relay_bytes=1 << 20) as agent:
        await agent.activate(ACTIVATION)
        async with agent.channels("slow") as channels, jupyter(agent, "quick") as quick:
            code = "from IPython.display import display\nfor n in range(400):\n"
            code += "  display({'text/plain': str(n) + 'x' * 20000}, raw=True)"
            await quick.run(code)

            told = []
            async for frame in channels:
                told.append(Told.read(frame))
                if told[-1].state == "idle":
                    break
            assert any("were left out" in m.content.get("text", "") for m in told)
            shown = [m.content["data"]["text/plain"][:5].strip("x") for m in told if m.kind == "display_data"]
            assert shown == sorted(shown, key=int)
            assert shown[-1] == "399"


async def test_nonsense_of_a_client_harms_nobody(agent: HttpAgent) -> None:
    async with agent.channels("hostile") as channels, jupyter(agent) as client:
        for frame in (b"", b"x" * 1000, b"\x00" * 8, (6).to_bytes(8, "little") * 7):
            await channels.send(frame)
        await channels.confirm(10**18)
        await channels.confirm(-1)

        assert (await client.run("1")).content["status"] == "ok"
        assert (await agent.kernel()).connections == 2


@pytest.mark.parametrize(
    "content", [{}, {"code": 1}, {"code": "1", "user_expressions": []}, {"code": "1", "silent": []}]
)
async def test_a_cell_that_makes_no_sense_keeps_nobody_waiting(agent: HttpAgent, content: dict[str, Any]) -> None:
    async with jupyter(agent) as client:
        await client.ask("execute_request", content)

        assert (await client.run("1")).content["status"] == "ok"


async def test_parts_that_are_no_objects_keep_nobody_waiting(agent: HttpAgent) -> None:
    header = b'{"msg_id": "m", "msg_type": "execute_request"}'
    async with agent.channels("hostile") as channels, jupyter(agent) as client:
        for parent, metadata, content in ((b"[]", b"{}", b"{}"), (b"{}", b"{", b"{}"), (b"{}", b"{}", b"1")):
            await channels.send(encode_v1(WireMessage("shell", header, parent, metadata, content)))

        assert (await client.run("1")).content["status"] == "ok"


async def test_a_debugger_that_is_not_there_says_so() -> None:
    async with real_agent(launcher=SHELL_LAUNCHER) as agent:
        await agent.activate(ACTIVATION)
        async with jupyter(agent) as client:
            info = await client.ask("kernel_info_request", {})
            reply = await client.ask(
                "debug_request", {"type": "request", "command": "initialize", "seq": 1}, channel="control"
            )

            assert "debugger" not in info.content.get("supported_features", [])
            assert "no debugger" in reply.content["evalue"]


async def test_cells_are_not_for_the_control_channel(agent: HttpAgent) -> None:
    async with jupyter(agent) as client:
        reply = await client.ask("execute_request", {"code": "1"}, channel="control")

        assert "not for the control channel" in reply.content["evalue"]


async def test_a_connection_is_no_activity_and_a_message_is(agent: HttpAgent) -> None:
    async with jupyter(agent) as client:
        async with asyncio.timeout(60):
            while (await agent.status()).idle_seconds < 0.5:
                await asyncio.sleep(0.1)

        before = time.monotonic()
        await client.ask("history_request", {"hist_access_type": "tail", "n": 1})
        idle = (await agent.status()).idle_seconds

        assert idle <= time.monotonic() - before


async def test_a_look_from_a_subshell_changes_nothing_of_the_cell_that_runs(agent: HttpAgent) -> None:
    code = f"import matplotlib.pyplot as plt\nplt.plot([1])\nprint('a', flush=True)\n{WAIT}print('b', input())"
    async with jupyter(agent, "one") as one, jupyter(agent, "two") as two:
        id = await one.execute(code, allow_stdin=True)
        await one.until(lambda: bool(one.text(id)))
        created = await two.ask("create_subshell_request", {}, channel="control")
        subshell = created.content["subshell_id"]

        look = await two.ask("execute_request", {"code": "print('sub'); import sys; 1/0"}, subshell_id=subshell)
        asked = await two.ask("execute_request", {"code": "input()", "allow_stdin": True}, subshell_id=subshell)
        await let_go(agent)
        await one.until(lambda: bool(one.of(id, "input_request")))
        await one.send("input_reply", {"value": "c", "status": "ok"}, channel="stdin")

        assert (look.content["ename"], asked.content["status"]) == ("ZeroDivisionError", "error")
        assert two.text(look.parent["msg_id"]) == "sub\n"
        assert not two.of(look.parent["msg_id"], "display_data")
        assert (await one.result(id)).content["status"] == "ok"
        assert one.text(id) == "a\nb c\n"
        assert "image/png" in one.of(id, "display_data")[0].content["data"]


async def test_subshells_are_bounded_and_end_when_they_are_deleted(agent: HttpAgent) -> None:
    async with jupyter(agent) as client:
        made = [await client.ask("create_subshell_request", {}, channel="control") for _ in range(17)]
        ids = [reply.content["subshell_id"] for reply in made[:-1]]
        gone = await client.ask("delete_subshell_request", {"subshell_id": ids[0]}, channel="control")
        listed = await client.ask("list_subshell_request", {}, channel="control")

        assert made[-1].content["status"] == "error"
        assert (gone.content["status"], listed.content["subshell_id"]) == ("ok", ids[1:])
        assert (await client.ask("execute_request", {"code": "1"}, subshell_id=ids[0])).content["status"] == "error"
        assert (await client.run("1")).content["status"] == "ok"
