"""Keys of pools for MCP clients: derived, so the same for each look, and gone for good once they are renewed."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from kernelpool.api.mcp.names import Names
from kernelpool.auth.authenticator import Authenticator
from kernelpool.auth.pool_keys import FILE, PoolKeys
from kernelpool.auth.principal import Principal, Role
from kernelpool.errors import BackendUnavailable, InvalidToken, StartFailed


def test_a_key_stands_for_an_executor_of_its_pool_and_tenant_and_nobody_else(tmp_path: Path) -> None:
    keys = PoolKeys.load(tmp_path)
    key = keys.key("python", "tenänt")

    assert keys.principal("python", key) == Principal(
        "mcp-key:python", "tenänt", frozenset({Role.EXECUTOR}), frozenset({"python"})
    )
    assert key == keys.key("python", "tenänt") != keys.key("python", "other")


@pytest.mark.parametrize("end", ["", "x", "_", "kpm_", "kpm_zz_" + 64 * "0", "kpm_ff_" + 64 * "0", "kpm__" + 64 * "0"])
def test_what_is_no_key_is_told_as_such_whatever_is_wrong_with_it(tmp_path: Path, end: str) -> None:
    keys = PoolKeys.load(tmp_path)
    real = keys.key("python", "default")

    for wrong in (end, real + end + "0", real[:-1] + ("0" if real[-1] != "0" else "1"), real.replace("kpm", "kpn")):
        with pytest.raises(InvalidToken):
            keys.principal("python", wrong)
    with pytest.raises(InvalidToken):
        keys.principal("other", real)


async def test_keys_outlive_the_gateway_until_they_are_renewed(tmp_path: Path) -> None:
    keys = await asyncio.to_thread(PoolKeys.load, tmp_path)
    old, other = keys.key("python", "default"), keys.key("other", "default")

    assert (await asyncio.to_thread(PoolKeys.load, tmp_path)).key("python", "default") == old
    await keys.renew("python")
    for again in (keys, await asyncio.to_thread(PoolKeys.load, tmp_path)):
        with pytest.raises(InvalidToken):
            again.principal("python", old)
        assert again.principal("python", keys.key("python", "default"))
        assert again.principal("other", other)


def test_no_key_is_on_disk_and_only_the_owner_reads_what_is(tmp_path: Path) -> None:
    keys = PoolKeys.load(tmp_path)
    asyncio.run(keys.renew("python"))

    assert keys.key("python", "default")[-64:] not in (tmp_path / FILE).read_text()
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_renewal_that_cannot_be_kept_does_not_count(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    keys = PoolKeys.load(state)
    old = keys.key("python", "default")
    (state / FILE).rename(tmp_path / FILE)
    state.rmdir()

    with pytest.raises(BackendUnavailable):
        asyncio.run(keys.renew("python"))

    assert keys.key("python", "default") == old


@pytest.mark.parametrize("content", ["", "{}", '{"secret": "short"}', "x" * (2 << 20)])
def test_a_file_that_cannot_be_understood_stops_the_start(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)

    with pytest.raises(StartFailed, match="mend or remove it"):
        PoolKeys.load(tmp_path)


async def test_a_pools_key_opens_nothing_but_the_pools_mcp_server() -> None:
    authenticator = Authenticator(b"")
    key = authenticator.pool_keys.key("python", "default")

    assert (await authenticator.authenticate(key, "python")).name == "mcp-key:python"
    for pool in (None, "other"):
        with pytest.raises(InvalidToken):
            await authenticator.authenticate(key, pool)


def test_an_mcp_session_is_known_to_whom_it_was_given_alone() -> None:
    keys = PoolKeys()
    mine = Names(keys, Principal("key:a", "t"), "python")
    session = mine.new_session()

    assert mine.has(session)
    assert mine.has(mine.new_session())
    assert mine.identifier(session) != mine.identifier(mine.new_session())
    for other in (
        Names(keys, Principal("key:b", "t"), "python"),
        Names(keys, Principal("key:a", "u"), "python"),
        Names(keys, Principal("key:a", "t"), "other"),
        Names(PoolKeys(), Principal("key:a", "t"), "python"),
    ):
        assert not other.has(session)
        assert other.identifier(None) != mine.identifier(None)
    for guess in ("", "-", session[:-1], session.upper(), session.replace(session[0], "g")):
        assert not mine.has(guess)
    assert mine.identifier(None) == mine.identifier(None)
