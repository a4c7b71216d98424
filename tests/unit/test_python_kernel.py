"""The Python kernel as a client on its sockets sees it: started by our launcher, in a folder of its own."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
import tomllib
import unittest
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import zmq

from kernelpool.agent.kernel import SUBSHELLS_ON_CONTROL
from tests import kernels
from tests.kernels import SECONDS, Kernel

FOLDER = Path(__file__).parents[2] / "kernels" / "python"
NUMBERS = itertools.count(1)
ARGV = (sys.executable, "-Xfrozen_modules=off", str(FOLDER / "launch.py"))


def environment(home: Path, cache: Path) -> dict[str, str]:
    settings: dict[str, str] = tomllib.loads((FOLDER / "runtime.toml").read_text())["env"]
    ours = {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "LANG": "C.UTF-8"}
    places = {name: value.replace("/tmp", str(cache), 1) for name, value in settings.items()}
    return places | ours


def started_kernel(cache: Path) -> AbstractContextManager[Kernel]:
    return kernels.started_kernel(ARGV, lambda home: environment(home, cache))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def shared(cache: Path) -> Iterator[Kernel]:
    with started_kernel(cache) as kernel:
        yield kernel


@pytest.fixture
def kernel(shared: Kernel) -> Kernel:
    """One process for all tests; what a test defines must not be what another relies on."""
    return shared


@pytest.fixture
def fresh(cache: Path) -> Iterator[Kernel]:
    """A process of its own, for tests that leave it changed."""
    with started_kernel(cache) as kernel:
        yield kernel


# --- values, state, errors


def test_a_value_comes_back_and_variables_stay(kernel: Kernel) -> None:
    kernel.run("kept = 20 + 1")

    assert kernel.run("kept * 2").result == "42"


def test_a_long_session_forgets_old_values_in_silence(fresh: Kernel) -> None:
    fresh.run("get_ipython().displayhook.cache_size = 3")

    assert [fresh.run(str(i)).kinds for i in range(8)] == [["execute_result"]] * 8


def test_an_error_is_plain_text_with_the_line_that_failed(kernel: Kernel) -> None:
    cell = kernel.run("def divide(x):\n    return 1 / x\ndivide(0)")

    assert cell.reply["ename"] == "ZeroDivisionError"
    traceback = "\n".join(cell.reply["traceback"])
    assert "return 1 / x" in traceback
    assert "\x1b" not in traceback
    assert cell.kinds == ["error"]


def test_an_exception_whose_text_raises_still_gets_a_reply(kernel: Kernel) -> None:
    code = "class Bad(Exception):\n    def __str__(self): raise RuntimeError('no text')\nraise Bad()"

    assert kernel.run(code).status == "error"
    assert kernel.run("1 + 1").result == "2"


@pytest.mark.parametrize("code", ["exit()", "quit()", "import sys; sys.exit(3)", "raise SystemExit"])
def test_leaving_a_script_ends_the_cell_and_not_the_session(kernel: Kernel, code: str) -> None:
    kernel.run("kept = 7")

    cell = kernel.run(f"{code}\nprint('not reached')")

    assert cell.reply["ename"] == "SystemExit"
    assert cell.text() == ""
    assert kernel.run("kept").result == "7"


def test_requests_behind_an_error_run_for_they_may_be_somebody_elses(kernel: Kernel) -> None:
    """What a client wants to be aborted the agent aborts, which knows whose it is."""
    requests = [kernel.send("import time; time.sleep(0.3); 1/0", stop_on_error=True), kernel.send("2")]

    replies = [kernel.finish(request).status for request in requests]

    assert replies == ["error", "ok"]


def test_text_that_is_not_unicode_reaches_the_reader_and_ends_no_session(kernel: Kernel) -> None:
    cell = kernel.run("print('a\\ud800b\\udcffc')\nraise ValueError('d\\ud800')")

    assert cell.text() == "a?b?c\n"
    assert cell.reply["evalue"] == "d?"
    assert kernel.run("'\\udcff', float('nan')").status == "ok"


def test_input_fails_at_once(kernel: Kernel) -> None:
    assert kernel.run("input('name? ')").reply["ename"] == "StdinNotImplementedError"


def test_a_program_that_reads_its_input_finds_the_end_of_it(kernel: Kernel) -> None:
    assert kernel.run("!cat\nimport sys; sys.stdin.read()").result == "''"


def test_nothing_is_left_in_the_workspace(fresh: Kernel) -> None:
    fresh.run("import matplotlib.pyplot as plt, pandas, plotly\nplt.plot([1])")

    assert list(fresh.home.iterdir()) == []


# --- streams


def test_stdout_and_stderr_keep_their_order(kernel: Kernel) -> None:
    cell = kernel.run("import sys\nfor i in range(3):\n    print('o', i)\n    print('e', i, file=sys.stderr)")

    assert [(content["name"], content["text"]) for _, content in cell.whole] == [
        (name, f"{name[3]} {i}\n") for i in range(3) for name in ("stdout", "stderr")
    ]


def test_a_line_whose_end_comes_late_is_told_as_one(kernel: Kernel) -> None:
    cell = kernel.run(
        "import sys, time\n"
        "out = sys.stdout\n"
        "with out._buffer_lock: out.write('4'), setattr(out, 'flush_interval', 600)  # of the one more\n"
        "before = time.monotonic()\n"
        "while not out._was_due and time.monotonic() < before + 60: time.sleep(0.01)\n"
        "print('2')\n"
        "del out.flush_interval"
    )

    assert cell.outputs == [("stream", {"name": "stdout", "text": "42\n"})]


def test_a_line_without_an_end_is_not_kept_for_ever(kernel: Kernel) -> None:
    request = kernel.send("print('Name: ', end='')\nwhile True: pass")

    kernel.wait_for_text(request, "Name: ")

    kernel.process.send_signal(signal.SIGINT)
    assert kernel.finish(request).status == "error"


def test_what_other_programs_write_keeps_its_place_among_prints(kernel: Kernel) -> None:
    cell = kernel.run(
        "import os, subprocess, sys\n"
        "print('1')\nos.system('echo 2')\nprint('3')\nsubprocess.run(['echo', '4'])\n"
        "print('5')\nos.write(1, b'6\\n')\nprint('7')\nsubprocess.run(['echo', '8'], stdout=sys.stdout)\n"
        "print('9', file=sys.__stdout__)\nprint('10')"
    )

    assert cell.text() == "".join(f"{number}\n" for number in range(1, 11))


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.system('printf late')",
        "import os; os.write(1, b'late')",
        "import ctypes; c = ctypes.CDLL(None)\n"
        "c.setvbuf(ctypes.c_void_p.in_dll(c, 'stdout'), None, 0, 4096); c.printf(b'late')",
        "import os; os.write(2, b'late')",
    ],
    ids=["system", "write", "printf", "stderr"],
)
def test_output_of_descriptors_is_never_late(kernel: Kernel, code: str) -> None:
    cells = [kernel.run(code) for _ in range(60)]

    assert [cell.text() + cell.text("stderr") for cell in cells] == ["late"] * 60


def test_a_program_that_never_stops_writing_does_not_keep_the_cell_open(kernel: Kernel) -> None:
    cell = kernel.run("import subprocess\nnoise = subprocess.Popen(['yes'])\n'done'")
    kernel.run("noise.kill(); noise.wait()")

    assert cell.result == "'done'"


def test_characters_are_whole_wherever_the_pipe_cuts_them(kernel: Kernel) -> None:
    cell = kernel.run("import os\nfor byte in 'é€😀'.encode() * 3: os.write(1, bytes([byte]))")

    assert cell.text() == "é€😀" * 3


def test_ten_thousand_displays_all_arrive_at_a_reader_that_pauses(kernel: Kernel) -> None:
    request = kernel.send("for i in range(10_000): display({'text/plain': str(i)}, raw=True)")
    kernel.reply(request)  # reads nothing of the displays until the kernel has sent them all

    received = []
    while (message := kernel.next_output(request))[1] != {"execution_state": "idle"}:
        if message[0] == "display_data":
            received.append(message[1]["data"]["text/plain"])

    assert received == [str(i) for i in range(10_000)]


def test_a_long_output_is_whole_and_in_messages_of_a_bounded_size(kernel: Kernel) -> None:
    cell = kernel.run("import sys\nfor i in range(1000): sys.stdout.write(str(i % 10) * 10_000)")

    assert cell.text() == "".join(str(i % 10) * 10_000 for i in range(1000))
    assert max(len(content["text"]) for _, content in cell.outputs) < 300_000


@pytest.mark.parametrize("how", ["print", "display"])
def test_output_is_sent_while_the_cell_still_runs(kernel: Kernel, how: str) -> None:
    request = kernel.send(f"import time\n{how}('started')\nwhile True: time.sleep(0.01)")

    kernel.wait_for_text(request, "started")

    os.kill(kernel.process.pid, signal.SIGINT)
    assert kernel.finish(request).reply["ename"] == "KeyboardInterrupt"


def test_late_output_of_a_thread_belongs_to_the_cell_that_started_it(kernel: Kernel) -> None:
    first = kernel.send(
        "import threading\nmay_go = threading.Event()\n"
        "def late():\n    may_go.wait(10)\n    print('from the thread')\n    display('shown by it')\n"
        "thread = threading.Thread(target=late); thread.start()"
    )
    kernel.finish(first)

    second = kernel.client.execute("print('mine'); may_go.set(); thread.join()")

    seen: dict[str, list[str]] = {first: [], second: []}
    while not (seen[second] and seen[second][-1] == "idle"):  # where text is cut is a matter of time
        message = kernel.client.get_iopub_msg(timeout=SECONDS)
        content = message["content"]
        text = content.get("text") or content.get("data", {}).get("text/plain") or content.get("execution_state", "")
        if message["msg_type"] != "execute_input":
            seen[message["parent_header"]["msg_id"]].append(text)
    kernel.reply(second)
    assert "".join(seen[first]) == "from the thread\n'shown by it'"
    assert "".join(seen[second]) == "busymine\nidle"


def test_output_of_a_pool_of_threads_belongs_to_the_cell_that_submitted(kernel: Kernel) -> None:
    kernel.run(
        "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)\npool.submit(print).result()"
    )

    assert kernel.run("pool.submit(print, 'second').result()").text() == "second\n"


# --- interrupts


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(60)",
        "while True: pass",
        "import asyncio; await asyncio.sleep(60)",
        "import asyncio; await asyncio.sleep(0)\nwhile True: pass",
        "import asyncio; asyncio.run(asyncio.sleep(60))",
        "import subprocess; subprocess.run(['sleep', '60'])",
        "!sleep 60",
    ],
)
def test_sigint_ends_the_cell_and_keeps_the_state(kernel: Kernel, code: str) -> None:
    kernel.run("kept = 3")
    request = kernel.send(f"print('started', flush=True)\n{code}")
    kernel.wait_for_text(request, "started")

    os.kill(kernel.process.pid, signal.SIGINT)

    assert kernel.finish(request).reply["ename"] in ("KeyboardInterrupt", "CancelledError")
    assert kernel.run("kept").result == "3"


def test_the_control_channel_answers_and_interrupts_while_a_cell_runs(kernel: Kernel) -> None:
    request = kernel.send("print('started', flush=True)\nwhile True: pass")
    kernel.wait_for_text(request, "started")

    message = kernel.client.session.msg("interrupt_request", {})
    kernel.client.control_channel.send(message)

    assert kernel.client.get_control_msg(timeout=SECONDS)["content"] == {"status": "ok"}
    assert kernel.finish(request).reply["ename"] == "KeyboardInterrupt"


def test_an_interrupt_just_before_a_cell_goes_on_reaches_it(kernel: Kernel) -> None:
    cell = kernel.run(
        "import asyncio, os, signal\n"
        "asyncio.get_running_loop().call_soon(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "await asyncio.sleep(0)\n"
        "while True: pass"
    )

    assert cell.reply["ename"] == "KeyboardInterrupt"


def test_an_interrupt_at_any_moment_leaves_no_request_without_a_reply(kernel: Kernel) -> None:
    for pause in range(150):
        request = kernel.send("'x' * 10")
        time.sleep(pause * 2e-5)  # not a wait for something: a sweep over the moments of an execution
        os.kill(kernel.process.pid, signal.SIGINT)

        assert kernel.finish(request).status in ("ok", "error")


# --- figures and other rich outputs


def test_a_shown_figure_is_one_png(kernel: Kernel) -> None:
    cell = kernel.run("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nprint('after')")

    assert cell.kinds == ["display_data", "stream"]
    assert set(cell.bundles()[0]) == {"image/png", "text/plain"}


def test_a_figure_left_open_is_shown_at_the_end_and_closed(kernel: Kernel) -> None:
    cell = kernel.run("import matplotlib.pyplot as plt\nplt.plot([1]); plt.savefig('x.png')\nprint('ok')")

    assert (cell.text(), cell.images) == ("ok\n", 1)
    assert cell.kinds[-1] == "display_data"
    assert (kernel.home / "x.png").read_bytes().startswith(b"\x89PNG")
    assert kernel.run("plt.get_fignums()").result == "[]"


def test_a_figure_is_shown_when_the_cell_fails_after_it(kernel: Kernel) -> None:
    cell = kernel.run("import matplotlib.pyplot as plt\nplt.plot([1])\n1/0")

    assert (cell.images, cell.status) == (1, "error")


def test_a_figure_as_the_last_value_is_shown_once(kernel: Kernel) -> None:
    cell = kernel.run("import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\nfig")

    assert (cell.kinds, cell.images) == (["execute_result"], 1)


def test_a_closed_figure_is_not_shown(kernel: Kernel) -> None:
    assert kernel.run("import matplotlib.pyplot as plt\nplt.plot([1]); plt.close()").images == 0


@pytest.mark.parametrize(("backend", "warm"), [("Agg", False), ("agg", True), ("TkAgg", False), ("TkAgg", True)])
def test_choosing_a_backend_without_a_display_still_shows_figures(cache: Path, backend: str, warm: bool) -> None:
    code = "import matplotlib.pyplot as plt\nfor i in range(2):\n    plt.plot([i]); plt.show()\nplt.plot([3])"
    with started_kernel(cache) as kernel:
        if warm:
            kernel.run((FOLDER / "warmup.py").read_text(), silent=True, store_history=False)
        kernel.run(f"import matplotlib\nmatplotlib.use({backend!r})")

        assert kernel.run(code).images == 3


def test_figures_are_shown_with_the_agg_backend_itself(fresh: Kernel) -> None:
    fresh.run("import os; os.environ['MPLBACKEND'] = 'Agg'")

    assert fresh.run("import matplotlib.pyplot as plt\nplt.plot([1])\nprint('ok')").images == 1


def test_a_table_is_html_and_text_of_its_full_width(kernel: Kernel) -> None:
    cell = kernel.run("import pandas as pd\npd.DataFrame({f'column_{i:02}': [i] for i in range(16)})")

    (bundle,) = cell.bundles("execute_result")
    assert "<table" in bundle["text/html"]
    assert (
        bundle["text/plain"].splitlines()[0].count("column_") == 14
        or "column_15" in bundle["text/plain"].splitlines()[0]
    )


def test_plotly_and_altair_give_their_data_and_no_page(kernel: Kernel) -> None:
    pytest.importorskip("plotly")
    pytest.importorskip("altair")

    plotly = kernel.run("import plotly.graph_objects as go\ngo.Figure(go.Scatter(y=[1, 2]))")
    shown = kernel.run("go.Figure(go.Scatter(y=[1, 2])).show()")
    altair = kernel.run(
        "import altair as alt, pandas as pd\nalt.Chart(pd.DataFrame({'x': [1]})).mark_point().encode(x='x')"
    )

    for cell, prefix in (
        (plotly, "application/vnd.plotly"),
        (shown, "application/vnd.plotly"),
        (altair, "application/vnd.vega"),
    ):
        (bundle,) = cell.bundles()
        assert [mime for mime in bundle if mime.startswith(prefix)]
        assert "text/html" not in bundle


def test_an_image_of_pillow_is_a_png(kernel: Kernel) -> None:
    assert kernel.run("from PIL import Image\nImage.new('RGB', (2, 2))").images == 1


@pytest.mark.parametrize("module", ["tqdm", "tqdm.auto", "tqdm.notebook"])
def test_progress_bars_are_text(kernel: Kernel, module: str) -> None:
    pytest.importorskip("tqdm")

    cell = kernel.run(f"from {module} import tqdm\nfor _ in tqdm(range(3)): pass")

    assert "100%" in cell.text("stderr")
    assert "Warning" not in cell.text("stderr")
    assert set(cell.kinds) == {"stream"}


def test_a_display_is_updated_and_cleared_by_its_own_messages(kernel: Kernel) -> None:
    cell = kernel.run(
        "from IPython.display import clear_output\n"
        "handle = display('one', display_id=True)\nhandle.update('two')\nclear_output(wait=True)"
    )

    assert cell.kinds == ["display_data", "update_display_data", "clear_output"]
    ids = [content["transient"]["display_id"] for kind, content in cell.outputs if "transient" in content]
    assert ids[0] == ids[1]


# --- asyncio


def test_top_level_await_works(kernel: Kernel) -> None:
    assert kernel.run("import asyncio\nawait asyncio.sleep(0, 'slept')").result == "'slept'"


def test_a_background_task_prints_for_the_cell_that_made_it(kernel: Kernel) -> None:
    first = kernel.send(
        "import asyncio\ngo = asyncio.Event()\n"
        "async def f():\n    await go.wait(); print('task')\ntask = asyncio.create_task(f())"
    )
    kernel.finish(first)

    second = kernel.client.execute("go.set(); await task", allow_stdin=False)

    kernel.wait_for_text(first, "task")
    assert kernel.reply(second)["status"] == "ok"


@pytest.mark.parametrize(
    "code",
    [
        "asyncio.run(f())",
        "asyncio.get_event_loop().run_until_complete(f())",
        "asyncio.get_event_loop().run_until_complete(asyncio.gather(f(), f()))[0]",
        "loop = asyncio.new_event_loop()\ntry:\n    r = loop.run_until_complete(f())\nfinally:\n    loop.close()\nr",
        "import nest_asyncio\nnest_asyncio.apply()\nasyncio.run(f())",
        "from asyncio import run\nrun(f()) and run(f())",
    ],
    ids=["run", "run_until_complete", "gather", "new loop", "nest_asyncio", "imported run"],
)
def test_loops_can_be_run_inside_a_cell(cache: Path, code: str) -> None:
    head = "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    return 5\n"
    with started_kernel(cache) as kernel:
        assert kernel.run(head + code).result == "5"
        assert kernel.run(head + code).result == "5"
        assert kernel.run("await f()").result == "5"
        assert kernel.run("await asyncio.wait_for(f(), 60)").result == "5"


# --- other processes


def test_shell_commands_give_plain_lines_and_their_code(kernel: Kernel) -> None:
    cell = kernel.run("!printf 'a\\nb\\n'; exit 3\nprint(_exit_code)\nfiles = !echo one two\nfiles")

    assert cell.text() == "a\nb\n3\n"
    assert cell.result == "['one two']"


def test_pip_runs_and_pkg_resources_lists_packages_without_a_warning(kernel: Kernel) -> None:
    assert kernel.run("!pip --version").text().startswith("pip ")

    cell = kernel.run("import pkg_resources\n[d.project_name for d in pkg_resources.working_set]")
    assert "ipykernel" in cell.result
    assert cell.kinds == ["execute_result"]


def test_a_package_that_a_cell_installs_can_be_imported_in_the_same_cell(fresh: Kernel) -> None:
    with zipfile.ZipFile(fresh.home / "freshly_made-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("freshly_made.py", "answer = 42")
        wheel.writestr("freshly_made-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: freshly-made\nVersion: 1\n")
        wheel.writestr(
            "freshly_made-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("freshly_made-1.dist-info/RECORD", "")

    cell = fresh.run(
        "try:\n    import freshly_made\nexcept ImportError:\n    print('not yet')\n"
        "!pip install --quiet --no-index *.whl\n"
        "import freshly_made\nprint(freshly_made.answer, freshly_made.__file__)\n"
        "!python -c 'import freshly_made; print(freshly_made.answer)'"
    )

    lines = cell.text().splitlines()
    assert lines[0] == "not yet"
    assert lines[-2].startswith(f"42 {fresh.home}/.local/lib/")
    assert lines[-1] == "42"


def test_forked_workers_run_functions_of_the_session_and_print_whole_lines(kernel: Kernel) -> None:
    cell = kernel.run(
        "import multiprocessing\ndef square(x):\n    print('worker', x)\n    return x * x\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n    values = pool.map(square, range(4))\nvalues"
    )

    assert cell.result == "[0, 1, 4, 9]"
    assert sorted(cell.text().splitlines()) == [f"worker {number}" for number in range(4)]


def test_a_forked_child_can_display(kernel: Kernel) -> None:
    cell = kernel.run(
        "from multiprocessing import get_context\n"
        "child = get_context('fork').Process(target=display, args=('from the child',))\n"
        "child.start(); child.join(); child.exitcode"
    )

    assert cell.result == "0"
    assert "'from the child'" in [bundle["text/plain"] for bundle in cell.bundles("display_data")]


def test_spawned_workers_run_functions_of_modules(kernel: Kernel) -> None:
    (kernel.home / "my_worker.py").write_text("def double(x):\n    return 2 * x\n")

    cell = kernel.run(
        "import multiprocessing, my_worker\n"
        "with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "    values = pool.map(my_worker.double, [1, 2])\nvalues"
    )

    assert cell.result == "[2, 4]"


def test_a_child_that_falls_off_its_cell_does_not_answer_in_place_of_the_kernel(kernel: Kernel) -> None:
    cell = kernel.run("import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nprint('parent' if pid else 'child')")

    assert sorted(cell.text().split()) == ["child", "parent"]
    assert kernel.run("1 + 1").result == "2"


# --- tampering


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.stdout = None",
        "import sys; sys.stdout = object()",
        "import sys, io; sys.stdout = io.StringIO(); sys.stdout.close()",
        "import sys\nclass Bad:\n    def write(self, text): 1 / 0\n    flush = write\nsys.stdout = sys.stderr = Bad()",
        "import sys; sys.stdout.close()",
        "import sys; sys.displayhook = None",
        "import builtins; builtins.print = None",
        "import os; os.close(1); os.close(2)",
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "get_ipython().events.register('post_execute', lambda: 1 / 0)",
        "import asyncio; asyncio.get_event_loop().set_debug(True)",
        "import logging; logging.basicConfig(level=logging.DEBUG, force=True)",
        "import time; time.monotonic = time.time = lambda: 0.0",
    ],
)
def test_a_kernel_that_was_tampered_with_still_computes(cache: Path, code: str) -> None:
    with started_kernel(cache) as kernel:
        kernel.run(f"kept = 5\n{code}")

        assert kernel.run("1/0").reply["ename"] == "ZeroDivisionError"
        assert kernel.run("kept").result == "5"


@pytest.mark.parametrize("code", ["get_ipython().events.trigger = None", "get_ipython().displayhook = None"])
def test_a_kernel_that_was_broken_says_so_instead_of_falling_silent(cache: Path, code: str) -> None:
    with started_kernel(cache) as kernel:
        kernel.run(code)

        assert kernel.run("1 + 1").status == "error"


def test_output_goes_where_the_cell_redirects_it_until_that_breaks(kernel: Kernel) -> None:
    kernel.run("import io, sys\nbefore, sys.stdout = sys.stdout, io.StringIO()\nprint('aside')")
    assert kernel.run("print('still aside'); before.write(sys.stdout.getvalue())").text() == "aside\nstill aside\n"

    kernel.run("sys.stdout.close()")
    assert kernel.run("print('here again')").text() == "here again\n"


# --- the runtime's other files


def test_the_warm_up_leaves_no_name_no_count_and_no_output(fresh: Kernel) -> None:
    traces = (
        "[dir(), [name for name in dir(__import__('sys')) if name.startswith('last')], _, __, dict(Out), list(In),"
        " sorted(get_ipython().user_ns_hidden)]"
    )

    def look() -> Any:
        """Without being one of the cells."""
        return fresh.run("", silent=True, user_expressions={"traces": traces}).reply["user_expressions"]["traces"]

    before = look()
    warm_up = fresh.run((FOLDER / "warmup.py").read_text(), silent=True, store_history=False)
    after = look()

    assert (warm_up.status, before["status"], after) == ("ok", "ok", before)
    assert fresh.run("import sys; 'pandas' in sys.modules and 'matplotlib.pyplot' in sys.modules").result == "True"
    assert fresh.run("1").reply["execution_count"] == 2


def test_the_requirements_of_the_runtime_can_be_read() -> None:
    from kernelpool.runtimes import load_runtime

    runtime = load_runtime(FOLDER)

    assert runtime.argv[-1] == "{connection_file}"
    assert "ipykernel>=7.4,<8" in runtime.requirements
    assert runtime.warmup_code.startswith('"""')


