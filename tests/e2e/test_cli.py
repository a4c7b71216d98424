"""The command line as a subprocess: what people type, what machines read, and what happens when either goes away."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Make
from tests.e2e.gateways import SECONDS, TOKEN, Gateway, Session, in_background, until
from tests.extra import extra


class Shell:
    """Runs `kernelpool` in a folder and with a home of its own."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KERNELPOOL_", "XDG_"))}
        self.environment = {**kept, "HOME": str(folder), "COLUMNS": "100", **variables}

    def start(self, *arguments: str, **rest: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "kernelpool", *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, **{**pipes, **rest})

    def __call__(self, *arguments: str, input: bytes = b"", code: int = 0) -> bytes:
        """What it prints to stdout; to stderr when it is to fail."""
        process = self.start(*arguments)
        out, err = process.communicate(input, timeout=2 * SECONDS)
        assert process.returncode == code, (
            f"{process.returncode}: {out.decode()}\n{err.decode()}"
        )  # whole, however long
        assert b"Traceback (most recent call last):\n  File" not in err
        return err if code else out

    def json(self, *arguments: str, **rest: Any) -> Any:
        return json.loads(self(*arguments, "--json", **rest))


PATIENT = ("allocation_timeout=120", "warmup=false")
"""Settings of a pool where nothing is ready: a sandbox takes its time on a busy machine."""


def is_free(session: Session) -> bool:
    """Nothing runs in it that would take longer than this patience."""
    return session.request("POST", "/executions", json={"code": "1"}, timeout=45).ok


@pytest.fixture
def kernelpool(gateway: Gateway, tmp_path: Path) -> Shell:
    return Shell(tmp_path, KERNELPOOL_URL=f"http://127.0.0.1:{gateway.port}", KERNELPOOL_TOKEN=TOKEN)


@pytest.fixture
def identifier(session: Session) -> str:
    return session.identifier


def test_variables_stay_from_command_to_command(kernelpool: Shell, identifier: str) -> None:
    kernelpool("exec", "-s", identifier, "x = 41")

    assert kernelpool("exec", "-s", identifier, "print('out'); x + 1") == b"out\n42\n"


def test_code_comes_from_a_file_or_from_stdin(kernelpool: Shell, identifier: str) -> None:
    (kernelpool.folder / "code.py").write_text("print('file')")

    assert kernelpool("exec", "-s", identifier, "-f", "code.py") == b"file\n"
    assert kernelpool("exec", "-s", identifier, input=b"print('stdin')") == b"stdin\n"
    assert kernelpool("run", "-", input=b"print('stdin')") == b"stdin\n"
    assert b"UTF-8" in kernelpool("exec", "-s", identifier, input=b"\xff", code=1)


def test_code_that_fails_is_exit_code_1_and_its_traceback_is_on_stderr(kernelpool: Shell, identifier: str) -> None:
    told = kernelpool("exec", "-s", identifier, "import sys; print('e', file=sys.stderr); 1/0", code=1)

    assert told.startswith(b"e\n")
    assert b"ZeroDivisionError: division by zero" in told
    assert b"exceeded 1 s" in kernelpool("run", "-c", "while True: pass", "--timeout", "1", code=1)


def test_output_comes_while_the_code_runs_and_ctrl_c_cancels_it(kernelpool: Shell, session: Session) -> None:
    process = kernelpool.start("exec", "-s", session.identifier, "print('on', flush=True)\nimport time\ntime.sleep(60)")
    assert process.stdout
    assert process.stdout.readline() == b"on\n"

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)

    assert (process.returncode, out) == (130, b"")
    assert err == b"[canceled]\n"
    assert is_free(session)


def test_nobody_at_the_other_end_of_the_pipe_ends_it_quietly(kernelpool: Shell, session: Session) -> None:
    code = "import time\nwhile True: print('x' * 1000, flush=True); time.sleep(0.01)"
    process = kernelpool.start("exec", "-s", session.identifier, code, stdin=subprocess.DEVNULL)
    assert process.stdout
    assert process.stdout.read(10) == b"x" * 10

    process.stdout.close()
    assert process.stderr
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(SECONDS) == 1
    assert is_free(session)


