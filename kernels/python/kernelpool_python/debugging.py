"""The debugger: ipykernel's, and not there before somebody asks for it. debugpy takes 100 ms and 8 MB."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipykernel.compiler import get_tmp_directory

if TYPE_CHECKING:
    from .kernel import SessionKernel


@contextmanager
def without_debugpy() -> Iterator[None]:
    """ipykernel looks whether debugpy can be imported, and by that imports it."""
    absent: Any = None
    sys.modules["debugpy"] = absent
    try:
        yield
    finally:
        del sys.modules["debugpy"]


class Debugging:
    """Used in the control thread only, which is where requests come in."""

    def __init__(self, kernel: SessionKernel) -> None:
        self._kernel = kernel
        self._debugger: Any = None
        self._telling: asyncio.Task[None] | None = None  # of the threads that have stopped

    async def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Never raises: a request without a reply would leave its client waiting for ever."""
        try:
            if self._debugger is None:
                self._debugger = self._load()
                self._telling = asyncio.create_task(self._kernel.tell_stops())
            if request.get("command") == "initialize":
                await self._listen()
            reply: dict[str, Any] = await self._debugger.process_request(request)
        except Exception as error:
            reply = {"success": False, "message": f"{type(error).__name__}: {error}"}
        facts = {"type": "response", "request_seq": request.get("seq"), "command": request.get("command")}
        return facts | reply

    def _load(self) -> Any:
        del sys.modules["ipykernel.debugger"]  # which has found that there is no debugpy
        from ipykernel.debugger import Debugger  # noqa: PLC0415

        kernel = self._kernel
        kernel.debugger = Debugger(
            kernel.log,
            kernel.debugpy_stream,
            kernel._publish_debug_event,
            kernel.debug_shell_socket,
            kernel.session,
            kernel._kernel_modules,
            kernel.debug_just_my_code,
            kernel.filter_internal_frames,
        )
        return kernel.debugger

    async def _listen(self) -> None:
        """As `Debugger.start` would by a cell of its own, for which it lets this thread wait. In the main thread, when
        nothing runs there: debugpy follows the threads that it finds."""
        if self._debugger.debugpy_initialized:
            return
        host, port = self._debugger.debugpy_client.get_host_port()
        loop = asyncio.get_running_loop()
        listens: asyncio.Future[None] = loop.create_future()

        def listen() -> None:
            try:
                Path(get_tmp_directory()).mkdir(mode=0o700, parents=True, exist_ok=True)
                import debugpy  # type: ignore[import-untyped]  # noqa: PLC0415

                debugpy.listen((host, int(port)))
            except Exception as error:
                loop.call_soon_threadsafe(listens.set_exception, error)
            else:
                loop.call_soon_threadsafe(listens.set_result, None)

        self._kernel.io_loop.add_callback(listen)
        await listens
        self._debugger.debugpy_initialized = True
