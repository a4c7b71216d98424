"""Hostile code in a session: it fills, floods, forges and looks around. The gateway and the neighbour do not notice."""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from functools import partial
from pathlib import Path

import pytest
import requests

from kernelpool.backends.cgroups import CgroupRoot
from tests.e2e.gateways import SECONDS, TOKEN, Gateway, Session, canary, in_background, sandbox_processes, until
from tests.extra import extra

MB = 1 << 20
MOST_PROCESSES = 256
"""Of a sandbox: the pool's default."""


@pytest.fixture
def neighbour(gateway: Gateway) -> Session:
    session = gateway.session("the-neighbour")
    session.value("1")
    return session


LIMITS_MEMORY = "memory" in CgroupRoot.open("0").controllers

ENDED, DIED, FAILED, STOPPED = "completed", "kernel_died", "raised", "timed_out"

# What the code does → the code, and how it may end. What is bounded by memory ends as the machine's luck has it.
BOMBS: dict[str, tuple[str, set[str]]] = {
    "an impossible allocation": ("bytearray(1 << 40)", {FAILED}),
    "memory": ("b = [bytearray(b'x' * 10**8) for _ in range(100)]", {DIED}),
    "memory in children": (
        "import os\nfor _ in range(30):\n if os.fork() == 0: b = b'x' * 10**8; os._exit(len(b) % 2)",
        {ENDED, FAILED, DIED, STOPPED},
    ),
    "memfd": ("import os\nf = os.memfd_create('x')\nfor _ in range(4096): os.write(f, b'x' * (1 << 20))", {DIED}),
    "shared mappings": (
        "import mmap\nm = mmap.mmap(-1, 3 << 30)\nfor n in range(0, 3 << 30, 4096): m[n] = 1",
        {DIED},
    ),
    "shared memory segments": (
        "import ctypes\nc = ctypes.CDLL(None); c.shmat.restype = ctypes.c_void_p\n"
        "for _ in range(20): ctypes.memset(c.shmat(c.shmget(0, 1 << 28, 0o1600), None, 0), 1, 1 << 28)",
        {DIED},
    ),
    "files of a tmpfs": (
        "import os\nfor d in ('/tmp/x', 'x'):\n os.makedirs(d)\n for n in range(10**6): open(f'{d}/{n}', 'w').close()",
        {FAILED, STOPPED},
    ),
    "disk": ("f = open('big', 'wb')\nwhile True: f.write(b'x' * (1 << 20))", {FAILED}),
    "the rest of disk": ("f = open('/tmp/big', 'wb')\nwhile True: f.write(b'x' * (1 << 20))", {FAILED}),
    "shared memory": ("f = open('/dev/shm/big', 'wb')\nwhile True: f.write(b'x' * (1 << 20))", {FAILED}),
    "processes": ("import os\nwhile True:\n try: os.fork()\n except OSError: pass", {STOPPED}),
    "processes that leave": (
        "import subprocess\nfor _ in range(1000): subprocess.Popen(['setsid', '-f', 'sleep', '1000'])",
        {FAILED, STOPPED},
    ),
    "threads": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(100,)).start()",
        {FAILED},
    ),
    "pipes": ("import os\nx = []\nwhile True: x.append(os.pipe())", {FAILED}),
    "pollers": ("import select\nx = []\nwhile True: x.append(select.epoll())", {FAILED}),
    "timers and watches": (
        "import ctypes\nc = ctypes.CDLL(None)\nwhile c.timerfd_create(1, 0) >= 0 or c.inotify_init() >= 0: pass",
        {ENDED},
    ),
    "cpu": (
        "import multiprocessing as m\np = [m.Process(target=lambda: [0 for _ in iter(int, 1)]) for _ in range(64)]\n"
        "[x.start() for x in p]\nwhile True: pass",
        {STOPPED},
    ),
    "the interpreter's lock": ("10**10**8", {STOPPED}),
    "backtracking": ("import re; re.match(r'(a+)+$', 'a' * 60 + 'b')", {STOPPED}),
    "a long sleep": ("import time; time.sleep(10**8)", {STOPPED}),
    "a core dump": ("import os; os.abort()", {DIED}),
    "tiny messages": ("import sys\nwhile True: sys.stdout.write('x'); sys.stdout.flush()", {STOPPED}),
    "displays": ("from IPython.display import display\nwhile True: display('x' * 1000)", {STOPPED}),
    "updates": (
        "from IPython.display import display\nh = display(0, display_id=True)\nwhile True: h.update('x' * 10**5)",
        {STOPPED},
    ),
    "clears": ("from IPython.display import clear_output\nwhile True: clear_output()", {STOPPED}),
    "one giant display": ("from IPython.display import HTML\nHTML('x' * (200 << 20))", {ENDED}),
    "one giant text": ("print('x' * 10**8)", {ENDED}),
    "one giant error": ("raise ValueError('x' * (40 << 20))", {FAILED, DIED}),
    "a giant image": ("from PIL import Image; Image.new('1', (20_000, 15_000))", {ENDED}),
    "comms": ("from comm import create_comm\nwhile True: create_comm(target_name='x', data='x' * 1000)", {STOPPED}),
    "a giant traceback": (
        "def f(n): return f(n - 1) if n else 1 / 0\nimport sys; sys.setrecursionlimit(10**5)\nf(10**4)",
        {FAILED, STOPPED},
    ),
    "a tree of errors": (
        "e = ValueError()\nfor _ in range(500): e = ExceptionGroup('g', [e, e])\nraise e",
        {FAILED, STOPPED},
    ),
    "an endless representation": ("class E:\n def _repr_html_(self):\n  while True: pass\nE()", {STOPPED}),
    "an endless destructor": ("class D:\n def __del__(self):\n  while True: pass\nD(); 1", {ENDED, STOPPED}),
    "exits that loop": ("import atexit\n@atexit.register\ndef f():\n while True: pass\nexit()", {FAILED}),
}


