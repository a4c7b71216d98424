"""`asyncio.run()` and `loop.run_until_complete()` in a cell, where a loop is running already.

`nest_asyncio2` makes loops re-entrant by replacing asyncio's tasks with slower ones, so it is
applied by the first call that needs it.
"""

from __future__ import annotations

import asyncio
import asyncio.events
import sys
from typing import Any

import nest_asyncio2  # type: ignore[import-untyped]


def install() -> None:
    run = asyncio.run
    loop_class: Any = asyncio.SelectorEventLoop
    run_until_complete = loop_class.run_until_complete
    reentrant = False

    def run_nested(*args: Any, **kwargs: Any) -> Any:
        if asyncio.events._get_running_loop() is None:
            return run(*args, **kwargs)
        _make_reentrant()
        return asyncio.run(*args, **kwargs)

    def run_until_complete_nested(self: asyncio.SelectorEventLoop, future: Any) -> Any:
        if asyncio.events._get_running_loop() is None:
            return run_until_complete(self, future)
        _make_reentrant()
        return self.run_until_complete(future)

    def _make_reentrant() -> None:
        nonlocal reentrant
        if reentrant:
            return
        reentrant = True
        asyncio.run = run
        loop_class.run_until_complete = run_until_complete
        nest_asyncio2.apply()

    asyncio.run = run_nested
    loop_class.run_until_complete = run_until_complete_nested
    # Code written for notebooks applies the older package by name; it does not know the loop of this kernel.
    sys.modules.setdefault("nest_asyncio", nest_asyncio2)
