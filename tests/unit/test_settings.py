"""PoolSettings: each has a sentence, wrong ones are refused, and the fingerprint changes with what matters."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from pydantic import ValidationError

from kernelpool.models import Limits
from kernelpool.pool.settings import LimitSettings, PoolSettings, fingerprint, parse_size, sandbox_spec
from kernelpool.runtimes import load_runtimes
from tests.fakes import RUNTIME


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1Gi", 2**30),
        ("512Mi", 2**29),
        ("1.5G", 1_500_000_000),
        ("64k", 64_000),
        ("7", 7),
        ("2 GiB", 2**31),
        ("3MB", 3 * 10**6),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "-1Gi", "1Xi", "1e9", "0", "Gi", "1 Gi 2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        LimitSettings.model_validate({"memory": text})


@pytest.mark.parametrize(
    "wrong",
    [
        {"ready": -1},
        {"ready": 11},
        {"max_sessions": 0},
        {"cooldown": 0},
        {"cooldown": float("nan")},
        {"max_alive": float("inf")},
        {"default_timeout": 300},
        {"name": "a/b"},
        {"name": ""},
        {"start_concurrency": 0},
        {"no_such_setting": 1},
        {"limits": {"memory": "lots"}},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PoolSettings.model_validate(wrong)


@pytest.mark.parametrize("settings", [PoolSettings, LimitSettings])
def test_each_setting_has_a_default_and_a_sentence(settings: type[PoolSettings] | type[LimitSettings]) -> None:
    for name, field in settings.model_fields.items():
        assert not field.is_required(), name
        assert re.fullmatch(r"[A-Z].*\.", field.description or "", re.DOTALL), name


def test_limits_without_a_word_are_the_limits_of_models() -> None:
    assert LimitSettings().to_limits() == Limits()


def test_two_sandboxes_share_neither_id_nor_secret() -> None:
    first, second = (sandbox_spec(PoolSettings(), RUNTIME) for _ in range(2))

    assert re.fullmatch(r"[0-9a-f]{12}", first.id)
    assert first.id != second.id
    assert len(first.agent.secret) >= 32
    assert first.agent.secret != second.agent.secret
    assert first.fingerprint == second.fingerprint == fingerprint(PoolSettings(), RUNTIME)


@pytest.mark.parametrize(
    "change",
    [
        {"limits": {"memory": "2Gi"}},
        {"egress": True},
        {"queue_size": 3},
        {"backend": "docker"},
        {"lease": 60},
    ],
)
def test_what_is_built_into_a_sandbox_changes_the_fingerprint(change: dict[str, object]) -> None:
    assert fingerprint(PoolSettings.model_validate(change), RUNTIME) != fingerprint(PoolSettings(), RUNTIME)


def test_a_sandbox_is_warmed_up_unless_its_pool_says_not() -> None:
    python = load_runtimes()["python"]

    assert "pandas" in sandbox_spec(PoolSettings(), python).agent.warmup_code
    assert sandbox_spec(PoolSettings(warmup=False), python).agent.warmup_code == ""
    assert fingerprint(PoolSettings(warmup=False), python) != fingerprint(PoolSettings(), python)


@pytest.mark.parametrize("change", [{"ready": 3}, {"max_sessions": 20}, {"cooldown": 5}, {"max_timeout": 900}])
def test_what_is_said_to_a_sandbox_later_does_not(change: dict[str, object]) -> None:
    assert fingerprint(PoolSettings.model_validate(change), RUNTIME) == fingerprint(PoolSettings(), RUNTIME)


def test_another_runtime_has_another_fingerprint_but_not_another_place_of_its_folder() -> None:
    assert fingerprint(PoolSettings(), replace(RUNTIME, requirements=("numpy",))) != fingerprint(
        PoolSettings(), RUNTIME
    )
    assert fingerprint(PoolSettings(), replace(RUNTIME, folder=RUNTIME.folder / "x")) == fingerprint(
        PoolSettings(), RUNTIME
    )
