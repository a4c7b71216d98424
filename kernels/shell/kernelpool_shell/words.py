"""What a shell can say about code without running it: whether it is complete, and how a word may go on."""

from __future__ import annotations

import re
import shlex
import subprocess

SECONDS = 2.0
NEAR = 4096
"""Characters before the cursor that are looked at: what is looked for takes the square of them."""
_WORD = re.compile(r"[^\s;|&<>()'\"`=]*$")
_FIRST = re.compile(r"(^|[;|&(`\n]|\bdo\b|\bthen\b|\belse\b)\s*$")
_UNFINISHED = re.compile(r"unexpected (end of file|EOF)|here-document .* delimited by end-of-file")


def completeness(code: str) -> str:
    """complete, incomplete or invalid, as Jupyter has it."""
    try:
        checked = subprocess.run(
            ["/bin/bash", "-n"], input=code.encode(errors="replace"), capture_output=True, timeout=SECONDS, check=False
        )
    except (subprocess.TimeoutExpired, OSError):  # there may be no process to be had
        return "unknown"
    if _UNFINISHED.search(checked.stderr.decode(errors="replace")):
        return "incomplete"
    return "invalid" if checked.returncode else "complete"


def question(code: str, position: int) -> tuple[str, int]:
    """Code whose output are the completions of the word at the position, one a line; and where that word begins. It
    does not fail when there are none: the shell may be one that `set -e` ends."""
    position = min(max(position, 0), len(code))
    left = max(0, position - NEAR)
    before = code[left:position]
    start = _WORD.search(before).start()  # type: ignore[union-attr] - it matches nothing, too
    word = before[start:]
    if word.startswith("$"):
        return f"compgen -v -P '$' -- {shlex.quote(word[1:].removeprefix('{'))} || :", left + start
    quoted = shlex.quote(word)
    names = f"compgen -A alias -A keyword -A builtin -A function -A command -- {quoted}; "
    commands = names if _FIRST.search(before[:start]) and "/" not in word and word else ""
    return f"{{ {commands}compgen -d -S / -- {quoted}; compgen -f -- {quoted}; }} 2>/dev/null || :", left + start


def matches_of(answer: str) -> list[str]:
    """Each once. A folder is there with and without its slash; with it is enough."""
    found = dict.fromkeys(answer.splitlines())
    return [name for name in found if f"{name}/" not in found]
