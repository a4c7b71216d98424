"""Shell commands as ACA's clients send them, in Shell pools and in those of Python, and LangChain's tools on them."""

from __future__ import annotations

import json
import shlex
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.doors import through_every_door
from tests.e2e.gateways import TOKEN, Gateway, Session, in_background, server_sent, until
from tests.e2e.jupyter import Server, text_of
from tests.e2e.test_clients import client


@pytest.fixture
def shell(shell_gateway: Gateway) -> Iterator[Session]:
    session = shell_gateway.session(f"shell-{uuid.uuid4().hex}")
    yield session
    session.delete()


@pytest.fixture(params=["shell", "python"])
def any_session(request: pytest.FixtureRequest, gateway: Gateway, shell_gateway: Gateway) -> Iterator[Session]:
    session = (shell_gateway if request.param == "shell" else gateway).session(f"any-{uuid.uuid4().hex}")
    yield session
    session.delete()


def test_a_command_is_answered_as_aca_does(any_session: Session) -> None:
    ended = any_session.shell("echo hi; exit 3")
    listed = any_session.request(
        "POST", "/executions", json={"execCommandAndArgs": ["ls", "-a"], "outputStreamsMaxLength": 4096}
    ).json()
    read = any_session.shell("cat", stdin="typed")

    assert (ended["status"], ended["result"]["stdout"], ended["result"]["exitCode"]) == ("3", "hi\n", 3)
    assert ended["identifier"] == any_session.identifier
    assert "executionResult" not in ended["result"]
    assert (listed["status"], listed["result"]["stdout"]) == ("0", ".\n..\n")
    assert read["result"]["stdout"] == "typed"


def test_a_command_past_its_time_has_status_minus_one_and_leaves_nothing(any_session: Session) -> None:
    ended = any_session.shell("sleep 1000 & (setsid sleep 1000; true); sleep 1000", timeoutInSeconds=1)

    assert (ended["status"], ended["result"]["cause"]) == ("-1", "timed_out")
    assert ended["result"]["executionTimeInMilliseconds"] == 1000
    assert ended["error"]["code"] == "Timeout"
    processes = any_session.shell("ps -e -o stat=,comm=")["result"]["stdout"].splitlines()
    assert any(line.endswith(" ps") for line in processes)
    # But for what was killed and is not buried yet.
    assert not [line for line in processes if "sleep" in line and not line.startswith("Z")]


@pytest.mark.parametrize("field", ["codeInputType", "executionType"])
def test_a_shell_pool_refuses_fields_as_aca_does(shell: Session, field: str) -> None:
    refused = shell.request("POST", "/executions", json={"shellCommand": "ls", field: "Synchronous"})

    assert refused.status_code == 400
    assert refused.headers["Content-Type"].startswith("application/problem+json")
    assert list(refused.json()["errors"]) == [field]


def test_files_of_a_shell_pool_go_both_ways(shell: Session) -> None:
    sent = shell.request("POST", "/files", params={"path": "/mnt/data"}, files={"file": ("data.csv", b"a,b\n1,2\n")})

    assert (sent.json()["name"], sent.json()["sizeInBytes"], sent.json()["type"]) == ("data.csv", 8, "file")
    assert shell.shell("cut -d, -f2 data.csv > out; cat out")["result"]["stdout"] == "b\n2\n"
    assert shell.download("out") == b"b\n2\n"


def test_processes_live_on_between_calls_and_are_stopped(any_session: Session) -> None:
    any_session.shell("nohup sh -c 'while :; do echo tick; sleep 0.1; done' > log 2>&1 & echo $! > pid")

    until(lambda: any_session.shell("wc -l < log")["result"]["stdout"].strip() not in ("", "0", "1"))
    stopped = any_session.shell("ps -o args= -p $(cat pid) && kill $(cat pid)")

    assert "tick" in stopped["result"]["stdout"]
    until(lambda: any_session.shell("ps -p $(cat pid)")["status"] == "1")


def test_output_in_the_background_belongs_to_the_execution_that_started_it(any_session: Session) -> None:
    begun = any_session.shell("(until [ -e go ]; do sleep 0.05; done; echo later) & echo on")

    any_session.shell("touch go")
    until(lambda: any_session.poll(begun["id"])["result"]["stdout"] == "on\nlater\n")


