"""From headers to a principal: the credential, the initial token, and which kind of credential it is."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from kernelpool.api.auth import bearer_token
from kernelpool.auth.authenticator import Authenticator
from kernelpool.auth.initial import INITIAL, TOKEN_FILE, digest_of, load_or_make_token
from kernelpool.auth.keyring import KeyRing
from kernelpool.auth.keys import KeyStore
from kernelpool.auth.oidc import Issuers
from kernelpool.auth.principal import Role
from kernelpool.errors import InvalidToken, Unauthorized


@pytest.mark.parametrize("header", ["Bearer right", "bearer right", "BEARER   right "])
def test_the_token_is_what_follows_the_scheme(header: str) -> None:
    assert bearer_token([header]) == "right"


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ([], "has no Authorization header"),
        ([""], "is not 'Bearer <token>'"),
        (["right"], "is not 'Bearer <token>'"),
        (["Bearer"], "is not 'Bearer <token>'"),
        (["Bearer "], "is not 'Bearer <token>'"),
        (["Basic right"], "is not 'Bearer <token>'"),
        (["Bearer right", "Bearer right"], "more than one"),
    ],
)
def test_what_is_missing_is_said(headers: list[str], said: str) -> None:
    with pytest.raises(Unauthorized, match=said) as refusal:
        bearer_token(headers)

    assert refusal.value.challenge == "Bearer"  # RFC 6750: no error code where there was no token


async def test_the_initial_token_may_do_everything_in_the_default_tenant() -> None:
    principal = await Authenticator(digest_of("right")).authenticate("right")

    assert (principal.tenant, principal.roles, principal.pools) == ("default", frozenset(Role), None)


@pytest.mark.parametrize(
    "token",
    ["wrong", "right2", "righ", "right,Bearer right", "\udcff", "rïght", "kp_", "kp_000000000000_x", "a.b.c", ".."],
)
async def test_every_wrong_token_is_refused_in_the_same_words(tmp_path: Path, token: str) -> None:
    async with KeyRing(tmp_path) as keys, Issuers({}) as issuers:
        for authenticator in (Authenticator(digest_of("right")), Authenticator(digest_of("right"), keys, issuers)):
            with pytest.raises(InvalidToken, match=r"^The bearer token is not valid\.$") as refusal:
                await authenticator.authenticate(token)

    assert refusal.value.challenge == 'Bearer error="invalid_token"'


@pytest.mark.parametrize("token", ["kp_of-the-operators-choice", "kp_0123456789ab_" + "x" * 43, "looks.like.jwt"])
async def test_the_initial_token_may_look_like_something_else(tmp_path: Path, token: str) -> None:
    async with KeyRing(tmp_path) as keys, Issuers({}) as issuers:
        assert await Authenticator(digest_of(token), keys, issuers).authenticate(token) is INITIAL


async def test_a_key_is_known_by_its_look(tmp_path: Path) -> None:
    _, text = await asyncio.to_thread(KeyStore(tmp_path).create, "ci")
    async with KeyRing(tmp_path) as keys, Issuers({}) as issuers:
        principal = await Authenticator(digest_of("right"), keys, issuers).authenticate(text)

    assert principal.name == "key:ci"


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
