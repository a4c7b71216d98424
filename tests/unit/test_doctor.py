"""The doctor's words: what holds, what does not, and what to do about it."""

from __future__ import annotations

import pytest

from kernelpool.backends.bwrap_binary import Bwrap
from kernelpool.backends.doctor import GOLDEN, compare, host_findings, start_finding
from kernelpool.errors import StartFailed

AS_PROMISED = {promise.key: promise.value for promise in GOLDEN}


def test_what_is_as_promised_holds() -> None:
    assert all(finding.holds and finding.remedy == "" for finding in compare(AS_PROMISED))


@pytest.mark.parametrize("promise", GOLDEN, ids=lambda promise: promise.key)
def test_anything_else_does_not_hold_and_comes_with_a_remedy(promise: object) -> None:
    key = getattr(promise, "key", "")

    [broken] = [finding for finding in compare({**AS_PROMISED, key: "something else"}) if not finding.holds]

    assert broken.name == key
    assert broken.essential
    assert broken.remedy


def test_an_answer_that_is_missing_does_not_hold() -> None:
    assert not any(finding.holds for finding in compare({}))


def test_of_a_table_only_the_lines_that_differ_are_shown() -> None:
    calls = {**AS_PROMISED["calls"], "bpf": "OK"}

    [broken] = [finding for finding in compare({**AS_PROMISED, "calls": calls}) if not finding.holds]

    assert broken.seen == "bpf: OK"


def test_a_machine_without_control_groups_is_weaker_but_serves() -> None:
    findings = host_findings(Bwrap((0, 13, 0), "/usr/bin/bwrap"), (), has_own_uids=False)

    assert [finding.name for finding in findings if not finding.holds] == [
        "memory limit",
        "process limit",
        "CPU limit",
        "user per sandbox",
    ]
    assert not any(finding.essential for finding in findings)
    assert all(finding.remedy for finding in findings)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("bwrap: No permissions to create a new namespace, likely because the kernel …", "AppArmor"),
        ("bwrap: Creating new namespace failed: nesting depth or /proc/sys/user/…", "max_user_namespaces"),
        ("bwrap: setting up uid map: Permission denied", "AppArmor"),
        ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "Docker or Kubernetes"),
        ("bwrap: something new", "what bubblewrap says"),
    ],
)
def test_why_no_sandbox_starts(words: str, remedy: str) -> None:
    error = StartFailed("bubblewrap could not set up a sandbox")
    error.add_note(words)

    finding = start_finding(error)

    assert not finding.holds
    assert finding.essential
    assert words in finding.seen
    assert remedy in finding.remedy