def test_a_command_is_streamed_taken_up_again_and_runs_once(any_session: Session) -> None:
    headers = {"Accept": "text/event-stream", "operation-id": "streamed"}
    body = {"shellCommand": "echo x >> count; echo 1; until [ -e go ]; do sleep 0.05; done; echo 2; echo 3"}
    first: list[tuple[str, str, Any]] = []
    with any_session.request("POST", "/executions", json=body, headers=headers, stream=True) as response:
        for each in server_sent(response):
            first.append(each)
            if each[2].get("text") == "1\n":
                any_session.upload("go", b"")
    with any_session.request("POST", "/executions", json=body, headers=headers, stream=True) as response:
        second = list(server_sent(response))

    texts = [data["text"] for _, event, data in first if event == "output"]
    assert "".join(texts) == "1\n2\n3\n"
    assert len(texts) > 1
    assert first[-1][1:] == second[-1][1:]
    assert first[-1][2]["status"] == "0"
    assert any_session.shell("wc -l < count")["result"]["stdout"] == "1\n"


def test_a_command_in_a_shell_pool_is_asynchronous_by_a_header_and_can_be_canceled(shell: Session) -> None:
    headers = {"Prefer": "respond-async", "operation-id": "later"}
    shell.shell("true")
    began = time.monotonic()
    submitted = shell.request("POST", "/executions", json={"shellCommand": "sleep 1000"}, headers=headers)

    canceled = shell.request("POST", "/executions/later/cancel").json()

    assert time.monotonic() - began < 55  # at 60 it ends by itself
    assert submitted.json()["status"] in ("NotStarted", "Running")
    assert submitted.headers["Preference-Applied"] == "respond-async"
    assert (canceled["status"], canceled["result"]["cause"]) == ("-1", "canceled")


def test_a_caller_who_leaves_ends_the_command(any_session: Session) -> None:
    any_session.shell("true")
    with pytest.raises(Exception, match="timed out"):
        any_session.request("POST", "/executions", json={"shellCommand": "sleep 1001"}, timeout=1)

    until(lambda: any_session.shell("pgrep -f '^sleep 1001$'")["status"] == "1")


def test_code_that_hangs_does_not_hold_up_the_command_that_ends_it(session: Session) -> None:
    stuck = in_background(lambda: session.run("open('on', 'w').close()\nwhile True: pass", timeoutInSeconds=60))
    until(lambda: session.shell("ls on")["status"] == "0")

    session.shell("pkill -INT -f launch.py")

    assert stuck()["result"]["cause"] == "raised"


def test_what_a_command_installs_and_writes_is_there_for_code(session: Session) -> None:
    session.shell("mkdir -p $PYTHONPATH && echo 'value = 42' > $PYTHONPATH/made_by_shell.py")

    assert session.value("import made_by_shell; made_by_shell.value") == 42
    assert session.shell("python -c 'import made_by_shell; print(made_by_shell.value)'")["result"]["stdout"] == "42\n"


def test_a_session_lists_its_commands_with_its_code(session: Session) -> None:
    session.run("x = 1")
    session.shell("exit 3")

    listed = session.request("GET", "/executions").json()["value"]

    assert [(each["kind"], each["status"], each["code"]) for each in listed] == [
        ("code", "Succeeded", "x = 1"),
        ("command", "3", "exit 3"),
    ]


def test_a_shell_session_runs_code_in_a_shell_that_keeps_its_state(shell: Session) -> None:
    assert shell.run("x=41; cd /tmp")["status"] == "Succeeded"
    kept = shell.run("echo $((x + 1)) $PWD")
    failed = shell.run("echo no >&2; false")

    assert kept["result"]["stdout"] == "42 /tmp\n"
    assert (failed["status"], failed["error"]["code"]) == ("Failed", "ExitStatus")
    assert shell.shell("echo [$x] $PWD")["result"]["stdout"] == "[] /mnt/data\n"


def test_a_shell_session_has_a_userland_and_says_what_it_is(shell: Session) -> None:
    tools = ["bash", "git", "curl", "awk", "sed", "jq", "tar", "gzip", "find", "ps", "python", "pip"]
    metadata = shell.request("GET", "/metadata").json()

    missing = shell.shell(f"for tool in {' '.join(tools)}; do command -v $tool > /dev/null || echo $tool; done")

    assert missing["result"]["stdout"] == ""
    assert metadata["runtimes"][0]["name"] == "shell"
    assert shell.shell("python -c 'print(6 * 7)'; pip --version | cut -d. -f1")["result"]["stdout"].startswith(
        "42\npip "
    )