def test_images_are_saved_in_the_place_of_nothing(kernelpool: Shell, identifier: str) -> None:
    code = "import matplotlib.pyplot as p\nfor n in range(2): p.plot([n]); p.show()"

    for _ in range(2):
        kernelpool("exec", "-s", identifier, "-o", "images", code)

    files = sorted((kernelpool.folder / "images").iterdir())
    assert [file.name for file in files] == [f"image-{n}.png" for n in (1, 2, 3, 4)]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_a_command_writes_here_and_exits_as_it_does_there(kernelpool: Shell, identifier: str) -> None:
    assert kernelpool("shell", "-s", identifier, "echo hi | tr h H") == b"Hi\n"
    assert kernelpool("shell", "-s", identifier, "printf", "%s|", "a b", "-x") == b"a b|-x|"
    assert kernelpool("shell", "-s", identifier, "-i", "cat", input=b"typed") == b"typed"
    assert kernelpool("shell", "-s", identifier, "-t", "tty").startswith(b"/dev/pts/")
    assert kernelpool("shell", "-s", identifier, "echo no >&2; exit 7", code=7) == b"no\n"
    assert b"exceeded 1 s" in kernelpool("shell", "-s", identifier, "--timeout", "1", "sleep 60", code=124)
    last = kernelpool("shell", "-s", identifier, "--json", "true").splitlines()[-1]
    assert json.loads(last)["execution"]["status"] == "0"


def test_ctrl_c_ends_a_command(kernelpool: Shell, session: Session) -> None:
    process = kernelpool.start("shell", "-s", session.identifier, "echo on; sleep 1002")
    assert process.stdout
    assert process.stdout.readline() == b"on\n"

    process.send_signal(signal.SIGINT)

    _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (130, b"[canceled]\n")
    until(lambda: session.shell("pgrep -f '^sleep 1002$'")["status"] == "1")


def test_events_are_lines_of_json_and_the_last_is_the_execution(kernelpool: Shell, identifier: str) -> None:
    lines = kernelpool("exec", "-s", identifier, "--json", "print('hi'); 7").splitlines()

    events = [json.loads(line) for line in lines]
    assert {"name": "stdout", "text": "hi\n", "type": "stream"} in [event.get("output") for event in events]
    assert events[-1]["event"] == "done"
    assert events[-1]["execution"]["result"]["executionResult"] == 7


@pytest.mark.parametrize(
    "name", ["a b/[red] %20?ü#.txt", *(pytest.param(name, marks=extra) for name in ("plain.txt", "-"))]
)
def test_files_go_there_and_back(kernelpool: Shell, identifier: str, name: str) -> None:
    (kernelpool.folder / "in.bin").write_bytes(bytes(range(256)) * 1000)

    kernelpool("files", "put", "-s", identifier, "in.bin", "--", name)
    kernelpool("files", "get", "-s", identifier, "--", name, "out.bin")

    data = (kernelpool.folder / "in.bin").read_bytes()
    assert (kernelpool.folder / "out.bin").read_bytes() == data
    assert kernelpool("files", "get", "-s", identifier, "--", name, "-") == data
    assert name in {file["path"] for file in kernelpool.json("files", "ls", "-r", "-s", identifier)}
    assert name.rpartition("/")[2] in kernelpool("files", "ls", "-r", "-s", identifier).decode()
    kernelpool("files", "rm", "-s", identifier, "--", name)
    assert name not in {file["path"] for file in kernelpool.json("files", "ls", "-r", "-s", identifier)}


def test_stdin_is_uploaded_under_a_name(kernelpool: Shell, identifier: str) -> None:
    assert b"NAME" in kernelpool("files", "put", "-s", identifier, "-", input=b"x", code=2)

    kernelpool("files", "put", "-s", identifier, "-", "from-stdin", input=b"data")

    assert kernelpool("files", "get", "-s", identifier, "from-stdin", "-") == b"data"


def test_sessions_are_listed_shown_and_stopped(kernelpool: Shell, identifier: str) -> None:
    kernelpool("exec", "-s", identifier, "1")

    assert identifier in [session["identifier"] for session in kernelpool.json("sessions", "list")]
    assert identifier in kernelpool("sessions", "list").decode()
    assert kernelpool.json("sessions", "show", identifier)["identifier"] == identifier
    kernelpool("sessions", "stop", identifier)
    assert identifier not in kernelpool("sessions", "list").decode()
    assert b"There is no session" in kernelpool("sessions", "stop", identifier, code=1)


