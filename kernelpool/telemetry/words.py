"""Words for labels: what happened, from sets that nobody outside can add to."""

from __future__ import annotations

from kernelpool.models import EndCause, Execution

OUTCOMES = {
    EndCause.COMPLETED: "succeeded",
    EndCause.RAISED: "failed",
    EndCause.TIMED_OUT: "timed_out",
    EndCause.CANCELED: "canceled",
    EndCause.KERNEL_DIED: "kernel_died",
}
# How the agent's sentence on the end of a kernel begins, and the word for it.
_DEATHS = [
    ("the kernel was killed", "killed"),
    ("the kernel crashed", "crashed"),
    ("the kernel exited", "exited"),
    ("the kernel was restarted", "restarted"),
    ("no kernel could be started", "not_started"),
]


def outcome(execution: Execution) -> str:
    """How it ended, or where it stands."""
    return execution.state.value if execution.cause is None else OUTCOMES[execution.cause]


def cause_of_death(execution: Execution) -> str | None:
    """When its kernel ended with it."""
    if execution.state_lost_during is None and execution.cause is not EndCause.KERNEL_DIED:
        return None
    text = execution.state_lost_during or execution.message or ""
    return next((word for beginning, word in _DEATHS if text.startswith(beginning)), "other")
