"""Roles and pools: a table of who may do what, and the words for who may not."""

from __future__ import annotations

import pytest

from kernelpool.auth.principal import Principal, Role
from kernelpool.errors import Forbidden

V, E, A = Role.VIEWER, Role.EXECUTOR, Role.ADMIN


@pytest.mark.parametrize(
    ("has", "may"), [((), ()), ((V,), (V,)), ((E,), (V, E)), ((A,), (V, A)), ((E, A), (V, E, A)), ((V, A), (V, A))]
)
def test_a_role_gives_what_it_says_and_what_it_includes(has: tuple[Role, ...], may: tuple[Role, ...]) -> None:
    principal = Principal("key:ci", roles=frozenset(has))

    for role in Role:
        if role in may:
            principal.require(role, "python")
        else:
            with pytest.raises(Forbidden, match=rf"^key:ci has not the role '{role}'\.$"):
                principal.require(role, "python")


def test_a_pool_that_was_not_given_is_closed() -> None:
    principal = Principal("key:ci", roles=frozenset(Role), pools=frozenset({"python"}))

    principal.require(E, "python")
    with pytest.raises(Forbidden, match=r"^key:ci has no access to pool 'other'\.$"):
        principal.require(E, "other")


def test_no_pools_are_not_all_pools() -> None:
    assert not Principal("key:ci", pools=frozenset()).may_enter("python")
    assert Principal("key:ci", pools=None).may_enter("python")


def test_who_was_given_no_role_has_none() -> None:
    with pytest.raises(Forbidden):
        Principal("key:ci").require(V)