def test_a_fork_bomb_is_bounded_and_the_session_goes_on(shell: Session) -> None:
    bombed = shell.shell("f() { f | f & }; f; sleep 1000", timeoutInSeconds=2)

    assert bombed["status"] == "-1"
    until(lambda: shell.shell("echo alive")["result"]["stdout"] == "alive\n")
    assert shell.gateway.session(f"other-{uuid.uuid4().hex}").shell("echo $((6 * 7))")["result"]["stdout"] == "42\n"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"shellCommand": "x" * 131_072}, "131071"),
        ({"shellCommand": "ls", "execCommandAndArgs": ["ls"]}, "Only one"),
        ({"execCommandAndArgs": ["a\0b"]}, "NUL"),
        ({"execCommandAndArgs": ["x" * 100_000] * 11}, "1048576"),
        ({"shellCommand": "ls", "timeoutInSeconds": 0}, "timeoutInSeconds"),
    ],
)
def test_what_makes_no_command_is_a_clear_400(shell: Session, body: Any, named: str) -> None:
    refused = shell.request("POST", "/executions", json=body)

    assert refused.status_code == 400
    assert named in json.dumps(refused.json()["errors"])


def test_hostile_output_of_a_command_is_text_and_nothing_else(any_session: Session) -> None:
    odd = any_session.shell(r"printf '\x1b]0;title\x07\x00\xff\xed\xa0\x80'; printf '%0.sA' {1..9000} >&2", pty=False)

    assert odd["result"]["stdout"].startswith("\x1b]0;title\x07\x00\ufffd")
    assert odd["result"]["truncated"]["stderr"] > 0
    assert len(odd["result"]["stderr"].encode()) <= 4096


def test_a_jupyter_client_gets_a_shell_that_it_can_interrupt(shell_gateway: Gateway) -> None:
    server = Server(shell_gateway)
    spec = server.ask("GET", "/api/kernelspecs")["kernelspecs"]["shell"]["spec"]

    with server.kernel(name="shell") as kernel, server.connected(kernel) as client_:
        client_.run("x=41")
        shown = text_of(client_.run("echo $((x + 1))"))
        request = client_.execute("echo on; sleep 1000; echo never")
        client_.until("stream", request)
        server.ask("POST", f"/api/kernels/{kernel['id']}/interrupt", status=204)
        ended = client_.finish(request)
        kept = text_of(client_.run("echo $? $x"))

    assert (spec["language"], spec["display_name"]) == ("bash", "Bash (shell)")
    assert shown == "42\n"
    assert [each["content"]["ename"] for each in ended if each["msg_type"] == "error"] == ["KeyboardInterrupt"]
    assert kept == "130 41\n"


def test_a_session_is_one_through_every_door(shell_gateway: Gateway) -> None:
    assert through_every_door(shell_gateway, write="x={}", read="echo $x") == ["1\n", "2\n", "3\n"]


# --- LangChain


@pytest.fixture
def langchain(shell_gateway: Gateway) -> Iterator[Any]:
    tool = client("langchain_azure_dynamic_sessions").SessionsBashTool(
        pool_management_endpoint=shell_gateway.endpoint, access_token_provider=lambda: TOKEN
    )
    session = tool.session_id
    yield tool
    shell_gateway.session(session).delete()


def test_langchain_runs_commands_and_reads_exit_codes(langchain: Any) -> None:
    good = json.loads(langchain.invoke("echo hello; echo again >&2"))
    bad = json.loads(langchain.invoke("```bash\nexit 7\n```"))

    assert good == {"stdout": "hello\n", "stderr": "again\n", "exitCode": 0}
    assert bad == {"stdout": "", "stderr": "", "exitCode": 7}


def test_langchain_moves_files_of_its_shell(langchain: Any, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(b"a,b\n1,2\n")
    uploaded = langchain.upload_file(local_file_path=str(tmp_path / "data.csv"))

    langchain.invoke("tac data.csv > back.csv")

    assert (uploaded.filename, uploaded.size_in_bytes) == ("data.csv", 8)
    assert langchain.download_file(remote_file_path="back.csv").read() == b"1,2\na,b\n"
    assert sorted(file.filename for file in langchain.list_files()) == ["back.csv", "data.csv"]


@pytest.mark.filterwarnings("ignore:.*deprecated in deepagents")
def test_langchains_backend_for_agents_works_on_files(shell_gateway: Gateway) -> None:
    backends = client("langchain_azure_dynamic_sessions.backends")
    with pytest.warns(Warning, match="preview"):
        backend = backends.SessionsBashBackend(shell_gateway.endpoint, access_token_provider=lambda: TOKEN)

    assert backend.write("/mnt/data/notes/a.txt", "one\ntwo\n").error is None
    assert backend.edit("/mnt/data/notes/a.txt", "two", "three").occurrences == 1
    assert backend.execute(f"cat {shlex.quote('/mnt/data/notes/a.txt')}; exit 4").output == "one\nthree\n"
    assert [info["path"] for info in backend.ls_info("/mnt/data/notes")] == ["a.txt"]
    shell_gateway.session(backend.id).delete()
