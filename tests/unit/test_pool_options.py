"""Options of `kernelpool pools create` that are short for settings."""

from __future__ import annotations

import click
import pytest

from kernelpool.cli.pools import with_container


def test_an_image_makes_a_pool_of_containers_on_the_backend_that_can() -> None:
    values = with_container({"ready": 1, "container": {"user": "1"}}, "app:1", 8080)

    assert values == {
        "backend": "docker",
        "ready": 1,
        "container": {"user": "1", "image": "app:1", "target_port": 8080},
    }


def test_another_backend_that_is_said_is_meant() -> None:
    assert with_container({"backend": "other"}, "app:1", 8080)["backend"] == "other"


def test_a_change_of_the_image_changes_nothing_else() -> None:
    assert with_container({}, "app:2", None, is_new=False) == {"container": {"image": "app:2"}}


def test_nothing_said_is_nothing_changed() -> None:
    assert with_container({"ready": 1}, None, None) == {"ready": 1}


def test_what_is_said_twice_is_refused() -> None:
    with pytest.raises(click.UsageError, match="image"):
        with_container({"container": {"image": "app:1"}}, "app:2", None)