SELDOM = {
    *("backtracking", "clears", "memfd", "memory in children", "pollers", "processes that leave", "shared mappings"),
    *("shared memory", "shared memory segments", "the rest of disk", "timers and watches", "updates"),
    *("a giant image", "a tree of errors", "an endless destructor", "one giant error", "one giant text"),
}
"""What much the same as another does."""


@pytest.mark.parametrize("bomb", [pytest.param(name, marks=extra if name in SELDOM else ()) for name in sorted(BOMBS)])
def test_a_bomb_ends_and_harms_nobody_else(gateway: Gateway, session: Session, neighbour: Session, bomb: str) -> None:
    code, endings = BOMBS[bomb]
    if DIED in endings and bomb != "a core dump" and not LIMITS_MEMORY:
        pytest.skip("this user has no memory control group on this machine")
    session.upload("kept", b"kept")
    before, sandbox = gateway.memory, session.sandbox
    # What ends by itself is given the time to.
    body = {"code": code, "timeoutInSeconds": 2 if STOPPED in endings else 200}
    call = in_background(lambda: session.request("POST", "/executions", json=body))

    while call.is_running(0.2):
        assert neighbour.value("1 + 1") == 2
    response = call()

    assert len(sandbox_processes(sandbox)) <= MOST_PROCESSES
    assert response.status_code == 200, response.text
    answer = json.loads(response.text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert answer["result"]["cause"] in endings
    assert gateway.memory - before < 64 * MB
    assert session.value("1 + 1") == 2
    assert (session.sandbox, session.download("kept")) == (sandbox, b"kept")
    assert session.delete() == 204
    assert sandbox_processes(sandbox) == []
    assert neighbour.value("2 + 2") == 4


def test_a_full_workspace_is_an_error_that_says_so(session: Session) -> None:
    session.run("f = open('big', 'wb')\ntry:\n while True: f.write(b'x' * (1 << 20))\nexcept OSError: f.close()")

    refused = session.upload("more", b"x" * (4 * MB))

    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "WorkspaceFull")
    assert session.names() == ["big"]
    session.request("DELETE", "/files/big")
    assert session.upload("more", b"x" * (4 * MB)).ok


