"""API keys: on disk only hashes; made, revoked and expired under a running gateway; one broken file is one key."""

from __future__ import annotations

import ast
import asyncio
import fcntl
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from kernelpool.auth import keyring, keys
from kernelpool.auth.keyring import KeyRing
from kernelpool.auth.keys import KeyStore
from kernelpool.auth.principal import Principal, Role
from kernelpool.cli import main
from kernelpool.errors import Conflict, InvalidRequest, InvalidToken, NotFound, StartFailed

AUTH = Path(keyring.__file__).parent


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path)


def works(ring: KeyRing, text: str) -> bool:
    try:
        ring.principal(text)
    except InvalidToken:
        return False
    return True


async def until(condition: Callable[[], Any]) -> None:
    """Many times as long as a gateway may take to see a change."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


aside = asyncio.to_thread
"""As another process would do it; commands may block."""


# --- on disk


def test_only_the_hash_of_a_key_is_kept(store: KeyStore) -> None:
    record, text = store.create("ci")

    [file] = store.folder.iterdir()
    assert text.startswith(f"kp_{record.id}_")
    assert text.removeprefix(f"kp_{record.id}_") not in file.read_text() + repr(record)
    assert record.digest not in repr(record)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700


def test_what_was_made_is_found(store: KeyStore) -> None:
    made, _ = store.create("ci", tenant="acme", roles=frozenset({Role.ADMIN}), pools=frozenset({"a"}), seconds=60)

    assert KeyStore(store.folder.parent).load().records == {made.id: made}
    assert made.expires_at == made.created_at + 60


def test_a_name_is_taken_until_it_is_revoked(store: KeyStore) -> None:
    store.create("ci")
    with pytest.raises(Conflict, match="'ci'"):
        store.create("ci")

    store.revoke("ci")
    second, _ = store.create("ci")

    assert store.revoke(second.id) == second
    with pytest.raises(NotFound, match="'ci'"):
        store.revoke("ci")


def test_one_command_at_a_time_changes_keys(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or two that race for a name could both have it."""
    monkeypatch.setattr(keys, "_LOCK_SECONDS", 0.1)
    store.create("first")
    folder = os.open(store.folder, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)

    with pytest.raises(StartFailed, match="another `kernelpool keys`"):
        store.create("ci")
    with pytest.raises(StartFailed, match="another `kernelpool keys`"):
        store.revoke("first")
    os.close(folder)

    assert store.revoke("first").name == "first"


@pytest.mark.parametrize("name", ["", "a b", "../x", "a\n", "x" * 65, "-a", "é"])
def test_odd_names_are_refused(store: KeyStore, name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        store.create(name)


def test_a_name_is_no_id(store: KeyStore) -> None:
    with pytest.raises(InvalidRequest, match="0123456789ab"):
        store.create("0123456789ab")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_whoever_the_gateway_is_not_is_told_so(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)

    with pytest.raises(StartFailed, match="uid 12345"):
        KeyStore(tmp_path).create("ci")

    assert list(tmp_path.iterdir()) == []


# --- in a running gateway


async def test_a_key_is_who_it_was_made_for(store: KeyStore, tmp_path: Path) -> None:
    _, text = await aside(store.create, "ci", tenant="acme", roles=frozenset({Role.VIEWER}), pools=frozenset({"a"}))

    async with KeyRing(tmp_path) as ring:
        assert ring.principal(text) == Principal("key:ci", "acme", frozenset({Role.VIEWER}), frozenset({"a"}))


async def test_keys_come_and_go_without_a_restart(store: KeyStore, tmp_path: Path) -> None:
    async with KeyRing(tmp_path) as ring:
        texts = [(await aside(store.create, f"key-{number}"))[1] for number in range(3)]
        await until(lambda: all(works(ring, text) for text in texts))

        await aside(store.revoke, "key-1")
        await until(lambda: not works(ring, texts[1]))

        assert works(ring, texts[0])
        assert works(ring, texts[2])


async def test_changes_within_one_tick_of_the_file_systems_clock_are_seen(
    store: KeyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's time of change is set back to what a look has seen, as a coarse clock would leave it."""
    monkeypatch.setattr(keyring, "SETTLED_NANOSECONDS", 10**12)  # a busy disk's own seconds are not to count
    _, first = await aside(store.create, "first")
    async with KeyRing(tmp_path) as ring:
        await until(lambda: works(ring, first))
        facts = store.folder.stat()

        await aside(store.revoke, "first")
        os.utime(store.folder, ns=(facts.st_atime_ns, facts.st_mtime_ns))

        await until(lambda: not works(ring, first))


async def test_a_key_ends_when_it_was_said(store: KeyStore, tmp_path: Path) -> None:
    record, text = await aside(store.create, "ci", seconds=60)
    now = record.created_at

    async with KeyRing(tmp_path, lambda: now) as ring:
        now += 59.9
        assert works(ring, text)
        now += 0.2
        assert not works(ring, text)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1],
        lambda text: text + "x",
        lambda text: text[:-1] + ("A" if text[-1] != "A" else "B"),
        lambda text: text.replace("kp_", "KP_"),
        lambda text: text.upper(),
        lambda text: "kp_000000000000_" + text.split("_", 2)[2],
        lambda text: text + "\n",
        lambda text: "kp_" + "x" * 100_000,
        lambda text: "kp_../../../etc/x_" + text[-43:],
        lambda text: text[:-1] + "\udcff",
    ],
)
async def test_what_is_not_the_key_to_the_letter_is_refused(
    store: KeyStore, tmp_path: Path, change: Callable[[str], str]
) -> None:
    _, text = await aside(store.create, "ci")
    async with KeyRing(tmp_path) as ring:
        assert works(ring, text)
        assert not works(ring, change(text))


