"""The runtime tree: complete for any uid, silent about the host, whole or not there, and built once."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import kernelpool
from kernelpool.backends.bwrap_binary import find_bwrap
from kernelpool.backends.tree.build import Tree, build_tree, hold, prune
from kernelpool.backends.tree.hostfiles import settle_modes
from kernelpool.backends.tree.packages import pip_environment
from kernelpool.errors import PrepareFailed
from kernelpool.runtimes import Runtime

SANDBOX_UID = 70001


def runtime(folder: Path, *requirements: str) -> Runtime:
    folder.mkdir(exist_ok=True)
    (folder / "launch.py").write_text("print('launched')\n")
    return Runtime("tiny", "python", "Tiny", folder, ("python",), requirements=requirements)


def build(state: Path, *requirements: str) -> Tree:
    return asyncio.run(build_tree(runtime(state / "tiny", *requirements), state, lambda text: None))


def state_directory() -> Iterator[Path]:
    """Not pytest's own: the uid of a sandbox could not come through it."""
    state = Path(tempfile.mkdtemp(prefix="kernelpool-test-", dir="/var/tmp"))
    state.chmod(0o755)
    yield state
    shutil.rmtree(state)


@pytest.fixture(scope="module")
def tree() -> Iterator[Tree]:
    for state in state_directory():
        before = os.umask(0o077)  # the gateway's business; the tree must be readable all the same
        try:
            built = build(state, "tabulate")
        finally:
            os.umask(before)
        yield built


@pytest.fixture
def state() -> Iterator[Path]:
    yield from state_directory()


def run(tree: Tree, *argv: str, **environment: str) -> str:
    """In a sandbox with nothing but the tree, as an unprivileged uid whatever the tests run as."""
    bwrap = find_bwrap(tree.root.parents[2])
    options = ["--unshare-all", "--uid", "65532", "--gid", "65532", "--proc", "/proc", "--dev", "/dev"]
    options += ["--tmpfs", "/tmp", "--tmpfs", "/mnt/data"]
    binds = ["--ro-bind", str(tree.root), "/", "--ro-bind", str(tree.program), "/opt/kernelpool"]
    settings = [word for name, value in environment.items() for word in ("--setenv", name, value)]
    identity = {"user": SANDBOX_UID, "group": SANDBOX_UID, "extra_groups": []} if os.getuid() == 0 else {}
    answer = subprocess.run(
        [bwrap.path, *bwrap.arguments, *binds, *options, *settings, "--chdir", "/", "--", *argv],
        **identity,  # type: ignore[call-overload]
        env={},
        cwd=bwrap.cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 0, answer.stderr
    return str(answer.stdout)


def python(tree: Tree, code: str, **environment: str) -> str:
    return run(tree, "/opt/venv/bin/python", "-I", "-c", code, **environment)


def left_behind(state: Path) -> list[str]:
    return sorted(path.name for path in (state / "runtimes").iterdir() if path.name != ".lock")


def test_python_runs_for_any_uid_with_an_empty_environment(tree: Tree) -> None:
    answer = python(
        tree,
        "import ssl, sqlite3, ctypes, lzma, hashlib, multiprocessing, zmq, tornado.web, tabulate, sys, asyncio\n"
        "print(sys.prefix, sys.base_prefix, sys.version_info[:3], bool(ssl.create_default_context().get_ca_certs()))",
    )

    assert answer.split(" ", 2)[:2] == ["/opt/venv", "/usr/local"]
    assert f"{sys.version_info[:3]} True" in answer


def test_the_shell_and_the_tools_work(tree: Tree) -> None:
    script = "id -un && echo b a | tr ' ' '\\n' | sort | awk '{print $1}' | sed s/a/A/ && find /etc -name passwd"
    script += " && cd /tmp && echo x >f && tar czf t f && tar tzf t && LC_ALL=C.UTF-8 locale charmap && date +%Z"

    lines = run(tree, "/bin/bash", "-ec", script, PATH="/opt/venv/bin:/usr/bin:/bin").split()

    assert lines == ["sandbox", "A", "b", "/etc/passwd", "f", "UTF-8", "UTC"]


def test_the_scripts_of_packages_run(tree: Tree) -> None:
    assert "usage: tabulate" in run(tree, "/opt/venv/bin/tabulate", "--help").lower()


def test_the_agents_program_is_importable_and_carries_nothing_of_the_gateway(tree: Tree) -> None:
    code = (
        "import sys; sys.path.insert(0, '/opt/kernelpool'); import kernelpool.models, kernelpool.agent, importlib.util;"
    )
    code += "print(kernelpool.models.__cached__, importlib.util.find_spec('kernelpool.gateway'))"

    bytecode, gateway = python(tree, code).split()

    assert bytecode.startswith("/opt/kernelpool/kernelpool/__pycache__/models.")
    assert gateway == "None"
    assert (tree.program / "kernels/tiny/launch.py").is_file()


def test_no_path_of_the_host_is_in_a_text_or_bytecode_file(tree: Tree) -> None:
    paths = {sys.prefix, sys.base_prefix, str(Path.home()), str(tree.root.parents[2]), str(Path(__file__).parents[2])}
    needles = [f"{path}/".encode() for path in paths - {"/", "/usr", "/usr/local"}]
    files = [path for top in (tree.root, tree.program) for path in top.rglob("*") if path.is_file()]
    own = [path for path in files if not path.is_symlink()]

    telling = [path for path in own if not is_elf(path) and any(needle in path.read_bytes() for needle in needles)]

    assert len(own) > 1000
    assert telling == []


def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def test_tracebacks_name_paths_of_the_sandbox_and_bytecode_is_never_checked(tree: Tree) -> None:
    code = "import asyncio, tornado.web; print(asyncio.run.__code__.co_filename, tornado.web.__cached__);"
    code += "print(tornado.web.HTTPError.__init__.__code__.co_filename);"
    code += "print(int.from_bytes(open(tornado.web.__cached__, 'rb').read(8)[4:], 'little'))"

    stdlib, bytecode, package, flags = python(tree, code).split()

    assert stdlib.startswith("/usr/local/lib")
    assert stdlib.endswith("/asyncio/runners.py")
    assert package.startswith("/opt/venv/lib")
    assert bytecode.startswith(package.rpartition("/")[0])
    assert flags == "1"  # hash-based, unchecked


def test_links_stay_inside_and_lead_somewhere(tree: Tree) -> None:
    links = [path for path in tree.root.rglob("*") if path.is_symlink()]

    dangling = [path for path in links if not os.path.lexists(target_in(tree.root, path))]

    assert links
    assert dangling == []


def target_in(root: Path, link: Path) -> Path:
    target = os.readlink(link)
    return root / target.lstrip("/") if target.startswith("/") else link.parent / target


def test_every_uid_may_read_all_and_nobody_else_may_write_or_gain_rights(tree: Tree) -> None:
    modes = {path: path.lstat().st_mode for top in (tree.root, tree.program) for path in (top, *top.rglob("*"))}
    plain = {path: stat.S_IMODE(mode) for path, mode in modes.items() if not stat.S_ISLNK(mode)}

    assert [path for path, mode in plain.items() if mode not in (0o755, 0o644)] == []


def test_rights_that_a_file_had_on_the_host_are_lost(tmp_path: Path) -> None:
    for name, mode in {"setuid": 0o4755, "private": 0o600, "shared": 0o666}.items():
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)

    settle_modes(tmp_path)

    assert {path.name: path.stat().st_mode & 0o7777 for path in tmp_path.iterdir()} == {
        "setuid": 0o755,
        "private": 0o644,
        "shared": 0o644,
    }