def test_pools_are_listed_and_shown(kernelpool: Shell) -> None:
    assert [pool["name"] for pool in kernelpool.json("pools", "list")] == ["python"]
    assert kernelpool.json("pools", "show", "python")["maxSessions"] == 40
    assert b"maxSessions" in kernelpool("pools", "show", "python")
    assert b"NAME" in kernelpool("pools", "list")
    assert b"setting=value" in kernelpool("pools", "create", "x", "ready", code=2)
    assert b"Abort" in kernelpool("pools", "delete", "python", code=1)  # nobody said yes


def test_a_pool_is_made_changed_and_deleted(kernelpool: Shell) -> None:
    made = kernelpool.json("pools", "create", "made", "ready=0", *PATIENT, "limits.memory=512Mi", "tags.team=a")
    assert (made["settings"]["limits"]["memory"], made["settings"]["tags"]) == (512 << 20, {"team": "a"})
    try:
        assert kernelpool.json("pools", "update", "made", "cooldown=20")["settings"]["cooldown"] == 20
        assert kernelpool("exec", "--pool", "made", "-s", "demo", "print(1)") == b"1\n"
        assert b"max_sessions" in kernelpool("pools", "update", "made", "ready=99", code=1)
    finally:
        kernelpool("pools", "delete", "made", "--yes")

    assert b"made" in kernelpool("pools", "show", "made", code=1)
    assert b"settings" in kernelpool("pools", "delete", "python", "--yes", code=1)


def test_images_go_to_a_folder_or_into_json_and_not_to_both(kernelpool: Shell, identifier: str) -> None:
    assert b"not both" in kernelpool("exec", "-s", identifier, "--json", "-o", "images", "1", code=2)


def test_errors_are_one_line_with_what_to_do_or_one_of_json(kernelpool: Shell) -> None:
    told = kernelpool("files", "get", "-s", "none-such-session", "x", "-", code=1)
    assert told.startswith(b"Error: There is no session")
    assert told.count(b"\n") == 1

    error = json.loads(kernelpool("pools", "show", "nope", "--json", code=1))["error"]
    assert error["code"] == "SessionPoolNotFound"
    assert error["traceId"]
    assert b"bearer token is not valid" in kernelpool("pools", "list", "--token", "wrong", code=1)
    assert b"cannot reach http://127.0.0.1:1" in kernelpool("pools", "list", "--url", "http://127.0.0.1:1", code=1)
    assert b"Give a FILE" in kernelpool("run", code=2)


def test_profiles_name_gateways(gateway: Gateway, tmp_path: Path) -> None:
    shell, url = Shell(tmp_path), f"http://127.0.0.1:{gateway.port}"
    assert b"KERNELPOOL_TOKEN" in shell("pools", "list", code=1)

    shell("profile", "add", "--url", url, input=TOKEN.encode() + b"\n")
    shell("profile", "add", "other", "--url", "http://127.0.0.1:1", "--token", "another")

    assert b"python" in shell("pools", "list")
    assert b"cannot reach" in shell("pools", "list", "--profile", "other", code=1)
    assert shell.json("profile", "list") == [
        {"name": "default", "url": url},
        {"name": "other", "url": "http://127.0.0.1:1"},
    ]
    assert TOKEN.encode() not in shell("profile", "list")
    file = tmp_path / ".config/kernelpool/profiles.toml"
    file.chmod(0o644)
    process = shell.start("pools", "list")
    assert b"chmod 600" in process.communicate(timeout=SECONDS)[1]
    shell("profile", "remove", "other")
    assert b"no profile 'other'" in shell("pools", "list", "--profile", "other", code=1)
    assert b"two gateways" in shell("pools", "list", "--profile", "default", "--url", url, code=2)


