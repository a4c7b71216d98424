"""What becomes of a sandbox that an earlier gateway left behind, as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernelpool.journal import Record
from kernelpool.models import AgentStatus
from kernelpool.recovery import Fate, fate

RECORD = Record(
    sandbox="0123456789ab", pool="default", tenant="t", identifier="user", session="s", created_at=1_000_000.0
)
USED = AgentStatus(True, True, 0, 0, 1.0)
FRESH = replace(USED, activated=False)


@pytest.mark.parametrize(
    ("record", "status", "is_current", "expected"),
    [
        pytest.param(RECORD, USED, True, Fate.SESSION, id="a session goes on"),
        pytest.param(RECORD, USED, False, Fate.SESSION, id="also when the settings have changed"),
        pytest.param(RECORD, replace(USED, ready=False), True, Fate.SESSION, id="also while its kernel restarts"),
        pytest.param(RECORD, FRESH, True, Fate.DESTROY, id="a record, and never activated: the start was cut short"),
        pytest.param(RECORD, None, True, Fate.DESTROY, id="a session that does not answer"),
        pytest.param(
            RECORD.model_copy(update={"ended": "it was stopped"}), USED, True, Fate.DESTROY, id="one that ended"
        ),
        pytest.param(RECORD.model_copy(update={"pool": "x"}), USED, True, Fate.DESTROY, id="a record of another pool"),
        pytest.param(None, FRESH, True, Fate.READY, id="a ready one stands ready again"),
        pytest.param(None, FRESH, False, Fate.DESTROY, id="not when the settings have changed"),
        pytest.param(None, replace(FRESH, ready=False), True, Fate.DESTROY, id="not when it was still starting"),
        pytest.param(None, USED, True, Fate.DESTROY, id="used, and nobody knows by whom"),
        pytest.param(None, None, True, Fate.DESTROY, id="nobody's and silent"),
    ],
)
def test_its_fate(record: Record | None, status: AgentStatus | None, is_current: bool, expected: Fate) -> None:
    assert fate(record, status, pool="default", is_current=is_current) is expected