def test_files_are_copies_of_their_own(tree: Tree) -> None:
    shell, original = tree.root / "usr/bin/bash", Path(shutil.which("bash", path="/usr/bin:/bin") or "")

    assert shell.stat().st_ino != original.stat().st_ino
    assert {path.stat().st_nlink for path in (tree.root / "usr/bin").iterdir() if not path.is_symlink()} == {1}


def test_metadata_names_the_packages_and_survives_damage(tree: Tree) -> None:
    state = tree.root.parents[2]
    packages = {package.name: package.version for package in tree.metadata.packages}
    file = tree.root.parent / "metadata.json"
    file.write_text('{"language": 5}')

    again = build(state, "tabulate")

    assert {"tabulate", "tornado", "pyzmq"} <= packages.keys()
    assert all(packages.values())
    assert again.metadata.packages == tree.metadata.packages
    assert build(state, "tabulate").metadata == again.metadata


async def test_a_second_build_touches_and_says_nothing(tree: Tree) -> None:
    state, said = tree.root.parents[2], list[str]()
    before = {path: path.stat().st_mtime_ns for path in (tree.root, tree.program, state / "runtimes")}

    again = await build_tree(runtime(state / "tiny", "tabulate"), state, said.append)

    assert (again.root, again.program) == (tree.root, tree.program)
    assert said == []
    assert before == {path: path.stat().st_mtime_ns for path in before}


