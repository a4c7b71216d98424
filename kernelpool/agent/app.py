"""The agent's HTTP interface: the routes that kernelpool/agents/http.py calls. Every one needs the sandbox's secret.

GET    /v1/status
POST   /v1/activate                         Activation; 409 the second time
GET    /v1/executions?after=N&limit=M&outputs=0|1   one KeptExecution as JSON a line, oldest first; at last their count
POST   /v1/executions?wait=0|1              ExecuteRequest → Execution, at once or at the end
GET    /v1/executions/{id}
GET    /v1/executions/{id}/events?after=N   one JSON event a line; an empty line is a keep-alive
POST   /v1/executions/{id}/cancel
GET    /v1/kernel                           KernelState
POST   /v1/kernel/interrupt
POST   /v1/kernel/restart                   → KernelState, when a fresh one is ready
GET    /v1/channels?session_id=&last_msg_id=   a Jupyter client: WebSocket, in its v1 framing
GET    /v1/files?path=&recursive=0|1
GET    /v1/file?path=                       FileInfo
DELETE /v1/file?path=
GET    /v1/file/content?path=               Range as in RFC 9110, one range; its start may be negative, too
PUT    /v1/file/content?path=               → FileInfo
"""

from __future__ import annotations

import asyncio
import time
from itertools import islice

from tornado.web import Application

from kernelpool.agent.base import ActivatedHandler, Handler, NoRoute, Sandbox, encode
from kernelpool.agent.files import ContentHandler, FileHandler, FilesHandler
from kernelpool.agent.jupyter import ChannelsHandler, InterruptHandler, Jupyter, KernelHandler, RestartHandler
from kernelpool.agent.run import Run
from kernelpool.errors import Conflict
from kernelpool.models import Activation, AgentStatus, ExecuteRequest
from kernelpool.protocol.framing import MAX_FRAME

KEEP_ALIVE = 5.0
"""Seconds between signs of life on an answer that takes long."""


class StatusHandler(Handler):
    def get(self) -> None:
        cpu_seconds, memory_bytes = self.sandbox.usage.read()
        sandbox, executions = self.sandbox, self.sandbox.executions
        busy = executions.running or executions.queued or sandbox.transfers.count
        self.finish(
            encode(
                AgentStatus(
                    ready=executions.kernel.is_ready,
                    activated=sandbox.lease.activation is not None,
                    running=executions.running,
                    queued=executions.queued,
                    idle_seconds=0.0 if busy else time.monotonic() - executions.last_activity,
                    failure=executions.kernel.failure,
                    workspace_bytes=sandbox.workspace.used_bytes,
                    cpu_seconds=cpu_seconds,
                    memory_bytes=memory_bytes,
                )
            )
        )


class ActivateHandler(Handler):
    def post(self) -> None:
        activation = self.body(Activation)
        if not self.sandbox.lease.activate(activation):
            raise Conflict("this sandbox was activated before")
        self.sandbox.executions.touch()
        if activation.notice:
            self.sandbox.executions.note_loss(activation.notice)
        self.set_status(204)


class ExecutionsHandler(ActivatedHandler):
    async def get(self) -> None:
        after = int(self.get_query_argument("after", "0"))
        limit = int(self.get_query_argument("limit", "1000"))
        outputs = self.get_query_argument("outputs", "0") == "1"
        executions = self.sandbox.executions
        self.set_header("Content-Type", "application/x-ndjson")
        for run in islice(executions.after(after), limit):
            self.write(encode(run.keep(outputs=outputs)) + b"\n")
            await self.flush()
        await self.finish(encode({"count": executions.count}) + b"\n")

    async def post(self) -> None:
        run = self.sandbox.executions.submit(self.body(ExecuteRequest))
        if self.get_query_argument("wait", "0") == "1":
            await self._keep_alive_until_finished(run)
        await self.finish(encode(run.look()))

    async def _keep_alive_until_finished(self, run: Run) -> None:
        """White space before the JSON says that we live."""
        while not run.finished.is_set():
            try:
                async with asyncio.timeout(KEEP_ALIVE):
                    await run.finished.wait()
            except TimeoutError:
                self.write(b"\n")
                await self.flush()


class ExecutionHandler(ActivatedHandler):
    def get(self, id: str) -> None:
        self.finish(encode(self.sandbox.executions.get(id).look()))


class EventsHandler(ActivatedHandler):
    async def get(self, id: str) -> None:
        run = self.sandbox.executions.get(id)
        self.set_header("Content-Type", "application/x-ndjson")
        async for event in run.events(int(self.get_query_argument("after", "-1")), KEEP_ALIVE):
            self.write(b"\n" if event is None else encode(event) + b"\n")
            await self.flush()


class CancelHandler(ActivatedHandler):
    async def post(self, id: str) -> None:
        run = await self.sandbox.executions.cancel(id)
        await self.finish(encode(run.look()))


def make_app(sandbox: Sandbox, jupyter: Jupyter) -> Application:
    shared = {"sandbox": sandbox}
    id = r"([A-Za-z0-9._:~-]{1,128})"
    return Application(
        [
            (r"/v1/status", StatusHandler, shared),
            (r"/v1/activate", ActivateHandler, shared),
            (r"/v1/executions", ExecutionsHandler, shared),
            (rf"/v1/executions/{id}", ExecutionHandler, shared),
            (rf"/v1/executions/{id}/events", EventsHandler, shared),
            (rf"/v1/executions/{id}/cancel", CancelHandler, shared),
            (r"/v1/kernel", KernelHandler, shared),
            (r"/v1/kernel/interrupt", InterruptHandler, shared),
            (r"/v1/kernel/restart", RestartHandler, shared),
            (r"/v1/channels", ChannelsHandler, {**shared, "jupyter": jupyter}),
            (r"/v1/files", FilesHandler, shared),
            (r"/v1/file", FileHandler, shared),
            (r"/v1/file/content", ContentHandler, shared),
        ],
        default_handler_class=NoRoute,
        default_handler_args=shared,
        log_function=lambda _handler: None,
        websocket_max_message_size=MAX_FRAME,
        # A gateway that is gone without a word takes its clients along.
        websocket_ping_interval=30,
    )