def test_the_module_of_the_launcher_is_not_the_users(kernel: Kernel) -> None:
    assert kernel.run("import launch").reply["ename"] == "ModuleNotFoundError"


def test_the_kernel_info_promises_what_there_is(kernel: Kernel) -> None:
    request = kernel.client.kernel_info()

    info = kernel.reply(request)

    features = ["debugger", "kernel subshells", SUBSHELLS_ON_CONTROL]
    assert (info["implementation"], info["supported_features"]) == ("ipython", features)
    json.dumps(info)


def test_a_subscriber_is_welcomed_so_that_it_knows_when_nothing_is_missed(fresh: Kernel) -> None:
    info = fresh.client.get_connection_info()
    with fresh.client.context.socket(zmq.SUB) as socket:
        socket.connect(f"ipc://{info['ip']}-{info['iopub_port']}")
        socket.subscribe(b"a topic of this test")

        assert socket.poll(SECONDS * 1000)
        assert b"iopub_welcome" in socket.recv_multipart()[3]


@pytest.mark.parametrize("lines", [1, 100_000])
def test_what_was_printed_before_the_process_leaves_at_once_is_read(fresh: Kernel, lines: int) -> None:
    code = f"import os\nfor n in range({lines}): print(n)\nos._exit(3)"
    # A reader has a second. This one may be slow, on a machine that is busy.
    fresh.run("import kernelpool_python.exits\nkernelpool_python.exits.LINGER = 30_000")

    request = fresh.client.execute(code)
    text = ""
    while not text.endswith(f"{lines - 1}\n"):  # or `Empty` is raised
        message = fresh.client.get_iopub_msg(timeout=SECONDS)
        if message["parent_header"].get("msg_id") == request and message["msg_type"] == "stream":
            text += message["content"]["text"]

    assert text == "".join(f"{n}\n" for n in range(lines))
    assert fresh.process.wait(SECONDS) == 3


