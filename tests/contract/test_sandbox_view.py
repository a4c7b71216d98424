"""What code in a sandbox sees of the machine and of its neighbours: as good as nothing."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kernelpool.backends import probe
from kernelpool.backends.base import Backend
from tests.contract.sandboxes import SECRET, Kit, ask, spec

CANARY = "c4n4ry-of-the-gateway"


async def test_an_attacker_sees_what_the_golden_table_says_and_nothing_more(kit: Kit, backend: Backend) -> None:
    before = kit.traces()

    findings = await backend.check(spec())

    broken = [finding for finding in findings if finding.essential and not finding.holds]
    assert broken == []
    assert len(findings) > 20
    assert kit.traces() == before


async def test_the_probe_refuses_to_run_where_it_could_do_harm() -> None:
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-I", probe.__file__], capture_output=True, text=True, timeout=60
    )

    if os.geteuid() == 0:
        assert "would get them here" in done.stderr
    assert done.returncode != 0


async def test_nothing_of_the_gateway_is_inherited(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", CANARY)
    with tempfile.TemporaryFile() as file:
        os.set_inheritable(file.fileno(), True)
        sandbox = await backend.create(spec())

    seen = await ask(
        sandbox,
        "import os, glob, json\n"
        "text = b''\n"
        "for path in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline'):\n"
        "    try: text += open(path, 'rb').read()\n"
        "    except OSError: pass\n"
        "print(json.dumps([text.decode(errors='replace'), os.listdir(f'/proc/{os.getppid()}/fd')]))\n",
    )

    text, descriptors = json.loads(seen)
    assert CANARY not in text
    assert SECRET not in text
    assert str(Path.cwd()) not in text
    # stdio, the listener, the connection that asked, and the pipe to the asker; twice the last two, while a look at
    # whether somebody listens is not over.
    assert len(descriptors) <= 8


async def test_no_file_of_the_host_can_be_found(backend: Backend) -> None:
    folders = [Path("/var/tmp"), Path("/tmp"), Path("/dev/shm"), Path.home(), Path.cwd()]
    files = [Path(tempfile.mkstemp(prefix=CANARY, dir=folder)[1]) for folder in folders if os.access(folder, os.W_OK)]
    try:
        sandbox = await backend.create(spec())

        found = await ask(
            sandbox,
            "import os\n"
            "for folder, folders, files in os.walk('/'):\n"
            "    if folder == '/': folders.remove('proc')\n"
            f"    for name in files + folders:\n        if {CANARY!r} in name: print(folder, name)\n"
            "for pid in os.listdir('/proc'):\n"
            "    if pid.isdigit():\n"
            f"        for path in {[str(file) for file in files]}:\n"
            "            if os.path.exists(f'/proc/{pid}/root{path}'): print(pid, path)\n",
        )

        assert files
        assert found == ""
    finally:
        for file in files:
            file.unlink()


async def test_sandboxes_do_not_see_each_other(kit: Kit, backend: Backend) -> None:
    one, other = await asyncio.gather(backend.create(spec()), backend.create(spec()))
    mark = (
        "import os, socket, sys, time\n"
        "for place in ('/tmp', '/dev/shm', '/mnt/data'): open(f'{place}/marker-of-one', 'w').write('x')\n"
        "listener = socket.socket(socket.AF_UNIX); listener.bind('\\0marker-of-one'); listener.listen()\n"
        "web = socket.socket(); web.bind(('127.0.0.1', 18999)); web.listen()\n"
        "if os.fork() == 0:\n"
        "    for fd in range(3): os.close(fd)\n"
        "    time.sleep(1000)\n"
    )
    assert await ask(one, mark) == ""

    seen = await ask(
        other,
        "import glob, os, socket, time\n"
        "end = time.monotonic() + 40\n"
        "print([path for place in ('/tmp', '/dev/shm', '/mnt/data') for path in glob.glob(f'{place}/*')])\n"
        "print('marker' in open('/proc/net/unix').read())\n"
        "def attempt(family, address):\n"
        "    try: socket.socket(family).connect(address)\n"
        "    except OSError as error: return type(error).__name__\n"
        "    return 'connected'\n"
        "print(attempt(socket.AF_UNIX, '\\0marker-of-one'), attempt(socket.AF_INET, ('127.0.0.1', 18999)))\n"
        "def count(): return len([name for name in os.listdir('/proc') if name.isdigit()])\n"
        # What starts a relay may be there for a moment.
        f"while count() != {3 + kit.relays} and time.monotonic() < end: time.sleep(0.05)\n"
        "print(count())\n",
    )

    assert seen.splitlines() == ["[]", "False", "ConnectionRefusedError ConnectionRefusedError", str(3 + kit.relays)]
    own = "import socket; socket.socket(socket.AF_UNIX).connect('\\0marker-of-one'); print('own')"
    assert await ask(one, own) == "own"


async def test_signals_stay_in_the_sandbox(backend: Backend) -> None:
    one, other = await asyncio.gather(backend.create(spec()), backend.create(spec()))
    code = (
        "import os, signal\n"
        "reached = []\n"
        "for pid in range(2, 32768):\n"
        "    try: os.kill(pid, 0); reached.append(pid)\n"
        "    except OSError: pass\n"
        "print(len(reached) <= 6)\n"
    )

    assert await ask(one, code) == "True"
    assert await ask(other, "print('alive')") == "alive"


async def test_the_executable_of_process_1_cannot_be_changed(backend: Backend) -> None:
    sandbox = await backend.create(spec())

    seen = await ask(
        sandbox,
        "import os\n"
        "for attempt in (lambda: os.open('/proc/1/exe', os.O_WRONLY), lambda: os.chmod('/proc/1/exe', 0o777),\n"
        "                lambda: os.open('/proc/self/exe', os.O_WRONLY), lambda: os.utime('/proc/1/exe')):\n"
        "    try: attempt(); print('done')\n"
        "    except OSError: print('refused')\n",
    )

    assert seen.split() == ["refused"] * 4


async def test_a_secret_in_use_is_not_to_be_found_in_proc(backend: Backend) -> None:
    sandbox = await backend.create(spec())

    seen = await ask(
        sandbox,
        "import glob, os\n"
        "for path in glob.glob('/proc/[0-9]*/fd/*'):\n"
        "    try:\n"
        "        if 'memfd' in os.readlink(path):\n"
        f"            if {SECRET.encode()!r} in open(path, 'rb').read(): print(path)\n"
        "    except OSError: pass\n",
    )

    assert seen == ""
