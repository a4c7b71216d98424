"""Hostile code in a session: it fills, floods, forges and looks around. The gateway and the neighbour do not notice."""

from __future__ import annotations

import json
import re
import uuid

import pytest

from tests.e2e.gateways import TOKEN, Gateway, Session, canary, in_background, until

MB = 1 << 20


@pytest.fixture
def neighbour(gateway: Gateway) -> Session:
    session = gateway.session("the-neighbour")
    session.value("1")
    return session


BOMBS = {
    "memory": "b = [bytearray(b'x' * 10**8) for _ in range(100)]",
    "memory in children": "import os\nfor _ in range(30):\n if os.fork() == 0: b = b'x' * 10**8; os._exit(len(b) % 2)",
    "memfd": "import os\nf = os.memfd_create('x')\nfor _ in range(4096): os.write(f, b'x' * (1 << 20))",
    "files of a tmpfs": "import os\nfor d in ('/tmp/x', 'x'):\n os.makedirs(d)\n"
    " for n in range(10**5): open(f'{d}/{n}', 'w').close()",
    "disk": "f = open('big', 'wb')\nwhile True: f.write(b'x' * (1 << 20))",
    "shared memory": "f = open('/dev/shm/big', 'wb')\nwhile True: f.write(b'x' * (1 << 20))",
    "processes": "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
    "threads": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(100,)).start()",
    "descriptors": "import os\nx = []\nwhile True: x.append(os.pipe())",
    "cpu": "import multiprocessing as m\np = [m.Process(target=lambda: [0 for _ in iter(int, 1)]) for _ in range(8)]\n"
    "[x.start() for x in p]\nwhile True: pass",
    "the interpreter's lock": "10**10**8",
    "backtracking": "import re; re.match(r'(a+)+$', 'a' * 60 + 'b')",
    "tiny messages": "import sys\nwhile True: sys.stdout.write('x'); sys.stdout.flush()",
    "displays": "from IPython.display import display\nwhile True: display('x' * 1000)",
    "updates": "from IPython.display import display\nh = display(0, display_id=True)\n"
    "while True: h.update('x' * 10**5)",
    "clears": "from IPython.display import clear_output\nwhile True: clear_output()",
    "one giant display": "from IPython.display import HTML\nHTML('x' * (200 << 20))",
    "comms": "from ipykernel.comm import Comm\nwhile True: Comm(target_name='x', data='x' * 1000)",
    "a giant traceback": "def f(n): return f(n - 1) if n else 1 / 0\n"
    "import sys; sys.setrecursionlimit(10**5)\nf(10**4)",
    "exits that loop": "import atexit\n@atexit.register\ndef f():\n while True: pass\nexit()",
}


@pytest.mark.parametrize("bomb", sorted(BOMBS))
def test_a_bomb_ends_and_harms_nobody_else(gateway: Gateway, session: Session, neighbour: Session, bomb: str) -> None:
    session.value("1")
    before = gateway.memory
    join = in_background(
        lambda: session.request("POST", "/executions", json={"code": BOMBS[bomb], "timeoutInSeconds": 5})
    )

    assert neighbour.value("1 + 1") == 2
    response = join()

    assert response.status_code in (200, 502)
    json.loads(response.text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert gateway.memory - before < 64 * MB
    session.delete()
    assert neighbour.value("2 + 2") == 4


def test_a_full_workspace_is_an_error_that_says_so(session: Session) -> None:
    session.run("f = open('big', 'wb')\ntry:\n while True: f.write(b'x' * (1 << 20))\nexcept OSError: f.close()")

    refused = session.upload("more", b"x" * (4 * MB))

    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "WorkspaceFull")
    assert session.names() == ["big"]
    session.request("DELETE", "/files/big")
    assert session.upload("more", b"x" * (4 * MB)).ok


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

    response = session.request("GET", "/files/planted/content", timeout=10)

    assert response.status_code in (400, 404)


def test_a_link_leads_only_to_what_the_code_can_read_itself(session: Session) -> None:
    session.run("import os; os.symlink('/etc/passwd', 'users'); os.symlink('/proc/1/root/etc/shadow', 'secrets')")

    assert b"root:" not in session.download("users").replace(b"root:x:0", b"")
    assert session.request("GET", "/files/secrets/content").status_code in (400, 404)


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
    session.run("import os; os.mkdir('many'); [open(f'many/{n}', 'w').close() for n in range(60_000)]")

    answer = session.request("GET", "/files", params={"path": "many"})

    assert answer.ok
    assert 0 < len(answer.json()["value"]) <= 60_000
    assert session.value("1") == 1


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


def test_nothing_of_the_gateway_can_be_found(session: Session) -> None:
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
""" % [canary, TOKEN]

    assert session.value(code, timeoutInSeconds=60) == "[]"


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
    other.delete()

    until(lambda: gateway.log.read_text().count('"DELETE"') > 0)
    log = gateway.log.read_text()

    assert TOKEN not in log
    assert marker not in log
    assert all(line.startswith("{") for line in log.splitlines() if re.search(r'"logger"', line))