def test_a_request_to_shut_down_ends_the_process(fresh: Kernel) -> None:
    fresh.client.shutdown()

    assert fresh.process.wait(SECONDS) == 0


def test_the_public_test_suite_for_kernels_passes(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = pytest.importorskip("jupyter_kernel_test")
    # It asks for messages that must come, and gives them a tenth of a second.
    monkeypatch.setattr(suite, "ensure_sync", lambda get: lambda timeout: get(timeout=SECONDS))
    monkeypatch.setattr(suite, "TIMEOUT", SECONDS)

    class PythonKernelTests(suite.KernelTests):  # type: ignore[misc, name-defined]
        language_name, file_extension = "python", ".py"
        code_hello_world = "print('hello, world')"
        code_stderr = "import sys; print('to stderr', file=sys.stderr)"
        code_stdin = "input('> ')"
        code_generate_error = "raise ValueError"
        code_execute_result = ({"code": "6 * 7", "result": "42"},)
        code_display_data = ({"code": "from IPython.display import HTML; display(HTML('<b>'))", "mime": "text/html"},)
        code_inspect_sample = "zip"
        code_clear_output = "from IPython.display import clear_output; clear_output()"
        code_page_something = "zip?"
        completion_samples = ({"text": "zi", "matches": {"zip"}},)
        complete_code_samples = ("1", "print('x')", "def f(x):\n  return x * 2\n\n\n")
        incomplete_code_samples = ('print("""hello', "def f(x):\n  x * 2")
        invalid_code_samples = ("import = 7q",)

        @classmethod
        def setUpClass(cls) -> None:
            cls.kc = kernel.client

        @classmethod
        def tearDownClass(cls) -> None:
            """The fixture ends the kernel."""

        def flush_channels(self) -> None:
            """All that was sent before this request; the suite's own takes a tenth of a second of silence for it."""
            kernel.finish(kernel.client.kernel_info())

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(PythonKernelTests).run(result)

    assert [trace for _, trace in result.failures + result.errors] == []
    assert result.testsRun >= 12


def test_what_was_printed_and_displayed_is_not_kept(fresh: Kernel) -> None:
    fresh.run("for _ in range(100): print('x' * 10**6)\nfrom IPython.display import HTML; display(HTML('y' * 10**6))")

    kept = fresh.run("sum(map(len, get_ipython().history_manager.outputs.values()))")

    assert kept.result == "0"


def test_a_writer_waits_for_a_reader_that_does_not_read(fresh: Kernel) -> None:
    """Else whatever is printed piles up in the kernel until its memory is full."""
    socket = fresh.client.iopub_channel.socket
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    socket.disconnect(endpoint)
    socket.setsockopt(zmq.RCVHWM, 10)  # counts for connections made from now on
    socket.connect(endpoint)
    fresh.wait_until_ready()
    progress = "open('progress', 'w').write(str(n))"
    request = fresh.send(f"for n in range(400): print('x' * 10**6); {progress}")

    reached = steady(lambda: (fresh.home / "progress").read_text() if (fresh.home / "progress").exists() else "")

    assert int(reached) < 399
    assert fresh.finish(request).status == "ok"


def steady(look: Any) -> str:
    """What is seen once it does not change for a second any more."""
    deadline = time.monotonic() + SECONDS
    seen, since = "", time.monotonic()
    while time.monotonic() < deadline:
        now = look()
        if now != seen or not now:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > 1:
            return str(seen)
    raise TimeoutError


# --- the debugger


def ask_debugger(kernel: Kernel, command: str, **arguments: Any) -> dict[str, Any]:
    content = {"type": "request", "seq": next(NUMBERS), "command": command, "arguments": arguments}
    kernel.client.control_channel.send(kernel.client.session.msg("debug_request", content))
    reply: dict[str, Any] = kernel.client.get_control_msg(timeout=SECONDS)["content"]
    return reply


def debug(kernel: Kernel, code: str, *lines: int) -> None:
    """As JupyterLab begins."""
    assert ask_debugger(kernel, "initialize", clientID="test", adapterID="", pathFormat="path")["success"]
    assert ask_debugger(kernel, "attach")["success"]
    source = ask_debugger(kernel, "dumpCell", code=code)["body"]["sourcePath"]
    breakpoints = [{"line": line} for line in lines]
    answer = ask_debugger(kernel, "setBreakpoints", breakpoints=breakpoints, source={"path": source})
    assert [each["verified"] for each in answer["body"]["breakpoints"]] == [True for _ in lines]
    assert ask_debugger(kernel, "configurationDone")["success"]


def wait_stopped(kernel: Kernel) -> int:
    """The thread."""
    while True:
        message = kernel.client.get_iopub_msg(timeout=SECONDS)
        if message["msg_type"] == "debug_event" and message["content"]["event"] == "stopped":
            return int(message["content"]["body"]["threadId"])


def test_a_debugger_is_there_when_it_is_asked_for(fresh: Kernel) -> None:
    code = "def double(n):\n    twice = n * 2\n    return twice\nprint(double(21))"
    assert fresh.run("import sys; 'debugpy' in sys.modules").result == "False"
    before = set(os.listdir(fresh.home))

    debug(fresh, code, 3)
    request = fresh.send(code)
    thread = wait_stopped(fresh)
    frame = ask_debugger(fresh, "stackTrace", threadId=thread)["body"]["stackFrames"][0]
    scope = ask_debugger(fresh, "scopes", frameId=frame["id"])["body"]["scopes"][0]
    variables = ask_debugger(fresh, "variables", variablesReference=scope["variablesReference"])["body"]["variables"]
    assert ask_debugger(fresh, "continue", threadId=thread)["success"]

    assert (frame["name"], frame["line"]) == ("double", 3)
    assert {each["name"]: each["value"] for each in variables} == {"n": "21", "twice": "42"}
    assert fresh.finish(request).text() == "42\n"
    assert ask_debugger(fresh, "disconnect", restart=False, terminateDebuggee=False)["success"]
    assert fresh.run("6 * 7").result == "42"
    assert set(os.listdir(fresh.home)) == before


def test_a_cell_that_waits_at_a_breakpoint_can_be_interrupted(fresh: Kernel) -> None:
    code = "n = 1\nwhile True:\n    n += 1"
    debug(fresh, code, 3)
    request = fresh.send(code)
    wait_stopped(fresh)

    os.kill(fresh.process.pid, signal.SIGINT)
    ask_debugger(fresh, "disconnect")  # what has stopped goes on

    assert fresh.finish(request).reply["ename"] == "KeyboardInterrupt"


def test_a_request_that_the_debugger_cannot_handle_has_an_answer(fresh: Kernel) -> None:
    assert ask_debugger(fresh, "debugInfo")["body"]["isStarted"] is False
    assert ask_debugger(fresh, "richInspectVariables")["success"] is False  # of what?
    assert fresh.run("1 + 1").result == "2"