def test_two_uploads_that_fit_only_alone_do_not_both_succeed(session: Session) -> None:
    free = session.value("import os; v = os.statvfs('.'); v.f_bavail * v.f_frsize")
    session.run(f"f = open('filler', 'wb'); os.posix_fallocate(f.fileno(), 0, {free - 40 * MB}); f.close()")

    calls = [in_background(partial(session.upload, name, b"x" * (30 * MB))) for name in ("one", "two")]
    answers = [call() for call in calls]

    assert 507 in [answer.status_code for answer in answers]
    stored = [answer.json()["name"] for answer in answers if answer.ok]
    assert sorted(session.names()) == sorted(["filler", *stored])


PLANTED = {
    "a link to a device": "import os; os.symlink('/dev/zero', 'planted')",
    "a link to itself": "import os; os.symlink('planted', 'planted')",
    "a fifo": "import os; os.mkfifo('planted')",
    "a socket": "import socket; socket.socket(socket.AF_UNIX).bind('planted')",
    "a directory": "import os; os.mkdir('planted')",
}


@pytest.mark.parametrize("what", sorted(PLANTED))
def test_what_is_no_file_is_refused_at_once(session: Session, what: str) -> None:
    session.run(PLANTED[what])

    response = session.request("GET", "/files/planted/content", timeout=SECONDS)

    assert response.status_code in (400, 404)


def test_a_link_leads_only_to_what_the_code_can_read_itself(gateway: Gateway, session: Session) -> None:
    (gateway.state / "canary").write_text(canary)
    session.run(
        "import os; os.symlink('/etc/passwd', 'users'); os.symlink('/proc/1/root/etc/shadow', 'secrets')\n"
        f"os.symlink({str(gateway.state / 'canary')!r}, 'host')"
    )

    assert (
        session.download("users").decode()
        == session.run("print(open('/etc/passwd').read(), end='')")["result"]["stdout"]
    )
    assert session.request("GET", "/files/secrets/content").status_code in (400, 404)
    assert session.request("GET", "/files/host/content").status_code in (400, 404)


def test_a_sparse_file_is_listed_by_its_size_and_a_range_of_it_is_served(session: Session) -> None:
    session.run("import os; f = open('sparse', 'wb'); f.truncate(1 << 40); f.close()")

    part = session.request("GET", "/files/sparse/content", headers={"Range": "bytes=0-9"})

    assert (part.status_code, part.content) == (206, bytes(10))
    assert session.request("GET", "/files/sparse").json()["sizeInBytes"] == 1 << 40


def test_names_that_are_odd_do_not_break_the_list(session: Session) -> None:
    session.run("import os; [open(n, 'w').close() for n in (b'\\xff', 'new\\nline', 'q\"uote', 'x' * 255, 'ü')]")

    names = session.names()

    assert {'q"uote', "x" * 255, "ü"} <= set(names)
    assert all("\n" not in name for name in names)


def test_very_many_files_are_listed_in_part_and_the_session_goes_on(session: Session) -> None:
    made = session.value(
        "import os\nos.mkdir('many'); made = 0\n"
        "try:\n"
        "    for made in range(200_000): open(f'many/{made}', 'w').close()\n"
        "except OSError: pass  # where files are counted, too\n"
        "made",
        timeoutInSeconds=200,
    )

    answer = session.request("GET", "/files", params={"path": "many"})

    assert answer.ok
    assert made > 50_000
    assert 0 < len(answer.json()["value"]) <= made + 1
    assert session.value("1") == 1


def test_an_upload_replaces_a_link_and_never_follows_it(session: Session) -> None:
    session.run("import os; open('/tmp/out', 'w').write('old'); os.symlink('/tmp/out', 'link'); os.mkdir('folder')")
    session.run("open('target', 'w').write('old'); os.link('target', 'hard'); os.chmod('target', 0o400)")

    assert [session.upload(name, b"new").status_code for name in ("link", "hard", "folder")] == [200, 200, 400]

    assert session.value("os.path.islink('link'), open('/tmp/out').read(), open('target').read()") == (
        "(False, 'old', 'old')"
    )


