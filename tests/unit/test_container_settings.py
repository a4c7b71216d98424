"""Settings of custom containers: what makes sense, what a spec is made of, and secrets that do not come out."""

from __future__ import annotations

import asyncio
import stat
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kernelpool.backends.container import HttpCheck, Probe
from kernelpool.errors import InvalidRequest
from kernelpool.management import merged, validated
from kernelpool.pool.container import MASK
from kernelpool.pool.settings import PoolSettings, fingerprint, sandbox_spec
from kernelpool.pool.store import PoolStore
from kernelpool.runtimes import container_runtime

CANARY = "canary-of-a-secret"
RUNTIME = container_runtime("registry.example.com/app:1")


def pool(**container: Any) -> PoolSettings:
    defaults = {"image": "registry.example.com/app:1", "target_port": 8080}
    return validated({"name": "app", "backend": "docker", "container": {**defaults, **container}})


def with_secret(**rest: Any) -> PoolSettings:
    return pool(env={"KEY": {"secret_ref": "key"}}, secrets={"key": CANARY}, **rest)


def test_a_pool_with_a_container_has_the_runtime_of_that_name() -> None:
    assert pool().runtime == "container"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"runtime": "python", "container": {"image": "a", "target_port": 1}}, "go together"),
        ({"runtime": "container"}, "go together"),
        ({"container": {"image": "a"}}, "container.target_port: Field required"),
        ({"container": {"image": "a", "target_port": 0}}, "greater than or equal to 1"),
        ({"container": {"image": "a", "target_port": 3128}}, "is taken inside of sandboxes"),
        ({"container": {"image": "a b", "target_port": 1}}, "container.image"),
        ({"container": {"image": "a", "target_port": 1, "env": {"A": {"secret_ref": "x"}}}}, "no secret 'x'"),
        ({"container": {"image": "a", "target_port": 1, "secrets": {"x": MASK}}}, "the mask that stands for one"),
        ({"container": {"image": "a", "target_port": 1, "probes": {"startup": {}}}}, "either http_get or tcp_socket"),
        (
            {"container": {"image": "a", "target_port": 1, "probes": {"liveness": {"tcp_socket": {"port": 2}}}}},
            "only target_port 1 is reached",
        ),
        (
            {"container": {"image": "a", "target_port": 1, "probes": {"readiness": {}}}},
            "probes.readiness: there is no such setting",
        ),
        (
            {"container": {"image": "a", "target_port": 1, "registry": {"server": "other.example.com"}}},
            "the image is not from the registry",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(values: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        validated({"name": "app", **values})


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("failure_threshold", (1, 10), (0, 11)),
        ("initial_delay_seconds", (0, 60), (-1, 61)),
        ("period_seconds", (1, 240), (0, 241)),
        ("timeout_seconds", (1, 240), (0, 241)),
        ("success_threshold", (1,), (2,)),
    ],
)
def test_probes_have_the_ranges_of_azure(field: str, good: tuple[int, ...], bad: tuple[int, ...]) -> None:
    for value in good:
        pool(probes={"liveness": {"tcp_socket": {}, field: value}})
    for value in bad:
        with pytest.raises(InvalidRequest, match=field):
            pool(probes={"liveness": {"tcp_socket": {}, field: value}})


def test_a_spec_has_all_that_a_backend_needs() -> None:
    http_get = {"path": "/health", "http_headers": [{"name": "X", "value": "y"}]}
    settings = with_secret(
        command=["/bin/app"], args=["--fast"], user="1000:1000", probes={"startup": {"http_get": http_get}}
    )

    container = sandbox_spec(settings, RUNTIME).container

    assert container is not None
    assert (container.command, container.args, container.user) == (("/bin/app",), ("--fast",), "1000:1000")
    assert container.env == {"KEY": CANARY}
    assert container.startup == Probe(HttpCheck("/health", (("X", "y"),)))
    assert container.liveness is None


def test_a_secret_is_shown_to_nobody() -> None:
    settings = with_secret()
    spec = sandbox_spec(settings, RUNTIME)

    shown = [repr(settings), str(settings.model_dump()), settings.model_dump_json(), repr(spec), repr(spec.container)]
    registry = with_secret(
        registry={"server": "registry.example.com", "username": "u", "password_secret_ref": "key"}
    ).container

    assert registry is not None
    assert CANARY in str(asdict(registry.to_registry()))  # type: ignore[arg-type]
    assert CANARY not in "".join([*shown, repr(registry.to_registry())])
    assert MASK in settings.model_dump_json()


def test_an_error_does_not_repeat_a_secret() -> None:
    with pytest.raises(InvalidRequest) as refused:
        pool(secrets={"key": CANARY, "bad name!": CANARY}, env={"A": 5})

    assert CANARY not in str(refused.value)


def test_a_secret_that_changes_makes_sandboxes_outdated_and_a_mask_is_no_secret() -> None:
    settings = with_secret()
    same = merged(settings, {"ready": 1})
    other = merged(settings, {"container": {"secrets": {"key": "another"}}})

    assert fingerprint(same, RUNTIME) == fingerprint(settings, RUNTIME)
    assert fingerprint(other, RUNTIME) != fingerprint(settings, RUNTIME)
    assert same.container is not None
    assert same.container.secrets["key"].get_secret_value() == CANARY
    with pytest.raises(InvalidRequest, match="mask"):
        merged(settings, {"container": {"secrets": {"key": MASK}}})


async def test_secrets_are_kept_in_a_file_of_its_owner(tmp_path: Path) -> None:
    def keep() -> tuple[PoolSettings, int]:
        store = PoolStore(tmp_path)
        store.save(with_secret())
        return store.load()["app"], stat.S_IMODE((tmp_path / "pools" / "app.json").stat().st_mode)

    kept, mode = await asyncio.to_thread(keep)

    assert kept == with_secret()
    assert mode == 0o600


def test_a_session_that_ends_with_its_container_has_no_cooldown() -> None:
    assert pool().session_cooldown == 300
    assert pool(lifecycle="on_container_exit").session_cooldown == float("inf")