def test_a_token_goes_only_to_the_gateway_that_it_is_for(tmp_path: Path) -> None:
    from kernelpool.cli.remote import Remote

    shell = Shell(tmp_path)
    shell("profile", "add", "a", "--url", "http://a", "--token", "of-a")
    home = {"XDG_CONFIG_HOME": str(tmp_path / ".config")}
    both = {**home, "KERNELPOOL_URL": "http://env", "KERNELPOOL_TOKEN": "of-env"}

    def resolved(remote: Remote, environment: dict[str, str]) -> tuple[str, str]:
        profile = remote.resolve(environment)
        return profile.url, profile.token

    assert resolved(Remote(), both) == ("http://env", "of-env")
    assert resolved(Remote(profile="a"), both) == ("http://a", "of-a")
    assert resolved(Remote(profile="a", token="typed"), both) == ("http://a", "typed")
    assert resolved(Remote(url="http://typed"), both) == ("http://typed", "of-env")
    assert resolved(Remote(), {**home, "KERNELPOOL_TOKEN": "t"}) == ("http://127.0.0.1:8080", "t")
    assert resolved(Remote(), {**home, "KERNELPOOL_TOKEN": "t", "KERNELPOOL_PROFILE": "a"}) == ("http://a", "of-a")


@pytest.fixture
def alone(make_gateway: Make, tmp_path: Path) -> Iterator[Shell]:
    """No gateway anywhere, only a state directory in which the trees are built already."""
    gateway = make_gateway()
    gateway.signal(signal.SIGTERM)
    gateway.wait()
    yield Shell(tmp_path, KERNELPOOL_STATE_DIR=str(gateway.state))
    assert not list(gateway.state.glob("**/sandboxes/*"))


def test_run_needs_no_gateway_and_leaves_nothing(alone: Shell) -> None:
    assert alone("run", "-c", "print(1)") == b"1\n"
    assert b"ValueError: x" in alone("run", "-c", "raise ValueError('x')", code=1)

    process = alone.start("run", "-c", "print('on', flush=True)\nimport time\ntime.sleep(100)")
    assert process.stdout
    assert process.stdout.readline() == b"on\n"
    assert alone("run", "-c", "print('beside it')") == b"beside it\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (130, b"[canceled]\n")


def test_run_leaves_nothing_when_it_is_terminated(alone: Shell) -> None:
    process = alone.start("run", "-c", "print('on', flush=True)\nimport time\ntime.sleep(100)")
    assert process.stdout
    assert process.stdout.readline() == b"on\n"

    process.terminate()

    assert process.communicate(timeout=SECONDS) == (b"", b"")
    assert process.returncode == 143


def test_run_leaves_no_session_behind(kernelpool: Shell, gateway: Gateway) -> None:
    before = gateway.pool()["sessions"]

    assert kernelpool("run", "-c", "6 * 7") == b"42\n"

    until(lambda: gateway.pool()["sessions"] <= before)


def written(folder: Path, name: str, *sources: str) -> Path:
    """A notebook file with these cells of code."""
    cells: list[dict[str, Any]] = [
        {"cell_type": "code", "id": f"c{n}", "metadata": {}, "source": source, "outputs": [], "execution_count": None}
        for n, source in enumerate(sources)
    ]
    file = folder / name
    file.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}))
    return file


