"""Schemathesis, against a real gateway: what the OpenAPI document allows is answered as it says, what it forbids is
refused, and nothing at all is a fault of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract_of_api import contract
from tests.e2e.gateways import TOKEN, VERSION, Gateway, Session
from tests.extra import extra

SECONDS = 90
EXCLUDED = {
    # A path or a timeout is valid only within what no schema can say: no "..", the pool's own limits, real base64.
    "positive_data_acceptance",
    # There is one user here. That tenants are kept apart has tests of its own.
    "object_level_authorization",
    # It takes a file of the same name in another directory, made after the deletion, for the deleted one.
    "use_after_free",
}
CHANGES_OF_POOLS = ["putPool", "patchPool", "deletePool"]
"""Left out: each pool that is made would start sandboxes, and the pool of all the other tests would change under them.
tests/api/test_management.py asks them what they take and what they refuse."""
CONFIGURATION = """
[parameters]
# Every other identifier would be a sandbox of its own, and the pool soon full.
identifier = "{identifier}"
api-version = "{version}"
"""


@extra
@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
def test_the_gateway_keeps_what_its_document_promises(gateway: Gateway, session: Session, tmp_path: Path) -> None:
    session.run("1")
    configuration = CONFIGURATION.format(identifier=session.identifier, version=VERSION)
    (tmp_path / "schemathesis.toml").write_text(configuration)

    # fmt: off
    done = subprocess.run(
        [
            sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()",
            "--config-file", "schemathesis.toml",
            "run", f"http://127.0.0.1:{gateway.port}/openapi.json",
            "--header", f"Authorization: Bearer {TOKEN}",
            # The same handlers behind another base path.
            "--exclude-path-regex", "^/subscriptions/",
            *(f"--exclude-operation-id={name}" for name in CHANGES_OF_POOLS),
            "--exclude-checks", ",".join(sorted(EXCLUDED)),
            "--seed", "1", "--max-examples", "5", "--max-time", str(SECONDS), "--request-timeout", "30",
            "--no-shrink", "--continue-on-failure", "--warnings", "off",
        ],
        cwd=tmp_path,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS + 90,
    )
    # fmt: on

    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    assert "✅ Stateful" in done.stdout, done.stdout[-2000:]
    # Where it reads the document is left out by itself.
    ours = [
        name
        for name, operation in contract().operations().items()
        if operation["operationId"] not in CHANGES_OF_POOLS
        and not name.endswith("/openapi.json")
        and " /subscriptions/" not in name
    ]
    assert f"Tested: {len(ours)}" in done.stdout, done.stdout[-2000:]
