"""Egress policies: how domains are written, what they let through, and which policy is as wide as another."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelpool.config import Settings
from kernelpool.egress.policy import MAX_DOMAINS, NOTHING, OUTSIDE, Domain, EgressPolicy, host_name
from kernelpool.errors import InvalidRequest
from kernelpool.pool.launcher import Launcher
from kernelpool.pool.settings import PoolSettings, sandbox_spec
from tests.fakes import RUNTIME, FakeBackend, FakeSandbox

labels = st.sampled_from(["a", "b", "xn--bcher-kva"])
names = st.lists(labels, min_size=2, max_size=4).map(".".join)
ports = st.sampled_from([80, 443, 8443])
entries = st.builds(
    lambda below, name, port: f"{'*.' if below else ''}{name}{f':{port}' if port else ''}",
    st.booleans(),
    names,
    st.none() | ports,
)
policies = st.sampled_from([NOTHING, OUTSIDE]) | st.lists(entries, max_size=6).map(EgressPolicy.of)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("pypi.org", "pypi.org"),
        ("PyPI.Org.", "pypi.org"),
        ("  pypi.org ", "pypi.org"),
        ("*.pythonhosted.org", "*.pythonhosted.org"),
        ("a.org:8443", "a.org:8443"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("*.bücher.example", "*.xn--bcher-kva.example"),
        ("\uff50\uff59\uff50\uff49\u3002org", "pypi.org"),
        ("_service.a.org", "_service.a.org"),
    ],
)
def test_a_domain_has_one_spelling(written: str, kept: str) -> None:
    assert EgressPolicy.of([written]).setting == [kept]
    assert EgressPolicy.of([written]) == EgressPolicy.of([kept])


@pytest.mark.parametrize(
    "text",
    [
        *(
            "1.2.3.4",
            "127.1",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "2130706433",
            "a.0x7f",
            "\uff11\uff12\uff17.0.0.1",
            "1.2.3.4.",
        ),
        *("[::1]", "::1", "::ffff:1.2.3.4", "a.org:0", "a.org:65536", "a.org:080", "a.org:", "a.org:٣", "a.org:80:80"),
        *("*", "*.org", "*.*.org", "a.*.org", "a*.org", "localhost", "org", "", ".", "a..org", ".a.org", "a.org.."),
        *("-a.org", "a-.org", "a b.org", "a.org/x", "http://a.org", "u@a.org", "a.org\n", "a\0.org", "x" * 64 + ".org"),
        *(".".join(["x" * 60] * 5), "ü" * 5000 + ".org", "\u202ea.org", "a\u2024org", "xn--.\ud800org"),
    ],
)
def test_what_is_no_domain_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is (an address|no|a single|longer)"):
        EgressPolicy.of([text.replace("\n", "\n.")])


def test_a_policy_has_a_limit() -> None:
    with pytest.raises(ValueError, match="more than the 200"):
        EgressPolicy.of([f"a{n}.org" for n in range(MAX_DOMAINS + 1)])


@pytest.mark.parametrize(
    ("entry", "name", "port", "allowed"),
    [
        ("a.org", "a.org", 443, True),
        ("a.org", "a.org", 80, True),
        ("a.org", "a.org", 25, False),
        ("a.org", "b.a.org", 443, False),
        ("a.org", "xa.org", 443, False),
        ("*.a.org", "b.a.org", 443, True),
        ("*.a.org", "c.b.a.org", 443, True),
        ("*.a.org", "a.org", 443, False),
        ("*.a.org", "xa.org", 443, False),
        ("a.org:25", "a.org", 25, True),
        ("a.org:25", "a.org", 443, False),
    ],
)
def test_a_list_allows_what_it_names(entry: str, name: str, port: int, allowed: bool) -> None:
    assert EgressPolicy.of([entry]).allows(name, port) is allowed
    assert not NOTHING.allows(name, port)


@given(policies)
def test_records_and_json_say_a_policy_whole(policy: EgressPolicy) -> None:
    assert EgressPolicy.of(json.loads(json.dumps(policy.setting))) == policy


@given(policies, policies, names, ports)
def test_whoever_covers_lets_all_of_the_other_through(
    wide: EgressPolicy, narrow: EgressPolicy, name: str, port: int
) -> None:
    if wide.covers(narrow) and wide.mode == "domains" and narrow.allows(name, port):
        assert wide.allows(name, port)
    assert wide.covers(wide)
    assert OUTSIDE.covers(wide)
    assert wide.covers(NOTHING)
    assert NOTHING.covers(wide) is not bool(wide)


@given(policies, entries)
def test_one_more_domain_is_never_narrower(policy: EgressPolicy, entry: str) -> None:
    wider = EgressPolicy.of([*policy.names, entry])

    assert wider.covers(EgressPolicy.of(policy.names))
    assert wider.covers(EgressPolicy.of([entry]))


@given(st.text(max_size=300))
def test_a_name_is_clean_ascii_or_none(text: str) -> None:
    try:
        name = host_name(text)
    except ValueError:
        return

    assert name.isascii()
    assert name == name.lower() == host_name(name)
    assert not set(name) & set(" /:@\r\n\0%[]*")


@pytest.mark.parametrize(
    ("written", "policy"),
    [
        ("true", OUTSIDE),
        ("false", NOTHING),
        ("pypi.org, *.pythonhosted.org", EgressPolicy.of(["*.pythonhosted.org", "pypi.org"])),
    ],
)
def test_the_environment_can_say_it(written: str, policy: EgressPolicy) -> None:
    settings = Settings.load(None, {"KERNELPOOL_POOLS__PYTHON__EGRESS": written}, {})

    assert settings.pools["python"].egress_policy == policy


def test_a_wrong_domain_is_named_with_its_setting() -> None:
    with pytest.raises(InvalidRequest, match=r"pools\.python\.egress.*'10\.0\.0\.1' is an address"):
        Settings.load(None, {"KERNELPOOL_POOLS__PYTHON__EGRESS": "10.0.0.1"}, {})


@pytest.mark.parametrize(
    ("before", "after", "is_taken_away"),
    [
        (True, False, True),
        (True, ["a.org"], True),
        (["a.org", "b.org"], ["a.org"], True),
        (["a.org"], ["a.org:443"], True),
        (["*.a.org"], ["b.a.org"], True),
        (["a.org"], ["a.org", "b.org"], False),
        (["b.a.org"], ["*.a.org"], False),
        (["a.org"], True, False),
        (False, ["a.org"], False),
    ],
)
async def test_where_anything_is_taken_away_nobody_gets_what_was_started_before(
    before: bool | list[str], after: bool | list[str], is_taken_away: bool
) -> None:
    backend = FakeBackend()
    old, new = PoolSettings(egress=before), PoolSettings(egress=after)
    launcher = Launcher(old, RUNTIME, backend, backend.connect)
    ready = launcher.connect(FakeSandbox(backend, sandbox_spec(old, RUNTIME)))

    launcher.change(new, RUNTIME, backend)

    assert not launcher.is_current(ready)
    assert launcher.is_acceptable(ready) is not is_taken_away


def test_a_domain_that_is_written_is_read_again() -> None:
    domain = Domain("a.org", below=True, port=8443)

    assert Domain.parse(str(domain)) == domain
    assert Domain.parse(str(replace(domain, port=None))) == replace(domain, port=None)