def cells_of(file: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(file.read_text())["cells"]
    return cells


def test_a_notebook_is_run_and_written_whether_its_cells_raise_or_not(kernelpool: Shell, identifier: str) -> None:
    written(kernelpool.folder, "good.ipynb", "x = 20", "x * n")
    written(kernelpool.folder, "bad.ipynb", "1 / 0", "2")
    out = kernelpool.folder / "out.ipynb"

    kernelpool("notebook", "run", "good.ipynb", "-o", "out.ipynb", "-p", "n=2", "-s", identifier)
    assert cells_of(out)[2]["outputs"][0]["data"]["text/plain"] == ["40"]
    told = kernelpool("notebook", "run", "bad.ipynb", "-o", "out.ipynb", code=1)
    assert told == b"[cell c0 failed: ZeroDivisionError: division by zero]\n"
    assert [len(cell["outputs"]) for cell in cells_of(out)] == [1, 0]
    facts = json.loads(kernelpool("notebook", "run", "good.ipynb", "-o", "out.ipynb", "-p", "n=2", "--json"))
    assert (facts["ok"], facts["executed"]) == (True, 3)
    assert b"nbformat 3 or 4" in kernelpool("notebook", "run", "-", "-o", "out.ipynb", input=b"{}", code=1)
    assert b"-o" in kernelpool("notebook", "run", "good.ipynb", "--json", code=2)


def test_a_session_is_exported_as_a_notebook(kernelpool: Shell, identifier: str) -> None:
    kernelpool("exec", "-s", identifier, "print('hi')")

    kernelpool("notebook", "export", identifier, "-o", "out.ipynb")

    [cell] = cells_of(kernelpool.folder / "out.ipynb")
    assert (cell["source"], cell["outputs"][0]["text"]) == (["print('hi')"], ["hi\n"])
    assert json.loads(kernelpool("notebook", "export", identifier))["cells"] == [cell]
    assert b"NoSessionFoundError" in kernelpool("notebook", "export", "nobody-1", "--json", "-o", "x", code=1)


def test_ctrl_c_cancels_the_cell_that_runs(kernelpool: Shell, session: Session) -> None:
    written(kernelpool.folder, "slow.ipynb", "import time; time.sleep(60)", "2")
    session.run("1")
    # That the gateway has begun says not that the command has heard of it: what runs is what it shows on a terminal.
    kernelpool.environment["TERM"] = "xterm"
    master, terminal = os.openpty()
    command = ("notebook", "run", "slow.ipynb", "-o", "out.ipynb", "-s", session.identifier)
    process = kernelpool.start(*command, stderr=terminal)
    os.close(terminal)
    shown = bytearray()

    def look() -> None:
        with contextlib.suppress(OSError):  # nobody is at the other end any more
            while data := os.read(master, 4096):
                shown.extend(data)

    looking = in_background(look)
    until(lambda: b"time.sleep" in shown)

    process.send_signal(signal.SIGINT)
    process.communicate(timeout=SECONDS)
    looking()
    os.close(master)

    assert process.returncode == 130
    assert is_free(session)
    assert not (kernelpool.folder / "out.ipynb").exists()


def test_a_notebook_needs_no_gateway(alone: Shell) -> None:
    written(alone.folder, "in.ipynb", "6 * 7")

    alone("notebook", "run", "in.ipynb", "-o", "out.ipynb")

    assert cells_of(alone.folder / "out.ipynb")[0]["outputs"][0]["data"]["text/plain"] == ["42"]


COMMANDS = {
    "run": ["FILE", "--timeout", "--output", "--pool", "--url", "--token", "--profile", "--json", "sandbox"],
    "exec": ["CODE", "--session", "--file", "--timeout", "--output", "--json", "KERNELPOOL_URL"],
    "shell": ["COMMAND", "--session", "--stdin", "--pty", "--timeout", "--json"],
    "files ls": ["PATH", "--recursive", "--session"],
    "files put": ["SOURCE", "NAME", "stdin"],
    "files get": ["NAME", "TO", "stdout"],
    "files rm": ["NAME..."],
    "notebook run": ["IN.ipynb", "--output", "--parameter", "--allow-errors", "--cell-timeout", "--session", "--json"],
    "notebook export": ["SESSION", "--output"],
    "pools list": ["--json"],
    "pools show": ["NAME"],
    "pools create": ["SETTING=VALUE", "limits.memory=4Gi", "--file"],
    "pools update": ["SETTING=VALUE"],
    "pools delete": ["--yes"],
    "sessions list": ["--pool"],
    "sessions show": ["IDENTIFIER"],
    "sessions stop": ["IDENTIFIER..."],
    "profile add": ["--url", "--token", "stdin"],
    "profile list": ["--json"],
    "profile remove": ["NAME"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_there_is(tmp_path: Path, command: str) -> None:
    text = Shell(tmp_path)(*command.split(), "--help").decode()

    assert not [word for word in COMMANDS[command] if word not in text]
    assert max(map(len, text.splitlines())) <= 100


def test_what_a_sandbox_prints_does_not_steer_the_terminal(kernelpool: Shell, identifier: str) -> None:
    master, terminal = os.openpty()
    code = r"print('\x1b]0;title\x07\x1b[31mred\x1b[0m\x9b5n')"
    process = kernelpool.start("exec", "-s", identifier, code, stdout=terminal)
    process.communicate(timeout=SECONDS)
    os.close(terminal)

    shown = b""
    with contextlib.suppress(OSError):  # the end: nobody is at the other side any more
        while True:
            shown += os.read(master, 1000)
    os.close(master)
    assert shown == b"]0;title\x1b[31mred\x1b[0m5n\r\n"