def _put(file: Path, make: Callable[[Path], object]) -> None:
    """Something else in a file's place."""
    file.rename(file.with_suffix(".x"))
    make(file)


BROKEN: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:50]),
    "no text": lambda file: file.write_bytes(b"\xff\xfe"),
    "deep": lambda file: file.write_bytes(b"[" * 50_000),
    "huge": lambda file: file.write_text(file.read_text() + " " * 100_000),
    "of another key": lambda file: file.write_text(file.read_text().replace(file.stem, "0" * 12)),
    "with a role that is none": lambda file: file.write_text(file.read_text().replace("executor", "root")),
    "without a role": lambda file: file.write_text(file.read_text().replace('"executor"', "")),
    "a pipe": lambda file: _put(file, os.mkfifo),
    "a folder": lambda file: _put(file, Path.mkdir),
    "a link": lambda file: _put(file, lambda it: it.symlink_to(it.with_suffix(".x"))),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_a_broken_file_is_one_key_less(
    store: KeyStore, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken, text = await aside(store.create, "broken")
    _, other = await aside(store.create, "other")
    BROKEN[how](store.folder / f"{broken.id}.json")

    async with KeyRing(tmp_path) as ring:
        assert not works(ring, text)
        assert works(ring, other)
        _, late = await aside(store.create, "late")
        await until(lambda: works(ring, late))

    assert [record.getMessage() for record in caplog.records].count("key cannot be read") == 1


async def test_a_folder_that_cannot_be_read_ends_no_key_at_once(store: KeyStore, tmp_path: Path) -> None:
    _, text = await aside(store.create, "ci")
    async with KeyRing(tmp_path) as ring:
        store.folder.rename(tmp_path / "away")
        store.folder.symlink_to(store.folder)  # a loop: neither there nor not there
        _, other = await aside(KeyStore(tmp_path / "elsewhere").create, "ci")
        await asyncio.sleep(keyring.LOOK_SECONDS * 1.5)

        assert works(ring, text)
        assert not works(ring, other)


async def test_a_folder_that_is_gone_holds_no_keys(store: KeyStore, tmp_path: Path) -> None:
    _, text = await aside(store.create, "ci")
    async with KeyRing(tmp_path) as ring:
        store.folder.rename(tmp_path / "away")

        await until(lambda: not works(ring, text))


async def test_keys_that_cannot_be_read_at_the_start_stop_it(store: KeyStore, tmp_path: Path) -> None:
    store.folder.symlink_to(store.folder)

    with pytest.raises(StartFailed, match="API keys"):
        async with KeyRing(tmp_path):
            pass


def test_secrets_are_compared_in_constant_time_only() -> None:
    """No == on anything called a secret, token, digest or key's text in the whole room."""
    secret = {"secret", "token", "digest", "expected", "_initial", "_nobody"}
    for file in AUTH.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare) and any(isinstance(each, ast.Eq | ast.NotEq) for each in node.ops):
                names = {getattr(each, "id", getattr(each, "attr", "")) for each in (node.left, *node.comparators)}
                assert not names & secret, f"{file.name}:{node.lineno}"


# --- the command


def run(tmp_path: Path, *arguments: str) -> Any:
    environment = {"KERNELPOOL_STATE_DIR": str(tmp_path)}
    return CliRunner().invoke(main, ["keys", *arguments], env=environment)


def test_the_command_makes_lists_and_revokes(tmp_path: Path) -> None:
    made = json.loads(
        run(tmp_path, "create", "ci", "--role", "viewer", "--pool", "a", "--expires", "1d", "--json").stdout
    )
    listed = json.loads(run(tmp_path, "list", "--json").stdout)
    plain = run(tmp_path, "list").stdout
    revoked = run(tmp_path, "revoke", made["id"])

    key = made.pop("key")
    assert listed == [made]
    assert (made["roles"], made["pools"], made["tenant"], made["expired"]) == (["viewer"], ["a"], "default", False)
    assert plain.startswith(f"ci ({made['id']}): viewer in pools a, tenant default, expires ")
    assert key.split("_", 2)[2] not in plain
    assert revoked.exit_code == 0
    assert json.loads(run(tmp_path, "list", "--json").stdout) == []


def test_the_command_prints_nothing_but_the_key_where_scripts_read(tmp_path: Path) -> None:
    result = run(tmp_path, "create", "ci")

    assert result.stdout.strip().startswith("kp_")
    assert "expires" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "a b"], "name 'a b'"),
        (["create", "ci", "--tenant", "x y"], "tenant 'x y'"),
        (["create", "ci", "--role", "root"], "root"),
        (["create", "ci", "--expires", "soon"], "no duration"),
        (["create", "ci", "--expires", "0d"], "no duration"),
        (["create", "ci", "--expires", "999999999w"], "no duration"),
        (["revoke", "nobody"], "there is no key 'nobody'"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = run(tmp_path, *arguments)

    assert result.exit_code != 0
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_key_for_ever_must_be_asked_for(tmp_path: Path) -> None:
    run(tmp_path, "create", "usual")
    run(tmp_path, "create", "eternal", "--expires", "never")

    ends = {key["name"]: key["expiresAt"] for key in json.loads(run(tmp_path, "list", "--json").stdout)}

    assert ends["eternal"] is None
    assert ends["usual"] is not None


def test_a_broken_file_is_named_in_the_list(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    record, _ = store.create("ci")
    store.create("other")
    (store.folder / f"{record.id}.json").write_text("{")

    result = run(tmp_path, "list")

    assert f"{record.id}.json cannot be read" in result.stderr
    assert result.stdout.startswith("other ")