def test_uploads_of_one_name_at_once_leave_one_of_them_whole(session: Session) -> None:
    session.value("1")
    contents = [bytes([65 + number]) * MB for number in range(8)]

    calls = [in_background(partial(session.upload, "same", data)) for data in contents]

    assert {call().status_code for call in calls} == {200}
    assert session.download("same") in contents
    assert session.names() == ["same"]


def test_a_file_that_shrinks_while_it_is_read_breaks_the_download_and_nothing_else(session: Session) -> None:
    session.value("x = 7; open('file', 'wb').write(bytes(64 << 20))")
    sandbox = session.sandbox

    response = session.request("GET", "/files/file/content", stream=True)
    chunks = response.iter_content(1 << 16)
    next(chunks)
    session.run("open('file', 'wb').close()")

    with pytest.raises(requests.RequestException):
        list(chunks)
    assert (session.value("x"), session.sandbox) == (7, sandbox)


def test_a_file_that_is_deleted_while_it_is_read_comes_down_whole(session: Session) -> None:
    session.value("open('file', 'wb').write(bytes(64 << 20))")

    response = session.request("GET", "/files/file/content", stream=True)
    chunks = response.iter_content(1 << 16)
    size = len(next(chunks))
    session.run("import os; os.remove('file')")

    assert size + sum(map(len, chunks)) == 64 << 20


def test_a_file_that_grows_while_it_is_read_comes_down_as_long_as_was_said(session: Session) -> None:
    session.value("import os; open('file', 'wb').write(b'x' * 1000)")
    session.submit("f = open('file', 'ab', 0)\nwhile not os.path.exists('stop'): f.write(b'y')", "grows")
    until(lambda: session.poll("grows")["status"] == "Running")

    for _ in range(20):
        response = session.request("GET", "/files/file/content")
        assert len(response.content) == int(response.headers["Content-Length"])
    session.upload("stop", b"")


def test_a_directory_that_is_swapped_for_links_leaks_nothing_of_the_host(session: Session) -> None:
    session.run("import os; os.mkdir('real'); open('real/f', 'w').write('safe'); os.mkdir('evil')")
    session.run("os.symlink('/etc/passwd', 'evil/f')")
    session.submit(
        "import ctypes; c = ctypes.CDLL(None)\n"
        "while not os.path.exists('stop'): c.renameat2(-100, b'real', -100, b'evil', 2)",
        "swaps",
    )

    seen = {session.request("GET", "/files/real/f/content").content for _ in range(300)}
    session.upload("stop", b"")

    passwd = session.run("print(open('/etc/passwd').read(), end='')")["result"]["stdout"]
    assert seen <= {b"safe", passwd.encode()}  # the sandbox's own


def test_an_archive_that_is_uploaded_stays_one(session: Session) -> None:
    data = b"PK\x03\x04" + b"\0" * 100
    session.upload("bomb.zip", data)

    assert session.download("bomb.zip") == data


def test_pages_and_scripts_are_downloaded_never_shown(session: Session) -> None:
    session.upload("page.html", b"<script>alert(1)</script>")

    for path in ("/files/page.html/content", "/files/content/page.html"):
        headers = session.request("GET", path).headers
        assert headers["Content-Disposition"].startswith("attachment")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in headers["Content-Security-Policy"]


