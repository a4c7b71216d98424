"""The bearer token: made once, kept as a hash, compared in one way only."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from kernelpool.api.auth import TOKEN_FILE, TokenAuthenticator, digest_of, load_or_make_token
from kernelpool.errors import Unauthorized


async def test_the_right_token_has_a_principal() -> None:
    principal = await TokenAuthenticator(digest_of("right")).authenticate(["Bearer right"])

    assert principal.tenant == "default"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        ["right"],
        ["Bearer"],
        ["Bearer wrong"],
        ["Basic right"],
        ["Bearer right", "Bearer right"],
        ["Bearer right,Bearer right"],
        ["Bearer \udcff"],
        ["Bearer rïght"],
    ],
)
async def test_every_failure_is_the_same(headers: list[str]) -> None:
    with pytest.raises(Unauthorized, match=r"^The request has no valid bearer token\.$"):
        await TokenAuthenticator(digest_of("right")).authenticate(headers)


def test_the_first_start_makes_a_token_and_keeps_its_hash_only(tmp_path: Path) -> None:
    digest, token = load_or_make_token(tmp_path)

    assert token is not None
    assert len(token) >= 43
    assert digest_of(token) == digest
    file = tmp_path / TOKEN_FILE
    assert token not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [TOKEN_FILE]


def test_the_second_start_finds_it(tmp_path: Path) -> None:
    first, _ = load_or_make_token(tmp_path)

    assert load_or_make_token(tmp_path) == (first, None)


@pytest.mark.parametrize("text", ["", "not hex", "abcd"])
def test_a_broken_hash_is_an_error_and_not_an_open_door(tmp_path: Path, text: str) -> None:
    (tmp_path / TOKEN_FILE).write_text(text)

    with pytest.raises(ValueError, match=r".*"):
        load_or_make_token(tmp_path)
