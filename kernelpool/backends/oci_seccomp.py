"""The system call policy as the JSON that container engines load."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any, Final

from kernelpool.backends.seccomp import ALLOW, LOW_32, POLICY, Checked, Is, Policy

_BITS: Final = 32

_OciEntry = dict[str, Any]


def oci_profile(rules: Policy = POLICY) -> dict[str, Any]:
    """An OCI `linux.seccomp` object, as Docker's `seccomp=` option and a node's localhost profile take it."""
    entries: list[_OciEntry] = [
        {"names": sorted(rules.allowed - rules.checked.keys()), "action": "SCMP_ACT_ALLOW"},
        {"names": sorted(rules.denied), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
    ]
    for name, checked in rules.checked.items():
        entries += [_oci_entry(name, tests) for tests in _allowed_cases(checked)]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": entries,
    }


def _oci_entry(name: str, tests: Iterable[Is]) -> _OciEntry:
    arguments = [
        {"index": test.argument, "value": test.mask, "valueTwo": test.value, "op": "SCMP_CMP_MASKED_EQ"}
        for test in tests
    ]
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": arguments}


def _allowed_cases(checked: Checked) -> list[tuple[Is, ...]]:
    """The same rule by allowed cases only, because libseccomp refuses rules of one call that contradict each other."""
    if checked.otherwise != ALLOW:
        return [clause.tests for clause in checked.clauses]
    # All but the denied cases. Those of one rule differ in their last test and, where they have two, in the first.
    by_first: dict[Is | None, list[Is]] = {}
    for clause in checked.clauses:
        *first, last = clause.tests
        by_first.setdefault(first[0] if first else None, []).append(last)
    cases: list[tuple[Is, ...]] = []
    for condition, denied in by_first.items():
        rest = _complement(denied[0].argument, [test.value for test in denied])
        cases += [(condition, test) if condition else (test,) for test in rest]
    conditions = [condition for condition in by_first if condition]
    if conditions:
        cases += [(test,) for test in _complement(conditions[0].argument, [test.value for test in conditions])]
    return cases


def _complement(argument: int, values: list[int]) -> list[Is]:
    """All 32-bit numbers but `values`, as the fewest prefixes: the way address ranges exclude addresses."""
    prefixes: list[Is] = []

    def split(prefix: int, length: int) -> None:
        mask = (LOW_32 << (_BITS - length)) & LOW_32
        if not any(value & mask == prefix for value in values):
            prefixes.append(Is(argument, prefix, mask))
        elif length < _BITS:
            split(prefix, length + 1)
            split(prefix | 1 << (_BITS - length - 1), length + 1)

    split(0, 0)
    return prefixes