def test_strange_outputs_are_valid_json(session: Session) -> None:
    code = """
import sys
from IPython.display import display
sys.stdout.buffer.write(bytes(range(256)) * 10)
print('\\ud800', '\\x00', '\\x1b[31m', '\\u2028')
display({'text/plain\\r\\nX-Evil: 1': 'x', 'text/html': 5, 'image/png': '<script>', 'text/plain': 'ok'}, raw=True)
class Evil:
    def _repr_html_(self): raise ValueError
    def _repr_mimebundle_(self, **_): return {'text/plain': float('nan'), 'application/json': {'a': float('inf')}}
display(Evil())
import pandas as pd
pd.DataFrame({'a': [float('inf'), float('nan'), None]})
"""
    response = session.request("POST", "/executions", json={"code": code})

    answer = json.loads(response.content.decode(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert "evil" not in str(response.headers).lower()
    assert answer["result"]["outputs"]


STRANGE = [
    ("print('\\udc80\\x00\\x07')", "?\x00\x07\n"),
    ("import sys\nfor _ in range(10**5): sys.stdout.write('x')", "x" * 10**5),
    ("x = []\nfor _ in range(50_000): x = [x]\nx", "RecursionError"),
    ("class E(Exception):\n def __str__(self): raise RuntimeError\nraise E", "E"),
    ("class E:\n def __repr__(self): raise RuntimeError('no')\nE()", "RuntimeError: no"),
    ("compile('a\\0b', 'x', 'exec')", "null bytes"),
    ("a = '\0'", "null bytes"),
    ("10**5000", "4300 digits"),
]


@pytest.mark.parametrize(("code", "shown"), STRANGE)
def test_strange_values_and_errors_are_shown_and_hurt_nothing(same_session: Session, code: str, shown: str) -> None:
    same_session.run("x = 1")

    result = same_session.run(code, outputStreamsMaxLength=10**6)["result"]

    assert shown in result["stdout"] + result["stderr"]
    assert same_session.run("1")["result"]["stateLost"]["before"] is None


def test_nothing_of_the_gateway_can_be_found(gateway: Gateway, session: Session) -> None:
    (gateway.state / "canary").write_text(canary)
    session.value("1")
    gateway.wait_ready()
    files = [*gateway.state.glob("*/sandboxes/*/sandbox.json"), *gateway.state.glob("*/sandboxes/*.json")]
    secrets = [json.loads(text)["secret"] for text in map(_text, files) if text]
    assert len(secrets) > 1  # of agents: the session's own, and others'
    code = """
import glob, os
wanted = %r
hits = []
for path in glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline'):
    try: text = open(path, 'rb').read()
    except OSError: continue
    hits += [(path, word) for word in wanted if word.encode() in text]
for folder, _, names in os.walk('/'):
    if folder.startswith(('/proc', '/sys')): continue
    for name in names:
        path = os.path.join(folder, name)
        try:
            if os.path.getsize(path) > 1 << 20 or not os.path.isfile(path): continue
            text = open(path, 'rb').read()
        except OSError: continue
        hits += [(path, word) for word in wanted if word.encode() in text]
hits
""" % [canary, TOKEN, *secrets]

    assert session.value(code, timeoutInSeconds=200) == "[]"


def _text(path: Path) -> str:
    """Of a sandbox's record, which may go with its sandbox."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text()
    return ""


def test_the_secret_of_the_agent_cannot_be_read_from_its_memory(session: Session) -> None:
    code = (
        "import os\ntry: open(f'/proc/{os.getppid()}/mem', 'rb'); r = 'readable'\nexcept OSError as e: r = 'refused'\nr"
    )

    assert session.value(code) == "refused"


def test_nobody_is_reached_over_the_network(gateway: Gateway, session: Session) -> None:
    code = f"""
import socket
reached = []
for host, port in (('127.0.0.1', {gateway.port}), ('10.0.0.1', 80), ('169.254.169.254', 80), ('1.1.1.1', 53)):
    try: socket.create_connection((host, port), timeout=2); reached.append(host)
    except OSError: pass
try: socket.getaddrinfo('example.org', 80); reached.append('dns')
except OSError: pass
reached
"""

    assert session.value(code) == "[]"


def test_the_log_holds_no_token_no_identifier_and_no_second_line(gateway: Gateway, session: Session) -> None:
    marker = f"identifier-{uuid.uuid4().hex}"
    other = gateway.session(f"{marker}%$")
    other.upload('x";\r\nX: y', b"1")
    other.run("1")
    before = gateway.log.read_text().count('"DELETE"')
    other.delete()

    until(lambda: gateway.log.read_text().count('"DELETE"') > before)
    log = gateway.log.read_text()

    assert TOKEN not in log
    assert marker not in log
    assert all(line.startswith("{") for line in log.splitlines() if re.search(r'"logger"', line))
