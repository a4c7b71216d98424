"""The shell kernel as a client on its sockets sees it: what notebooks have, and what breaks other kernels of bash."""

from __future__ import annotations

import importlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernels import SECONDS, Cell, Kernel, started_kernel

LAUNCHER = Path(__file__).parents[2] / "kernels" / "shell" / "launch.py"


def environment(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


@pytest.fixture(scope="module")
def shared() -> Iterator[Kernel]:
    with started_kernel([sys.executable, str(LAUNCHER)], environment) as kernel:
        yield kernel


@pytest.fixture
def kernel(shared: Kernel) -> Kernel:
    """One process for all tests; what a test defines must not be what another relies on."""
    return shared


@pytest.fixture
def fresh() -> Iterator[Kernel]:
    with started_kernel([sys.executable, str(LAUNCHER)], environment) as kernel:
        yield kernel


def failure(cell: Cell) -> tuple[str, str]:
    assert cell.status == "error"
    assert ("error", cell.reply["ename"]) in [(kind, content.get("ename")) for kind, content in cell.outputs]
    return cell.reply["ename"], cell.reply["evalue"]


STATE = [
    ("x=41", "echo $((x + 1))", "42\n"),
    ("greet() { echo hello $1; }", "greet you", "hello you\n"),
    ("declare -A map=([a]=1)", 'echo "${map[a]}"', "1\n"),
    ("export WORD=known", "bash -c 'echo $WORD'", "known\n"),
    ("mkdir -p down && cd down", 'echo "${PWD##*/}"; cd ..', "down\n"),
    ("alias say='echo said'", "say it", "said it\n"),
    ("shopt -s nullglob", "echo *.nothing; shopt -u nullglob", "\n"),
    ("words=(a 'b c')", 'printf "%s|" "${words[@]}"', "a|b c|"),
]


@pytest.mark.parametrize(("first", "then", "expected"), STATE)
def test_state_stays(kernel: Kernel, first: str, then: str, expected: str) -> None:
    assert kernel.run(first).status == "ok"

    assert kernel.run(then).text() == expected


CELLS = [
    ("echo out; echo err >&2", "out\n", "err\n"),
    ("printf 'no newline'", "no newline", ""),
    ("echo ä€𝄞", "ä€𝄞\n", ""),
    (r"printf 'a\xffb'", "a\ufffdb", ""),
    (r"printf 'two\r\nlines'", "two\r\nlines", ""),
    ("cat <<END\n  $((6 * 7))\nEND", "  42\n", ""),
    ("for i in 1 2 3\ndo\n  echo $i\ndone", "1\n2\n3\n", ""),
    ("read -r line || echo 'nothing there'", "nothing there\n", ""),
    ("cat; python3 -c 'import sys; print(repr(sys.stdin.read()))'", "''\n", ""),
    ("PS1='$ '; PS2='> '; echo prompt", "prompt\n", ""),
    ("echo 'what!'; echo !! \"hi!\"", "what!\n!! hi!\n", ""),
    ("break", "", ""),
    ("continue", "", ""),
    ("for i in 1 2; do echo $i; continue 2; done", "1\n", ""),
    ("(echo sub; exit 7) || echo failed with $?", "sub\nfailed with 7\n", ""),
    ("[ -t 0 ] || [ -t 1 ] || echo no terminal", "no terminal\n", ""),
    ("", "", ""),
    ("# a comment", "", ""),
    ("set -- a b; echo $# $1; shift; echo $1", "2 a\nb\n", ""),
    ("exec 3>file; echo kept >&3; exec 3>&-; cat file", "kept\n", ""),
]


@pytest.mark.parametrize(("code", "out", "err"), CELLS)
def test_a_cell_shows_what_it_writes_each_stream_by_itself(kernel: Kernel, code: str, out: str, err: str) -> None:
    cell = kernel.run(code)

    assert (cell.text(), cell.text("stderr"), cell.status) == (out, err, "ok")


def test_an_exit_status_is_an_error_and_known_to_the_next_cell(kernel: Kernel) -> None:
    assert failure(kernel.run("echo before; (exit 5)")) == ("ExitStatus", "5")

    assert kernel.run("echo $?").text() == "5\n"
    assert kernel.run("echo $?").text() == "0\n"


@pytest.mark.parametrize("code", ["no_such_command", "if then", "echo 'never closed", "cat /no/such/file"])
def test_what_goes_wrong_is_said_and_the_shell_is_kept(kernel: Kernel, code: str) -> None:
    kernel.run("kept=yes")

    cell = kernel.run(code)

    assert failure(cell)[0] == "ExitStatus"
    assert cell.text("stderr")
    assert kernel.run("echo $kept").text() == "yes\n"


def test_an_expansion_that_fails_ends_its_cell_alone(kernel: Kernel) -> None:
    cell = kernel.run("kept=yes; echo ${nothing:?is not set}; echo never")

    assert failure(cell)[0] == "ExitStatus"
    assert "is not set" in cell.text("stderr")
    assert kernel.run("echo $kept").text() == "yes\n"


@pytest.mark.parametrize(
    ("code", "status"), [("exit 3", "3"), ("set -e; false; echo never", "1"), ("kill -KILL $$", "137"), ("exit", "0")]
)
def test_a_shell_that_exits_says_so_and_a_new_one_takes_its_place(kernel: Kernel, code: str, status: str) -> None:
    kernel.run("gone=soon")

    name, value = failure(kernel.run(f"echo last; {code}"))

    assert name == "ShellExited"
    assert f"exited with {status};" in value
    assert kernel.run("echo [$gone] $-").text().startswith("[] ")


def test_what_was_written_before_an_exit_is_there(kernel: Kernel) -> None:
    assert kernel.run("seq 20000; exit 1").text().splitlines()[-1] == "20000"


@pytest.mark.parametrize(
    "code", ["sleep 1000; echo never", "while :; do :; done", "f() { sleep 1000; echo never; }; f"]
)
def test_an_interrupt_ends_the_cell_and_keeps_the_shell(kernel: Kernel, code: str) -> None:
    kernel.run("kept=yes")
    request = kernel.send(f"echo on; {code}")
    kernel.wait_for_text(request, "on")

    os.killpg(kernel.process.pid, signal.SIGINT)
    cell = kernel.finish(request)

    assert failure(cell) == ("KeyboardInterrupt", "")
    assert cell.text() == ""
    assert kernel.run("echo $? $kept").text() == "130 yes\n"


def test_an_interrupt_at_the_moment_in_which_a_program_starts_is_not_lost(kernel: Kernel) -> None:
    kernel.run("kept=yes")
    for _ in range(20):
        request = kernel.send("echo on; sleep 1000; echo never")
        kernel.wait_for_text(request, "on")

        os.killpg(kernel.process.pid, signal.SIGINT)

        assert failure(kernel.finish(request))[0] == "KeyboardInterrupt"
    assert kernel.run("echo $kept").text() == "yes\n"


def test_an_interrupt_when_nothing_runs_changes_nothing(kernel: Kernel) -> None:
    kernel.run("kept=idle")

    for _ in range(3):
        os.killpg(kernel.process.pid, signal.SIGINT)

    assert kernel.run("echo $kept").text() == "idle\n"


def test_output_comes_while_a_cell_runs(kernel: Kernel) -> None:
    request = kernel.send("echo first; until [ -e go ]; do sleep 0.01; done; echo second")
    kernel.wait_for_text(request, "first")

    (kernel.home / "go").touch()

    assert kernel.finish(request).text() == "second\n"


def test_half_a_megabyte_on_one_line_takes_no_time(kernel: Kernel) -> None:
    began = time.monotonic()

    cell = kernel.run("head -c 500000 /dev/zero | tr '\\0' x; echo")

    assert cell.text() == "x" * 500_000 + "\n"
    assert time.monotonic() - began < 30


def test_no_last_line_is_lost(kernel: Kernel) -> None:
    for number in range(200):
        assert (
            kernel.run(f"head -c {number * 100} /dev/zero | tr '\\0' x; echo; echo last-{number}")
            .text()
            .endswith(f"\nlast-{number}\n")
        )


def test_long_code_and_odd_code_are_read_as_they_are(kernel: Kernel) -> None:
    long = "#" + "x" * 300_000 + "\necho 'a\\b'  \"c\td\""

    assert kernel.run(long).text() == "a\\b c\td\n"
    assert failure(kernel.run("echo a\0b"))[0] == "ValueError"


def test_processes_in_the_background_keep_no_cell_open_and_are_heard_later(kernel: Kernel) -> None:
    request = kernel.send("(until [ -e later ]; do sleep 0.01; done; echo late) &")
    cell = kernel.finish(request)
    assert cell.status == "ok"

    (kernel.home / "later").touch()
    kernel.wait_for_text(request, "late")


def test_background_processes_outlive_an_interrupt(kernel: Kernel) -> None:
    # Until it has been started, an interrupt strikes what is still a copy of bash.
    runs = 'read -r name </proc/$pid/comm && [ "$name" = sleep ]'
    kernel.run(f"sleep 1000 & pid=$!; until {runs}; do sleep 0.01; done")
    request = kernel.send("echo on; sleep 1000")
    kernel.wait_for_text(request, "on")

    os.killpg(kernel.process.pid, signal.SIGINT)
    kernel.finish(request)

    assert kernel.run("kill $pid && echo it lived").text() == "it lived\n"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("echo hi", "complete"),
        ("for i in 1 2; do", "incomplete"),
        ("echo 'open", "incomplete"),
        ("cat <<END\nx", "incomplete"),
        ("done", "invalid"),
    ],
)
def test_complete_code_is_told_from_what_goes_on(kernel: Kernel, code: str, status: str) -> None:
    deadline = time.monotonic() + SECONDS
    while (told := kernel.reply(kernel.client.is_complete(code))["status"]) == "unknown":
        assert time.monotonic() < deadline  # no more than a bash that had not started soon
    assert told == status


