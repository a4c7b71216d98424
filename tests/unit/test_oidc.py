"""Tokens of issuers: who is let in, with what; every forgery is refused; keys rotate, and issuers fail."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import math
import re
import time
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from pydantic import TypeAdapter, ValidationError

from kernelpool.auth.authenticator import Authenticator
from kernelpool.auth.fetch import MAX_DOCUMENT
from kernelpool.auth.oidc import Issuers
from kernelpool.auth.principal import Principal, Role
from kernelpool.auth.settings import OidcSettings, OidcTable, is_secure
from kernelpool.errors import InvalidToken
from tests.issuer import AUDIENCE, Issuer, encoded, issuer_of, jwk, pem, private_key, self_signed

INTERVAL = 0.2


def settings_of(issuer: Issuer, **more: Any) -> OidcSettings:
    values = {
        "issuer": issuer.url,
        "audience": [AUDIENCE, "https://acasessions.io"],
        "roles": {"executor": ["run"], "viewer": ["look"], "admin": ["manage"]},
        "clock_skew": 5,
        "keys_interval": INTERVAL,
    }
    return OidcSettings.model_validate({**values, **more})


@asynccontextmanager
async def trusting(*issuers: Issuer, **more: Any) -> AsyncIterator[Authenticator]:
    names = ["corp", "other"]
    table = {name: settings_of(issuer, **more) for name, issuer in zip(names, issuers, strict=False)}
    async with Issuers(table) as trusted:
        yield Authenticator(b"", None, trusted)


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with issuer_of() as issuer:
        yield issuer


@pytest.fixture
async def stranger() -> AsyncIterator[Issuer]:
    """Trusted as well, with keys of its own."""
    async with issuer_of() as stranger:
        stranger.keys = [jwk("strange", "two")]
        yield stranger


async def is_let_in(authenticator: Authenticator, token: str) -> bool:
    try:
        await authenticator.authenticate(token)
    except InvalidToken:
        return False
    return True


# --- who is let in


async def test_a_token_says_who_with_what_and_where(issuer: Issuer) -> None:
    async with trusting(issuer, tenant_claim="tid", pools_claim="pools") as authenticator:
        principal = await authenticator.authenticate(issuer.token(roles=["run", "look", "x"], pools=["a", "b"]))

    roles = frozenset({Role.EXECUTOR, Role.VIEWER})
    assert principal == Principal("corp:alice", "corp:acme", roles, frozenset({"a", "b"}))


@pytest.mark.parametrize("audience", [AUDIENCE, ["https://acasessions.io", "https://elsewhere.test"]])
async def test_any_of_the_audiences_will_do(issuer: Issuer, audience: Any) -> None:
    async with trusting(issuer) as authenticator:
        assert (await authenticator.authenticate(issuer.token(aud=audience))).tenant == "corp"


@pytest.mark.parametrize(
    ("settings", "claims", "roles"),
    [
        ({}, {"roles": "manage"}, {Role.ADMIN}),
        ({}, {"roles": "run manage"}, set()),  # one text, which is no list of words
        ({"roles_claim": "scp"}, {"scp": "look run"}, {Role.VIEWER, Role.EXECUTOR}),
        ({"roles_claim": "oid", "roles": {"executor": ["0fb8"]}}, {"oid": "0fb8"}, {Role.EXECUTOR}),
        ({}, {"roles": None}, set()),
        ({}, {"roles": {"run": True}}, set()),
        ({}, {"roles": [1, None, ["run"]]}, set()),
    ],
)
async def test_roles_come_from_the_claim_that_was_named(
    issuer: Issuer, settings: Any, claims: Any, roles: set[Role]
) -> None:
    async with trusting(issuer, **settings) as authenticator:
        assert (await authenticator.authenticate(issuer.token(**claims))).roles == roles


@pytest.mark.parametrize(
    ("settings", "claims", "pools"),
    [
        ({}, {"pools": ["a"]}, None),
        ({"pools": ["a"]}, {}, {"a"}),
        ({"pools_claim": "pools"}, {}, set()),
        ({"pools_claim": "pools", "pools": ["a", "b"]}, {"pools": ["b", "c"]}, {"b"}),
    ],
)
async def test_pools_come_from_settings_and_claim(issuer: Issuer, settings: Any, claims: Any, pools: Any) -> None:
    async with trusting(issuer, **settings) as authenticator:
        assert (await authenticator.authenticate(issuer.token(**claims))).pools == pools


async def test_no_issuer_can_speak_for_the_tenants_of_another(issuer: Issuer, stranger: Issuer) -> None:
    async with trusting(issuer, stranger, tenant_claim="tid") as authenticator:
        ours = await authenticator.authenticate(issuer.token(tid="default"))
        theirs = await authenticator.authenticate(stranger.token(kid="strange", key="two", tid="default"))

    assert {ours.tenant, theirs.tenant} == {"corp:default", "other:default"}


@pytest.mark.parametrize("claims", [{"tid": None}, {"tid": ["acme"]}, {"tid": "a\nb"}, {"tid": ""}, {"sub": None}])
async def test_who_has_no_name_or_tenant_is_refused(issuer: Issuer, claims: dict[str, Any]) -> None:
    async with trusting(issuer, tenant_claim="tid") as authenticator:
        assert not await is_let_in(authenticator, issuer.token(**claims))


@pytest.mark.parametrize(("key", "algorithm"), [("one", "PS256"), ("one", "RS512"), ("ec1", "ES256")])
async def test_other_algorithms_count_when_the_operator_says_so(issuer: Issuer, key: str, algorithm: str) -> None:
    issuer.keys = [jwk("first", key)]
    token = issuer.token(key=key, alg=algorithm)

    async with trusting(issuer, algorithms=[algorithm]) as allowing, trusting(issuer, algorithms=["ES384"]) as other:
        assert await is_let_in(allowing, token)
        assert not await is_let_in(other, token)


# --- forgeries

FORGERIES: dict[str, Callable[[Issuer], str]] = {
    "no algorithm": lambda issuer: f"{encoded({'alg': 'none', 'kid': 'first'})}.{encoded(issuer.claims())}.",
    "no algorithm, in capitals": lambda issuer: (
        f"{encoded({'alg': 'NONE', 'kid': 'first'})}.{encoded(issuer.claims())}.{encoded(b'x')}"
    ),
    "the public key as a shared secret": lambda issuer: _hmac(issuer, pem("one")),
    "expired": lambda issuer: issuer.token(exp=int(time.time()) - 60),
    "not yet valid": lambda issuer: issuer.token(nbf=int(time.time()) + 60),
    "issued in the future": lambda issuer: issuer.token(iat=int(time.time()) + 60),
    "for somebody else": lambda issuer: issuer.token(aud="https://management.azure.com"),
    "for nobody": lambda issuer: issuer.token(aud=None),
    "for everybody": lambda issuer: issuer.token(aud=[]),
    "an audience that only begins like ours": lambda issuer: issuer.token(aud=AUDIENCE + ".evil.test"),
    "of an unknown issuer": lambda issuer: issuer.token(iss="https://evil.test"),
    "of the issuer with a slash": lambda issuer: issuer.token(iss=issuer.url + "/"),
    "of several issuers": lambda issuer: _sign({**issuer.claims(), "iss": [issuer.url]}),
    "of no issuer": lambda issuer: issuer.token(iss=None),
    "for ever": lambda issuer: issuer.token(exp=None),
    "until infinity": lambda issuer: _sign({**issuer.claims(), "exp": math.inf}),
    "until a text": lambda issuer: _sign({**issuer.claims(), "exp": "tomorrow"}),
    "a key that is a path": lambda issuer: issuer.token(kid="../../dev/null"),
    "a key that is a URL": lambda issuer: issuer.token(kid="http://127.0.0.1/keys"),
    "an unknown key": lambda issuer: issuer.token(kid="unknown"),
    "a key that is a number": lambda issuer: _sign(issuer.claims(), kid=1),
    "no key": lambda issuer: issuer.token(kid=None),
    "the key of another issuer": lambda issuer: issuer.token(kid="strange", key="two"),
    "another key under a known name": lambda issuer: issuer.token(key="two"),
    "a key brought along": lambda issuer: issuer.token(key="two", header={"jwk": jwk("first", "two")}),
    "a key from the attacker's server": lambda issuer: issuer.token(
        kid="strange", key="two", header={"jku": issuer.discovery["evil"], "x5u": issuer.discovery["evil"]}
    ),
    "a certificate brought along": lambda issuer: issuer.token(key="two", header={"x5c": [encoded(pem("two"))]}),
    "tampered claims": lambda issuer: _with_claims(issuer.token(), issuer.claims(roles=["manage"])),
    "tampered header": lambda issuer: _with_header(issuer.token(), {"alg": "RS256", "kid": "first", "x": 1}),
    "no signature": lambda issuer: issuer.token().rpartition(".")[0] + ".",
    "a signature that is cut": lambda issuer: issuer.token()[:-8],
    "an extension that must be understood": lambda issuer: issuer.token(header={"crit": ["x"], "x": 1}),
    "a megabyte": lambda issuer: issuer.token(filler="x" * (1 << 20)),
    "more than is allowed": lambda issuer: issuer.token(filler="x" * (16 << 10)),
    "encrypted": lambda issuer: ".".join([encoded({"alg": "RSA-OAEP", "enc": "A256GCM"}), *["AAAA"] * 4]),
    "a signature of ES256 that is zero": lambda issuer: _with_signature(_elliptic(issuer), bytes(64)),
    "a signature of ES256 in DER": lambda issuer: _with_signature(
        _elliptic(issuer), b"\x30\x06\x02\x01\x01\x02\x01\x01"
    ),
    "claims 5,000 deep": lambda issuer: _unsigned(b"[" * 5000),
    "claims that are a list": lambda issuer: _unsigned(b"[1]"),
    "claims that are no UTF-8": lambda issuer: _unsigned(b"\xff"),
    "a number of 5,000 digits": lambda issuer: _unsigned(b'{"iss": ' + b"9" * 5000 + b"}"),
    "nothing between dots": lambda issuer: "..",
}


def _unsigned(claims: bytes, **header: Any) -> str:
    return f"{encoded({'alg': 'RS256', 'kid': 'first', **header})}.{encoded(claims)}.{encoded(b'x')}"


def _hmac(issuer: Issuer, secret: bytes) -> str:
    """By hand: PyJWT refuses to be so foolish."""
    text = _unsigned(json.dumps(issuer.claims()).encode(), alg="HS256").rpartition(".")[0]
    return f"{text}.{encoded(hmac.digest(secret, text.encode(), hashlib.sha256))}"


def _sign(claims: dict[str, Any], **header: Any) -> str:
    """By hand, for what PyJWT refuses to write."""
    text = _unsigned(json.dumps(claims).encode(), **header).rpartition(".")[0]
    algorithm = jwt.get_algorithm_by_name("RS256")
    return f"{text}.{encoded(algorithm.sign(text.encode(), private_key('one')))}"


def _elliptic(issuer: Issuer) -> str:
    return issuer.token(kid="curve", key="ec1", alg="ES256")


def _with_claims(token: str, claims: dict[str, Any]) -> str:
    header, _, signature = token.split(".")
    return f"{header}.{encoded(claims)}.{signature}"


def _with_header(token: str, header: dict[str, Any]) -> str:
    return f"{encoded(header)}.{token.partition('.')[2]}"


def _with_signature(token: str, signature: bytes) -> str:
    return f"{token.rpartition('.')[0]}.{encoded(signature)}"


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_a_forged_token_is_refused(issuer: Issuer, stranger: Issuer, forgery: str) -> None:
    issuer.keys = [jwk("first", "one"), jwk("curve", "ec1")]
    issuer.discovery["evil"] = f"{stranger.url}/keys"
    token = FORGERIES[forgery](issuer)
    async with trusting(issuer, stranger) as authenticator:
        await stranger.wait_asked(1)

        assert await is_let_in(authenticator, issuer.token())
        assert await is_let_in(authenticator, _elliptic(issuer))
        assert not await is_let_in(authenticator, token)
        assert stranger.asked == 1


async def test_what_was_wrong_is_said_to_the_log_alone(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    token = issuer.token(exp=int(time.time()) - 60)
    async with trusting(issuer) as authenticator:
        with pytest.raises(InvalidToken, match=r"^The bearer token is not valid\.$"):
            await authenticator.authenticate(token)

    lines = " ".join(str(vars(record)) for record in caplog.records if record.name.startswith("kernelpool"))
    assert "ExpiredSignatureError" in lines
    assert not [part for part in token.split(".") if part in lines]


@pytest.mark.parametrize(("seconds", "expected"), [(-200, True), (-400, False)])
async def test_clocks_may_differ_by_what_was_said(issuer: Issuer, seconds: int, expected: bool) -> None:
    async with trusting(issuer, clock_skew=300) as authenticator:
        assert await is_let_in(authenticator, issuer.token(exp=int(time.time()) + seconds)) is expected
        assert await is_let_in(authenticator, issuer.token(nbf=int(time.time()) - seconds)) is expected


# --- keys that change


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_a_new_key_counts_without_a_restart_and_the_old_one_no_longer(issuer: Issuer) -> None:
    async with trusting(issuer) as authenticator:
        old = issuer.token()
        assert await is_let_in(authenticator, old)

        issuer.keys = [jwk("second", "two")]
        new = issuer.token(kid="second", key="two")
        await until(lambda: is_let_in(authenticator, new))

        assert not await is_let_in(authenticator, old)


async def test_a_withdrawn_key_is_forgotten_though_nobody_brings_a_new_one(issuer: Issuer) -> None:
    async with trusting(issuer, keys_ttl=INTERVAL) as authenticator:
        assert await is_let_in(authenticator, issuer.token())

        issuer.keys = [jwk("second", "two")]
        await issuer.wait_asked(issuer.asked + 2)

        assert not await is_let_in(authenticator, issuer.token())


async def test_a_flood_of_unknown_keys_asks_the_issuer_once_an_interval(issuer: Issuer) -> None:
    async with trusting(issuer, keys_interval=60) as authenticator:
        flood = [issuer.token(kid=f"unknown-{number}") for number in range(50)]

        let_in = await asyncio.gather(*(is_let_in(authenticator, token) for token in flood))
        let_in += [await is_let_in(authenticator, token) for token in flood]

        assert not any(let_in)
        assert issuer.asked == 1


async def test_unknown_keys_of_an_algorithm_that_is_not_allowed_ask_nobody(issuer: Issuer) -> None:
    async with trusting(issuer) as authenticator:
        await issuer.wait_asked(1)

        async def asks_again() -> bool:
            assert not await is_let_in(authenticator, issuer.token(kid="unknown", alg="RS512"))
            assert issuer.asked == 1
            await is_let_in(authenticator, issuer.token(kid="unknown"))
            return issuer.asked > 1

        await until(asks_again)


async def test_known_keys_go_on_while_the_issuer_is_down(issuer: Issuer) -> None:
    async with trusting(issuer, keys_ttl=INTERVAL) as authenticator:
        assert await is_let_in(authenticator, issuer.token())
        issuer.answer = (503, b"", {})
        await issuer.wait_asked(issuer.asked + 2)

        assert await is_let_in(authenticator, issuer.token())


async def test_known_keys_do_not_go_on_for_ever(issuer: Issuer) -> None:
    async with trusting(issuer, keys_ttl=INTERVAL, keys_stale=INTERVAL * 3) as authenticator:
        # The keys may be too old already when somebody on a busy machine looks.
        await until(lambda: is_let_in(authenticator, issuer.token()))
        issuer.answer = (503, b"", {})

        async def is_refused() -> bool:
            return not await is_let_in(authenticator, issuer.token())

        await until(is_refused)


async def test_nobody_with_a_known_key_waits_for_an_issuer_that_hangs(issuer: Issuer) -> None:
    async with trusting(issuer, keys_ttl=INTERVAL) as authenticator:
        assert await is_let_in(authenticator, issuer.token())
        issuer.is_hanging = True
        await issuer.wait_asked(issuer.asked + 1)

        async with asyncio.timeout(1):
            assert await is_let_in(authenticator, issuer.token())


async def test_an_issuer_that_comes_up_late_is_found(issuer: Issuer) -> None:
    issuer.answer = (503, b"", {})
    async with trusting(issuer) as authenticator:
        assert not await is_let_in(authenticator, issuer.token())
        issuer.answer = None

        await until(lambda: is_let_in(authenticator, issuer.token()))


@pytest.mark.parametrize(
    "answer",
    [
        (302, b"", {"Location": "/keys?again"}),
        (200, b"[" * 100_000, {}),
        (200, b"[]", {}),
        (200, b'{"keys": 5}', {}),
        (200, b'{"keys": [5, null, {}, {"kid": 1}, {"kid": "first", "kty": "RSA", "n": 5, "e": []}]}', {}),
        (200, b"\x1f\x8b", {"Content-Encoding": "gzip"}),
        (404, b"", {}),
    ],
)
async def test_an_issuer_that_answers_nonsense_harms_nobody(
    issuer: Issuer, stranger: Issuer, answer: tuple[int, bytes, dict[str, str]]
) -> None:
    issuer.answer = answer
    async with trusting(issuer, stranger, keys_interval=60) as authenticator:  # it is not asked again meanwhile
        assert not await is_let_in(authenticator, issuer.token())
        assert await is_let_in(authenticator, stranger.token(kid="strange", key="two"))
        assert issuer.asked == 1

    async with trusting(issuer) as authenticator:
        assert not await is_let_in(authenticator, issuer.token())
        issuer.answer = None
        await until(lambda: is_let_in(authenticator, issuer.token()))


@pytest.mark.parametrize(
    "key",
    [
        {"use": "enc"},
        {"alg": "RS512"},
        {"kid": ""},
        {"kid": None},
        {"kty": "oct", "k": "AQAB"},
        {"kty": "EC"},
        {"n": "!"},
    ],
)
async def test_a_key_that_is_of_no_use_is_left_out_and_the_others_count(issuer: Issuer, key: dict[str, Any]) -> None:
    issuer.keys = [{**jwk("first", "one"), **key}, jwk("good", "two"), 5]
    async with trusting(issuer) as authenticator:
        assert await is_let_in(authenticator, issuer.token(kid="good", key="two"))
        assert not await is_let_in(authenticator, issuer.token(kid=key.get("kid", "first") or "first"))


async def test_a_private_key_that_was_published_does_not_count(issuer: Issuer) -> None:
    private = jwt.get_algorithm_by_name("RS256").to_jwk(private_key("one"), as_dict=True)
    issuer.keys = [{**private, "kid": "first"}, jwk("good", "two")]
    async with trusting(issuer) as authenticator:
        assert await is_let_in(authenticator, issuer.token(kid="good", key="two"))
        assert not await is_let_in(authenticator, issuer.token())


async def test_more_than_a_document_may_be_is_not_read(issuer: Issuer) -> None:
    issuer.answer = (200, json.dumps({"keys": issuer.keys}).encode() + b" " * MAX_DOCUMENT, {})
    async with trusting(issuer) as authenticator:
        assert not await is_let_in(authenticator, issuer.token())


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
async def test_a_weak_key_does_not_count(issuer: Issuer) -> None:
    issuer.keys = [jwk("weak", "weak"), jwk("first", "one")]
    async with trusting(issuer) as authenticator:
        assert await is_let_in(authenticator, issuer.token())
        assert not await is_let_in(authenticator, issuer.token(kid="weak", key="weak"))


@pytest.mark.parametrize(
    "document", [{"issuer": "https://evil.test"}, {"jwks_uri": None}, {"jwks_uri": "http://0.0.0.0:{port}/keys"}]
)
async def test_discovery_is_not_believed_blindly(issuer: Issuer, document: dict[str, Any]) -> None:
    """0.0.0.0 leads here as well, but does not say so."""
    port = issuer.url.rpartition(":")[2]
    issuer.discovery = {name: value and value.format(port=port) for name, value in document.items()}
    async with trusting(issuer) as authenticator:
        assert not await is_let_in(authenticator, issuer.token())

    assert issuer.asked == 0


async def test_an_issuer_whose_certificate_nobody_vouches_for_is_not_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with issuer_of(self_signed(tmp_path)) as issuer, trusting(issuer) as authenticator:
        assert not await is_let_in(authenticator, issuer.token())

    assert issuer.asked == 0
    assert "ClientConnectorCertificateError" in str([vars(record) for record in caplog.records])


async def test_where_the_keys_are_can_be_said(issuer: Issuer) -> None:
    issuer.discovery = {"issuer": "not asked"}
    async with trusting(issuer, jwks_uri=f"{issuer.url}/keys") as authenticator:
        assert await is_let_in(authenticator, issuer.token())


async def test_nothing_is_left_when_it_is_closed(issuer: Issuer) -> None:
    def fetching() -> list[asyncio.Task[Any]]:
        return [task for task in asyncio.all_tasks() if task.get_name().startswith("issuer corp")]

    async with trusting(issuer):
        await issuer.wait_asked(1)
        assert fetching()

    assert not fetching()


# --- settings


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://login.example/v2.0", True),
        ("http://127.0.0.1:8080", True),
        ("http://[::1]/x", True),
        ("http://localhost/x", True),
        ("http://login.example", False),
        ("http://127.0.0.1.evil.test", False),
        ("http://127.0.0.1@evil.test", False),
        ("ftp://127.0.0.1", False),
        ("https://", False),
        ("https://x:port", False),
        ("login.example", False),
    ],
)
def test_only_https_leaves_the_machine(url: str, expected: bool) -> None:
    assert is_secure(url) is expected


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"algorithms": ["none"]}, "algorithms"),
        ({"algorithms": []}, "algorithms"),
        ({"audience": []}, "audience"),
        ({"roles": {}}, "roles"),
        ({"roles": {"root": ["x"]}}, "roles"),
        ({"jwks_uri": "http://192.0.2.1/keys"}, "https"),
        ({"issuer": "http://login.example"}, "https"),
        ({"typo": 1}, "typo"),
    ],
)
def test_what_an_operator_gets_wrong_is_named(more: dict[str, Any], said: str) -> None:
    good = {"issuer": "https://login.example", "audience": ["a"], "roles": {"executor": ["run"]}}
    OidcSettings.model_validate(good)

    with pytest.raises(ValidationError, match=said):
        OidcSettings.model_validate({**good, **more})


def test_the_issuers_that_the_documentation_shows_are_valid() -> None:
    page = (Path(__file__).parents[2] / "docs" / "auth.md").read_text()
    examples = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)

    table = tomllib.loads("\n".join(examples))["oidc"]

    assert set(TypeAdapter(OidcTable).validate_python(table)) == {"entra", "corp"}


def test_lists_are_words_in_the_environment() -> None:
    values = {"issuer": "https://login.example", "audience": "a b", "roles": {"executor": "run go"}}

    settings = OidcSettings.model_validate({**values, "algorithms": "ES256 PS256"})

    assert (settings.audience, settings.roles[Role.EXECUTOR]) == (("a", "b"), ("run", "go"))
    assert settings.algorithms == ("ES256", "PS256")


@pytest.mark.parametrize(("names", "said"), [(["key"], "key"), (["a:b"], "a:b"), (["a", "b"], "same issuer")])
def test_issuers_have_names_and_urls_of_their_own(names: list[str], said: str) -> None:
    one = {"issuer": "https://login.example", "audience": ["a"], "roles": {"executor": ["run"]}}

    with pytest.raises(ValidationError, match=said):
        TypeAdapter(OidcTable).validate_python(dict.fromkeys(names, one))


@pytest.mark.parametrize("name", ["default", "DEFAULT", "key", "token"])
def test_no_issuer_is_called_as_the_operators_tenant_is(name: str) -> None:
    table = {name: {"issuer": "https://idp.example", "audience": ["a"], "roles": {"executor": ["x"]}}}

    with pytest.raises(ValidationError, match="no name for an issuer"):
        TypeAdapter(OidcTable).validate_python(table)
