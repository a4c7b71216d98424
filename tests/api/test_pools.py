"""The view of pools."""

from __future__ import annotations

from tests.api.conftest import Api


async def test_a_pool_shows_its_numbers_and_limits(api: Api) -> None:
    await api.run("print('hi')")

    pool = await api.json("GET", "", identifier=None, version=None)

    assert (pool["name"], pool["language"], pool["sessions"]) == ("python", "python", 1)
    assert pool["maxTimeoutInSeconds"] == 220


async def test_all_pools_are_listed_to_those_with_a_token(api: Api) -> None:
    url = f"http://127.0.0.1:{api.port}/pools"
    async with api.http.get(url) as response:
        assert response.status == 401
    async with api.http.get(url, headers={"Authorization": "Bearer a-token-for-tests-only"}) as response:
        assert [pool["name"] for pool in (await response.json())["value"]] == ["python"]


async def test_an_unknown_pool_is_not_found(api: Api) -> None:
    api.base = api.base.replace("/python", "/nothing")

    answer = await api.json("GET", "", status=404, identifier=None, version=None)

    assert answer["error"]["code"] == "SessionPoolNotFound"