def test_words_are_completed_from_the_live_shell(kernel: Kernel) -> None:
    kernel.run("my_function() { :; }; my_variable=1; mkdir -p folder; touch folder/file; (exit 9)")

    commands = kernel.reply(kernel.client.complete("my_f"))
    variables = kernel.reply(kernel.client.complete("echo $my_v"))
    files = kernel.reply(kernel.client.complete("ls -l fold"))
    inside = kernel.reply(kernel.client.complete("ls folder/f"))

    assert (commands["matches"], commands["cursor_start"]) == (["my_function"], 0)
    assert (variables["matches"], variables["cursor_start"]) == (["$my_variable"], 5)
    assert (files["matches"], inside["matches"]) == (["folder/"], ["folder/file"])
    assert kernel.run("echo $?").text() == "9\n"


def test_what_it_is_is_told(kernel: Kernel) -> None:
    info = kernel.reply(kernel.client.kernel_info())

    assert info["language_info"]["name"] == "bash"
    assert info["language_info"]["file_extension"] == ".sh"
    assert info["language_info"]["version"][0].isdigit()


def test_a_failure_stops_what_was_sent_with_it_when_that_is_wanted(kernel: Kernel) -> None:
    failing = "until [ -e all-sent ]; do sleep 0.01; done; false"
    requests = [kernel.send(failing, stop_on_error=True), kernel.send("echo never"), kernel.send("echo no")]
    kernel.wait_until_received()
    (kernel.home / "all-sent").touch()

    cells = [kernel.finish(request) for request in requests]

    assert [cell.status for cell in cells] == ["error", "aborted", "aborted"]
    assert kernel.run("echo again").text() == "again\n"


