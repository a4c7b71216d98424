"""The executions of a session by id, and the memory that they take: bounded in sum, the oldest finished go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from kernelpool.agent.run import Run
from kernelpool.errors import Conflict, ExecutionNotFound

MAX_FORGOTTEN = 20_000
"""Ids remembered after their outputs were dropped, so that they still never run twice."""


class History:
    """Remembers runs. `on_forget` is called with each that is forgotten."""

    def __init__(self, most: int, most_bytes: int, on_forget: Callable[[Run], None]) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._on_forget = on_forget
        # The mutable state: every run, what each was last seen to take, their sum, and the ids of those before.
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._memory: dict[str, int] = {}
        self.memory = 0
        self._forgotten: OrderedDict[str, None] = OrderedDict()
        self.count = 0
        """How many there ever were."""

    def __repr__(self) -> str:
        return f"<History [{len(self._runs)} runs, {self.memory} bytes, {len(self._forgotten)} forgotten]>"

    def find(self, id: str) -> Run | None:
        """Raises `Conflict` when it ran so long ago that its outputs are no longer kept."""
        if id in self._forgotten:
            raise Conflict(f"execution {id} has run already, and its outputs are no longer kept; use another id")
        return self._runs.get(id)

    def get(self, id: str) -> Run:
        """Raises `ExecutionNotFound`."""
        try:
            return self._runs[id]
        except KeyError:
            raise ExecutionNotFound(f"no execution {id} in this session") from None

    def after(self, number: int) -> Iterator[Run]:
        """Those that are kept, oldest first, each as long as it is kept when its turn comes: readers may be slow."""
        for id in [run.id for run in self._runs.values() if run.number > number]:
            if run := self._runs.get(id):
                yield run

    def add(self, run: Run) -> None:
        self.count += 1
        run.number = self.count
        self._runs[run.id] = run
        self._memory[run.id] = 0
        self.weigh(run)

    def weigh(self, run: Run) -> None:
        """To be called whenever something of a run has changed, also after its end: a thread may go on printing."""
        if self._runs.get(run.id) is not run:
            return
        memory = run.memory
        self.memory += memory - self._memory[run.id]
        self._memory[run.id] = memory
        while len(self._runs) > self._most or self.memory > self._most_bytes:
            oldest = next((run for run in self._runs.values() if run.state.is_final), None)
            if oldest is None:
                return
            self._forget(oldest)

    def _forget(self, run: Run) -> None:
        del self._runs[run.id]
        self.memory -= self._memory.pop(run.id)
        self._forgotten[run.id] = None
        if len(self._forgotten) > MAX_FORGOTTEN:
            self._forgotten.popitem(last=False)
        self._on_forget(run)