async def test_a_change_of_the_agent_makes_a_new_program_and_keeps_the_root(tree: Tree, tmp_path: Path) -> None:
    state, said = tree.root.parents[2], list[str]()
    package = tmp_path / "kernelpool"
    shutil.copytree(Path(kernelpool.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "agent/__init__.py").write_text("CHANGED = True\n")

    changed = await build_tree(runtime(state / "tiny", "tabulate"), state, said.append, package=package)

    assert changed.root == tree.root
    assert changed.program != tree.program
    assert "CHANGED" in (changed.program / "kernelpool/agent/__init__.py").read_text()
    assert said == []


async def test_a_cancelled_build_leaves_neither_files_nor_processes(state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # an index that keeps pip waiting
        index = f"--index-url=http://127.0.0.1:{silent.getsockname()[1]}/simple"
        building = asyncio.create_task(build_tree(runtime(state / "tiny", index), state, lambda text: None))
        async with asyncio.timeout(120):
            while not processes_of(state):
                await asyncio.sleep(0.01)
        building.cancel()
        async with asyncio.timeout(60):
            with pytest.raises(asyncio.CancelledError):
                await building

    assert left_behind(state) == []
    assert processes_of(state) == []


def processes_of(state: Path) -> list[bytes]:
    """Their command lines, where these name the directory: pip's do."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(file.read_bytes())
    return [line for line in found if str(state).encode() in line and b"pip" in line]


async def test_a_failed_install_says_what_pip_said_and_leaves_nothing(state: Path) -> None:
    with pytest.raises(PrepareFailed, match="pip install failed") as caught:
        await build_tree(runtime(state / "tiny", "./no-such-file.whl"), state, lambda text: None)

    assert "no-such-file.whl" in "".join(caught.value.__notes__)  # for the operator
    assert "no-such-file.whl" not in caught.value.message  # for every caller
    assert left_behind(state) == []


async def test_too_little_space_is_said_before_anything_is_copied(state: Path) -> None:
    with pytest.raises(PrepareFailed, match=r"needs about \d+ MiB"):
        await build_tree(runtime(state / "tiny", *["tabulate"] * 2_000_000), state, lambda text: None)

    assert left_behind(state) == []


async def test_what_a_killed_builder_left_is_removed_by_the_next(tree: Tree) -> None:
    state = tree.root.parents[2]
    half = state / "runtimes/.part-killed"
    (half / "root").mkdir(parents=True)
    shutil.rmtree(tree.program)

    await build_tree(runtime(state / "tiny", "tabulate"), state, lambda text: None)

    assert not half.exists()
    assert tree.program.is_dir()


async def test_two_gateways_build_one_after_the_other(tree: Tree) -> None:
    state, said, waiting = tree.root.parents[2], list[str](), asyncio.Event()

    def say(text: str) -> None:
        said.append(text)
        waiting.set()

    shutil.rmtree(tree.program)

    with (state / "runtimes/.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        building = asyncio.create_task(build_tree(runtime(state / "tiny", "tabulate"), state, say))
        await asyncio.wait_for(waiting.wait(), 60)
        built_meanwhile = tree.program.exists()

    assert said == ["waiting for another gateway that is preparing runtimes"]
    assert not built_meanwhile
    assert (await building).program == tree.program


async def test_pruning_keeps_what_is_named(tree: Tree) -> None:
    state = tree.root.parents[2]
    old = [state / "runtimes/tiny-0123456789ab", state / "runtimes/agent-0123456789ab"]
    for folder in old:
        (folder / "root").mkdir(parents=True)

    await prune(state, {tree.root, tree.program, old[0] / "root"})

    assert old[0].exists()
    assert not old[1].exists()
    assert tree.root.is_dir()
    assert tree.program.is_dir()


async def test_pruning_leaves_what_another_gateway_holds(tree: Tree) -> None:
    state = tree.root.parents[2]
    old = state / "runtimes/tiny-ba9876543210"
    (old / "root").mkdir(parents=True)
    held = await asyncio.to_thread(hold, Tree(old / "root", tree.program, tree.metadata))

    await prune(state, {tree.root, tree.program})
    assert old.exists()

    for descriptor in held:
        os.close(descriptor)
    await prune(state, {tree.root, tree.program})
    assert not old.exists()


async def test_a_tree_that_was_pruned_meanwhile_cannot_be_held(tree: Tree) -> None:
    gone = Tree(tree.root.parents[1] / "tiny-gone" / "root", tree.program, tree.metadata)

    with pytest.raises(FileNotFoundError):
        await asyncio.to_thread(hold, gone)


def test_pip_sees_the_users_settings_but_no_python_of_theirs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PIP_INDEX_URL", "PIP_TARGET", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "somewhere")

    seen = pip_environment(tmp_path)

    assert {"PIP_INDEX_URL", "HTTPS_PROXY"} <= seen.keys()
    assert seen["PIP_CONFIG_FILE"] == f"{sys.prefix}/pip.conf"
    assert {"PIP_TARGET", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}.isdisjoint(seen)


@pytest.mark.slow
def test_matplotlib_finds_its_list_of_fonts_in_a_fresh_directory(state: Path) -> None:
    tree = build(state, "matplotlib")
    code = "import logging; logging.basicConfig(level=logging.INFO, filename='/tmp/log', format='%(message)s')\n"
    code += "import matplotlib.font_manager as m, os; print(len(m.fontManager.ttflist) > 20, open('/tmp/log').read())\n"
    code += (
        "print(*(os.readlink('/tmp/mpl/' + name) for name in os.listdir('/tmp/mpl')), os.path.exists(m.findfont('')))"
    )

    answer = python(tree, code, MPLCONFIGDIR="/tmp/mpl").split()

    assert answer[0] == "True"
    assert [str(Path(word).parent) for word in answer[1:-1]] == ["/opt/matplotlib"]  # and no word of a list made anew
    assert answer[-1] == "True"
