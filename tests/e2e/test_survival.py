"""Gateways that are killed, stopped and crowded; sandboxes that die when they should not, and live when they should."""

from __future__ import annotations

import os
import signal
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import requests

from tests.e2e.conftest import Make
from tests.e2e.gateways import Gateway, Session, in_background, sandbox_processes, until
from tests.e2e.jupyter import Server


def test_kill_9_of_the_gateway_under_load_loses_nothing(make_gateway: Make) -> None:
    gateway = make_gateway(ready=1)
    sessions = [gateway.session(f"survivor-{number}") for number in range(3)]
    for number, session in enumerate(sessions):
        session.value(f"x = {number}; x")
        session.upload("file", str(number).encode())
        session.submit("print('finished')", "finished")
    sessions[0].submit("import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('ran on')", "running")
    until(lambda: sessions[0].poll("running")["status"] == "Running")
    waiting = [in_background(partial(_run_into_death, session)) for session in sessions]
    until(lambda: all("begun" in session.names() for session in sessions[1:]))
    until(lambda: "begun" in listed(sessions[0])[-1]["code"])  # it waits behind the other
    gateway.wait_warm()
    sandboxes = [session.sandbox for session in sessions]
    everything = sandboxes_of(gateway)

    gateway.kill()
    assert all(join() for join in waiting)
    gateway.start()

    for session in sessions:
        session.upload("go", b"")
    assert [session.run("x")["result"]["executionResult"] for session in sessions[1:]] == [1, 2]
    assert sessions[0].value("x") == 0
    assert [session.sandbox for session in sessions] == sandboxes
    assert [session.download("file") for session in sessions] == [b"0", b"1", b"2"]
    assert {session.poll("finished")["result"]["stdout"] for session in sessions} == {"finished\n"}
    assert sessions[0].poll("running")["result"]["stdout"] == "ran on\n"
    assert all(session.run("1")["result"]["stateLost"]["before"] is None for session in sessions)
    assert all(session.value("y") == 1 for session in sessions)  # a call whose gateway died ran on, too
    assert everything <= sandboxes_of(gateway)  # ready ones were taken over, not thrown away
    gateway.wait_warm()
    pool = gateway.pool()
    assert len(sandboxes_of(gateway)) == pool["ready"] + pool["sessions"]  # and nothing lives that nobody knows


def test_sessions_that_die_while_no_gateway_runs_are_told_of(make_gateway: Make) -> None:
    gateway = make_gateway(ready=0)
    session = gateway.session("orphan")
    session.value("x = 1")
    lost = session.sandbox

    gateway.kill()
    for pid in sandbox_processes(lost):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not sandbox_processes(lost))
    gateway.start()
    answer = session.run("'x' in globals()")["result"]

    assert (answer["executionResult"], session.sandbox != lost) == (False, True)
    assert answer["stateLost"]["before"]
    assert lost not in sandboxes_of(gateway)


def test_sigterm_answers_those_who_wait_and_keeps_sessions(make_gateway: Make) -> None:
    gateway = make_gateway(ready=0)
    session = gateway.session("waiting")
    session.value("1")
    join = in_background(lambda: session.run("open('begun', 'w').close(); import time; time.sleep(1.5); x = 7; x"))
    until(lambda: "begun" in session.names())

    gateway.signal(signal.SIGTERM)

    assert join()["result"]["executionResult"] == 7
    gateway.wait()
    gateway.start()
    assert session.value("x") == 7


def test_an_idle_session_ends_and_a_busy_one_does_not(make_gateway: Make) -> None:
    gateway = make_gateway(ready=1, cooldown=5)
    idle, busy = gateway.session("idle-one"), gateway.session("busy-one")
    busy.submit("import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('done')", "job")
    busy_sandbox = busy.sandbox
    idle.value("1")

    until(lambda: gateway.pool()["sessions"] == 1)
    until(lambda: not sandbox_processes(idle.sandbox))
    busy.upload("go", b"")
    until(lambda: busy.poll("job")["status"] == "Succeeded")

    assert busy.sandbox == busy_sandbox
    assert idle.run("1")["result"]["stateLost"]["before"]


def test_a_full_pool_refuses_in_the_form_that_clients_know(make_gateway: Make) -> None:
    gateway = make_gateway(ready=0, max_sessions=1)
    first = gateway.session("first-one")
    first.value("1")

    refused = gateway.session("second-one").request("POST", "/executions", json={"code": "1"})

    assert refused.status_code == 429
    assert refused.json()["code"] == "SessionsCountExceedsLimit"
    assert refused.headers["x-ms-error-code"] == "SessionsCountExceedsLimit"
    assert first.value("2") == 2


def test_a_hundred_first_requests_with_one_identifier_make_one_session(gateway: Gateway) -> None:
    identifier = f"crowd-{uuid.uuid4().hex}"
    before = guids(gateway)

    joins = [in_background(lambda: _first_request(gateway, identifier)) for _ in range(100)]
    sandboxes = {join() for join in joins}

    assert len(sandboxes) == 1
    assert len(guids(gateway) - before) == 1  # others may end meanwhile
    gateway.session(identifier).delete()


def test_a_ready_sandbox_that_dies_is_replaced_and_never_handed_out(make_gateway: Make) -> None:
    gateway = make_gateway(ready=1, max_sessions=3)
    gateway.wait_warm()
    (dead,) = sandboxes_of(gateway)

    for pid in sandbox_processes(dead):
        with suppress(ProcessLookupError):  # it went with the one before it
            os.kill(pid, signal.SIGKILL)
    until(lambda: dead not in sandboxes_of(gateway) and gateway.pool()["ready"] == 1)
    session = gateway.session("fresh-one")

    assert session.value("1") == 1
    assert session.sandbox != dead


def test_a_deleted_session_leaves_no_process(gateway: Gateway, session: Session) -> None:
    session.value("import subprocess; subprocess.Popen(['setsid', '-f', 'sleep', '1000']); 1")
    assert len(sandbox_processes(session.sandbox)) >= 4

    assert session.delete() == 204

    assert sandbox_processes(session.sandbox) == []
    assert session.delete() == 404


def sandboxes_of(gateway: Gateway) -> set[str]:
    return {path.name.partition(".")[0] for path in Path(gateway.state).glob("*/sandboxes/*")}


def guids(gateway: Gateway) -> set[str]:
    """Of all sessions."""
    return {kernel["id"] for kernel in Server(gateway).ask("GET", "/api/kernels")}


def listed(session: Session) -> Any:
    return session.request("GET", "/executions").json()["value"]


def _first_request(gateway: Gateway, identifier: str) -> str:
    session = gateway.session(identifier)
    session.request("GET", "/files")
    return session.sandbox


def _run_into_death(session: Session) -> bool:
    """Whether the gateway died under the call."""
    try:
        session.run(
            "open('begun', 'w').close()\nimport os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\ny = 1"
        )
    except requests.ConnectionError:
        return True
    return False
