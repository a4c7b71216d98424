"""What a thread prints or displays belongs to the cell that started it, also when that cell is over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ipykernel.zmqshell import ZMQInteractiveShell


def follow(shell: ZMQInteractiveShell) -> None:
    start = threading.Thread.start
    submit = ThreadPoolExecutor.submit

    def start_for_parent(self: threading.Thread) -> None:
        parent = shell.get_parent()
        run = self.run

        def run_for_parent() -> None:
            self.__dict__.pop("run", None)  # a thread does not keep its target alive
            shell.set_thread_parent(parent)
            run()

        if parent:
            self.run = run_for_parent  # type: ignore[method-assign]
        start(self)

    # The threads of an executor outlive the cell that made it: there it is the submitting cell that counts.
    def submit_for_parent(
        self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Future[Any]:
        return submit(self, _for_parent, shell, shell.get_parent(), fn, args, kwargs)

    threading.Thread.start = start_for_parent  # type: ignore[method-assign]
    ThreadPoolExecutor.submit = submit_for_parent  # type: ignore[method-assign, assignment]


def _for_parent(shell: ZMQInteractiveShell, parent: Any, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    if parent:
        shell.set_thread_parent(parent)
    return fn(*args, **kwargs)