def test_what_is_sent_once_a_failure_is_known_is_run(kernel: Kernel) -> None:
    for _ in range(200):
        failed = kernel.send("false", stop_on_error=True)
        assert kernel.reply(failed)["status"] == "error"
        assert kernel.run("true").status == "ok"


def test_a_shutdown_ends_it(fresh: Kernel) -> None:
    fresh.client.shutdown()

    assert fresh.process.wait(timeout=SECONDS) == 0


# --- what a review found


@pytest.fixture
def bash(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A shell without a kernel."""
    monkeypatch.syspath_prepend(str(LAUNCHER.parent))
    bash = importlib.import_module("kernelpool_shell.bash").Bash(lambda *_: None)
    yield bash
    bash.close()


def ended(bash: Any) -> int:
    deadline = time.monotonic() + SECONDS
    while (status := bash.status()) is None:
        assert time.monotonic() < deadline
        select.select(bash.sources(text=False), [], [], 1)
    return int(status)


def test_an_interrupt_between_cells_strikes_none(fresh: Kernel) -> None:
    bash = int(fresh.run("echo $$").text())
    for number in range(10):
        # Both wait when the kernel goes on: what the interrupt made bash say, and the cell.
        os.kill(fresh.process.pid, signal.SIGSTOP)
        os.kill(bash, signal.SIGINT)
        request = fresh.send(f"echo {number}; sleep 0.01; echo end")
        time.sleep(0.02)
        os.kill(fresh.process.pid, signal.SIGCONT)

        assert fresh.finish(request).text() == f"{number}\nend\n"


def test_a_cell_whose_number_an_interrupt_took_is_asked_for_again_and_run_once(bash: Any) -> None:
    ask, bash._ask = bash._ask, os.open(os.devnull, os.O_WRONLY)
    bash.begin("n=$((n + 1)); (exit $((n + 10)))")
    os.close(bash._ask)
    bash._ask = ask
    os.kill(bash._process.pid, signal.SIGINT)
    assert ended(bash) == 11
    for _ in range(3):
        bash._write_asked()  # no more than once

    bash.begin("(exit $((n + 20)))")

    assert ended(bash) == 21


def test_interrupts_that_follow_at_once_leave_a_loop_to_run(fresh: Kernel) -> None:
    for number in range(20):
        request = fresh.send("echo on; sleep 1000")
        fresh.wait_for_text(request, "on")
        for _ in range(3):
            os.killpg(fresh.process.pid, signal.SIGINT)
        fresh.finish(request)

        assert fresh.run(f"echo {number}").text() == f"{number}\n"


@pytest.mark.parametrize(("lost", "refills"), [(3, 0), (4, 1)])
def test_loops_that_are_lost_leave_the_next(bash: Any, lost: int, refills: int) -> None:
    bash.begin(f"n=0 was=$__kp_loop; __kp_loop='[ $((n += 1)) -lt {lost} ] || __kp_loop=$was'; break")
    for _ in range(refills):
        bash.refill()

    assert ended(bash) == 0


def test_an_interrupt_ends_a_cell_the_same_in_a_shell_that_was_slow_to_start(bash: Any) -> None:
    bash._prompt.write(bash._setup)  # as when nothing was heard of the first in time

    for _ in range(10):
        bash.begin("n=$((n + 1)); kill -INT $$; sleep 1000")
        assert ended(bash) == 130
    bash.begin("(exit $n)")

    assert ended(bash) == 10


def test_functions_and_fields_of_the_user_do_not_come_between(fresh: Kernel) -> None:
    fresh.run("printf() { echo mine; }; read() { echo mine; }; eval() { echo mine; }; IFS=0123456789")

    assert failure(fresh.run("(exit 5)")) == ("ExitStatus", "5")
    assert fresh.run('echo "$?"').text() == "5\n"


def test_what_waits_behind_an_exit_is_answered(fresh: Kernel) -> None:
    cell = fresh.send("until [ -e all-sent ]; do sleep 0.01; done; exit 1", stop_on_error=True)
    completion = fresh.client.complete("ech")
    info = fresh.client.kernel_info()
    aborted = fresh.send("echo never")
    fresh.wait_until_received()
    (fresh.home / "all-sent").touch()

    assert failure(fresh.finish(cell))[0] == "ShellExited"
    assert fresh.finish(aborted).status == "aborted"
    replies = [fresh.client.get_shell_msg(timeout=SECONDS) for _ in range(2)]
    assert {reply["parent_header"]["msg_id"]: reply["content"]["status"] for reply in replies} == {
        completion: "ok",
        info: "ok",
    }
    assert fresh.run("echo on").text() == "on\n"


def test_set_e_ends_the_shell_when_a_cell_fails_and_not_before(fresh: Kernel) -> None:
    assert failure(fresh.run("kept=yes; set -o pipefail; (exit 4)")) == ("ExitStatus", "4")
    assert fresh.run("echo $?; set -e").text() == "4\n"
    assert fresh.run("break").status == "ok"
    assert fresh.reply(fresh.client.complete("echo nothing_like_it"))["matches"] == []
    assert fresh.reply(fresh.client.complete("echo $nothing_like_it"))["matches"] == []
    assert fresh.run("echo $kept").text() == "yes\n"

    assert failure(fresh.run("false; echo never"))[0] == "ShellExited"


def test_an_err_trap_hears_of_the_cells_alone(fresh: Kernel) -> None:
    assert fresh.run("trap 'echo failed' ERR").text() == ""
    assert fresh.run("(exit 3); echo on").text() == "failed\non\n"
    assert failure(fresh.run("(exit 3)"))[0] == "ExitStatus"  # twice: bash has it for the cell as a whole, too
    assert fresh.reply(fresh.client.complete("echo nothing_like_it"))["matches"] == []
    assert fresh.run("echo $?").text() == "3\n"
    assert fresh.run("echo on").text() == "on\n"


def test_set_x_shows_the_cells_alone(fresh: Kernel) -> None:
    fresh.run("set -x; (exit 3)")
    fresh.reply(fresh.client.complete("echo nothing_like_it"))

    cell = fresh.run("echo a $?")

    assert (cell.text(), cell.text("stderr").lstrip("+")) == ("a 3\n", " echo a 3\n")
    assert fresh.run("set +x").status == "ok"
    assert fresh.run("echo b").text("stderr") == ""


def test_a_cell_may_clear_the_folder_for_temporary_files() -> None:
    with started_kernel(
        [sys.executable, str(LAUNCHER)], lambda home: {**environment(home), "TMPDIR": str(home)}
    ) as kernel:
        kernel.run('kept=yes; rm -rf "$TMPDIR"/*')

        assert kernel.run("echo $kept").text() == "yes\n"


@pytest.mark.parametrize("error", [OSError("no process"), subprocess.TimeoutExpired("bash", 1)])
def test_completeness_is_unknown_when_nothing_can_be_started(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.syspath_prepend(str(LAUNCHER.parent))

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fails)

    assert importlib.import_module("kernelpool_shell.words").completeness("echo") == "unknown"


def test_a_shell_that_writes_elsewhere_leaves_nothing_to_read(bash: Any, tmp_path: Path) -> None:
    bash.begin(f"exec >{tmp_path}/log 2>&1; echo there")
    assert ended(bash) == 0
    bash.settle()

    assert select.select(bash.sources(text=True), [], [], 0.1)[0] == []
    bash.begin("echo still")
    assert ended(bash) == 0
    assert (tmp_path / "log").read_text() == "there\nstill\n"


def test_processes_of_cells_have_no_descriptors_of_ours(kernel: Kernel) -> None:
    names = kernel.run(
        "echo $(python3 -c 'import os; print(*[n for n in range(3, 300) if os.path.exists(f\"/proc/self/fd/{n}\")])')"
    )

    assert names.text().strip() == ""


def test_long_words_are_completed_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(LAUNCHER.parent))
    question = importlib.import_module("kernelpool_shell.words").question
    began = time.monotonic()

    assert question("x" * 200_000 + " ec", 200_003)[1] == 200_001
    assert question("echo " * 2000 + "$na", 10_003) == ("compgen -v -P '$' -- na || :", 10_000)
    assert time.monotonic() - began < 30  # and not minutes


def test_what_comes_from_the_background_is_no_completion(fresh: Kernel) -> None:
    request = fresh.send("(until [ -e stop ]; do echo tick; done) &")
    fresh.finish(request)
    fresh.wait_for_text(request, "tick")

    assert fresh.reply(fresh.client.complete("echo nothing_like_it"))["matches"] == []

    fresh.run("touch stop; wait")


def test_what_was_written_before_a_cell_is_not_its_own(fresh: Kernel) -> None:
    request = fresh.send("(until [ -e go ]; do :; done; echo late; touch wrote) &")
    fresh.finish(request)
    os.kill(fresh.process.pid, signal.SIGSTOP)
    (fresh.home / "go").touch()
    while not (fresh.home / "wrote").exists():
        time.sleep(0.01)
    cell = fresh.send("echo own")
    os.kill(fresh.process.pid, signal.SIGCONT)

    fresh.wait_for_text(request, "late")
    assert fresh.finish(cell).text() == "own\n"


def test_an_interrupt_when_nothing_runs_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(LAUNCHER.parent))
    module = importlib.import_module("kernelpool_shell.kernel")
    kernel = module.Kernel.__new__(module.Kernel)
    kernel._wakeup, wake = os.pipe()
    os.write(wake, b"\2")
    refilled: list[int] = []
    kernel._bash = type("Bash", (), {"refill": lambda _: refilled.append(1)})()
    kernel._request, kernel._interrupted, kernel._insist_at = None, object(), []

    kernel._insist(True)

    assert kernel._insist_at == []
    assert refilled
