"""Keys and issuers' tokens against a gateway as the command line runs it: from `kernelpool keys` to an answer."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kernelpool.auth.keyring import LOOK_SECONDS
from tests.api.test_server import TOKEN, Running, fake_backends, gateway_of, settings_of
from tests.issuer import AUDIENCE, Issuer, issuer_of

__all__ = ["fake_backends"]  # used by every test here
NOTICED_SECONDS = 1.0
"""What the command's help promises."""


async def keys(state: Path, *arguments: str) -> Any:
    """`kernelpool keys` as a process of its own, beside the gateway that holds the lock."""
    command = [sys.executable, "-m", "kernelpool", "--state-dir", str(state), "keys", *arguments, "--json"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=state)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(output)


async def until_status(running: Running, token: str, status: int) -> None:
    async with asyncio.timeout(30):
        while (await running.run("1", token=token))[0] != status:
            await asyncio.sleep(0.05)


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with issuer_of() as issuer:
        yield issuer


def oidc_of(issuer: Issuer) -> dict[str, Any]:
    return {
        "corp": {"issuer": issuer.url, "audience": AUDIENCE, "roles": {"executor": ["run"]}, "tenant_claim": "tid"},
    }


async def test_a_key_made_beside_a_running_gateway_works_until_it_is_revoked(tmp_path: Path) -> None:
    async with gateway_of(settings_of(tmp_path, token=TOKEN)) as running:
        made = await keys(tmp_path, "create", "ci")
        await until_status(running, made["key"], 200)

        assert [key["name"] for key in await keys(tmp_path, "list")] == ["ci"]
        await keys(tmp_path, "revoke", "ci")

        await until_status(running, made["key"], 401)
        assert (await running.run("1"))[0] == 200


def test_the_keys_are_looked_at_more_often_than_was_promised() -> None:
    assert LOOK_SECONDS < NOTICED_SECONDS


async def test_a_key_outlives_its_gateway(tmp_path: Path) -> None:
    made = await keys(tmp_path, "create", "ci")
    for _ in range(2):
        async with gateway_of(settings_of(tmp_path, token=TOKEN)) as running:
            assert (await running.run("1", token=made["key"]))[0] == 200
            await running.finish()


async def test_a_token_of_an_issuer_runs_code_in_its_own_tenant(tmp_path: Path, issuer: Issuer) -> None:
    async with gateway_of(settings_of(tmp_path, token=TOKEN, oidc=oidc_of(issuer))) as running:
        await running.run("x = 'of the operator'")

        _, of_acme = await running.run("x = 'of acme'; x", token=issuer.token())
        _, of_evil = await running.run("'x' in globals()", token=issuer.token(tid="evil"))
        status, refusal = await running.run("1", token=issuer.token(roles=["look"]))

    assert of_acme["result"]["executionResult"] == "of acme"
    assert of_evil["result"]["executionResult"] is False
    assert (status, refusal["error"]["message"]) == (403, "corp:alice has not the role 'executor'.")


@pytest.mark.parametrize("size", [100, 20_000, 1 << 20])
async def test_a_wrong_token_of_any_size_lets_nobody_in(tmp_path: Path, issuer: Issuer, size: int) -> None:
    async with gateway_of(settings_of(tmp_path, token=TOKEN, oidc=oidc_of(issuer))) as running:
        try:
            status, _ = await running.run("1", token=issuer.token(aud="elsewhere", filler="x" * size))
        except aiohttp.ClientError:
            status = 431 if size > 64 << 10 else 0  # more than any header may be: the connection is closed

        assert status == (401 if size < 64 << 10 else 431)
        assert (await running.run("1"))[0] == 200


async def test_no_credential_reaches_the_log(tmp_path: Path, issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = await keys(tmp_path, "create", "ci")
    good = [TOKEN, made["key"], issuer.token()]
    bad = [
        TOKEN + "x",
        made["key"] + "x",
        issuer.token(aud="elsewhere"),
        issuer.token(kid="unknown"),
        issuer.token() + "x",
    ]
    async with gateway_of(settings_of(tmp_path, token=TOKEN, oidc=oidc_of(issuer))) as running:
        statuses = [(await running.run("1", token=token))[0] for token in [*good, *bad]]

    log = "\n".join(str(vars(record)) for record in caplog.records if record.name.startswith(("kernelpool", "tornado")))
    assert statuses == [200] * 3 + [401] * 5
    assert "token refused" in log
    for token in [*good, *bad]:
        assert [part for part in [token, *token.split("."), token.split("_", 2)[-1]] if part in log] == []
