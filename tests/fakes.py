"""Fakes for our own interfaces, in memory: a backend, its sandboxes, and an agent that runs simple Python."""

from __future__ import annotations

import ast
import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from kernelpool.agents import Agent, Channels, FileContent
from kernelpool.agents.base import MAX_LISTED
from kernelpool.backends.base import Finding, RuntimeMetadata, Sandbox, SandboxSpec, Say, UnixAddress
from kernelpool.errors import (
    Conflict,
    ExecutionNotFound,
    ExecutionQueueFull,
    FileNotFound,
    InvalidRequest,
    RangeNotSatisfiable,
    SandboxLost,
    StartFailed,
)
from kernelpool.models import (
    Activation,
    AgentConfig,
    AgentStatus,
    EndCause,
    ErrorOutput,
    Event,
    EventKind,
    ExecuteRequest,
    Execution,
    ExecutionState,
    FileInfo,
    KeptExecution,
    KernelPhase,
    KernelState,
    Origin,
    Output,
    ResultOutput,
    StreamOutput,
    WorkspacePath,
)
from kernelpool.runtimes import Runtime
from tests.fake_channels import FakeChannels, FakeHub

R = TypeVar("R")

RUNTIME = Runtime("python", "python", "Python 3", Path("kernels/python"), ("python", "-f", "{connection_file}"))
METADATA = RuntimeMetadata("Python", "3.11", (), 1.0, "ipykernel", "7.4")
CONFIG = AgentConfig(secret="secret", kernel_argv=RUNTIME.argv)


class _Yielding(ast.NodeTransformer):
    """Makes code that would block wait instead: `time.sleep(n)` and the turns of a `while` are awaited."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if ast.unparse(node.func) == "time.sleep":
            return ast.Await(ast.Call(ast.Name("__sleep__", ast.Load()), node.args, []))
        return node

    def visit_While(self, node: ast.While) -> ast.AST:
        self.generic_visit(node)
        node.body.append(ast.parse("await __sleep__(0.01)").body[0])
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node


class FakeKernel:
    """Variables, and code that runs on them. One piece at a time."""

    def __init__(self) -> None:
        self.count = 0
        self._variables: dict[str, Any] = {}
        self.restart()

    def restart(self) -> None:
        self.count = 0
        self._variables = {"__sleep__": asyncio.sleep}

    async def run(self, code: str, put: Callable[[Output], None]) -> bool:
        """False when the code raised. An interrupt is a cancel."""
        self.count += 1
        self._variables["print"] = lambda *values: put(StreamOutput("stdout", " ".join(map(str, values)) + "\n"))
        try:
            value = await self._evaluate(ast.parse(code))
        except Exception as error:
            put(ErrorOutput(type(error).__name__, str(error), (repr(error),)))
            return False
        if value is not None:
            put(ResultOutput({"text/plain": repr(value)}, execution_count=self.count))
        return True

    async def _evaluate(self, tree: ast.Module) -> Any:
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            tree.body[-1] = ast.Assign([ast.Name("__value__", ast.Store())], tree.body[-1].value)
        self._variables["__value__"] = None
        tree = ast.fix_missing_locations(_Yielding().visit(tree))
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        outcome = eval(compile(tree, "<cell>", "exec", flags=flags), self._variables)
        if inspect.iscoroutine(outcome):
            await outcome
        return self._variables.pop("__value__")


class _Run:
    """One execution: what is known of it, and its events."""

    def __init__(self, request: ExecuteRequest) -> None:
        self.request = request
        self.execution = Execution(
            request.id, ExecutionState.QUEUED, time.time(), origin=request.origin, kind=request.kind
        )
        self.events: list[Event] = []
        self.changed = asyncio.Condition()
        self.task: asyncio.Task[None] | None = None
        self.cause = EndCause.CANCELED
        self.parent: dict[str, Any] = {"msg_id": request.id, "msg_type": "execute_request", "session": ""}
        """The header of the message that asked for it, if one did."""
        self.client: str | None = None

    def emit(self, kind: EventKind, data: dict[str, Any]) -> None:
        self.events.append(Event(len(self.events), kind, data))

    def put(self, output: Output) -> None:
        self.execution = replace(self.execution, outputs=(*self.execution.outputs, output))
        self.emit("output", asdict(output))

    async def move(self, **changes: Any) -> None:
        self.execution = replace(self.execution, **changes)
        self.emit("state", {"state": self.execution.state.value})
        if self.execution.state.is_final:
            self.emit("done", {"id": self.execution.id, "state": self.execution.state.value})
        async with self.changed:
            self.changed.notify_all()


class FakeProcess:
    """The agent's program: it lives in the sandbox, whoever is connected."""

    def __init__(self, config: AgentConfig = CONFIG) -> None:
        self.config = config
        self.kernel = FakeKernel()
        self.activation: Activation | None = None
        self.runs: dict[str, _Run] = {}
        self.files: dict[str, tuple[bytes, float]] = {}
        self.hub = FakeHub()
        self.restarts = 0
        self.pings = 0
        self.dead: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.ready = asyncio.Event()
        self.may_activate = asyncio.Event()
        self.ready.set()
        self.may_activate.set()
        self.silent = False
        """Alive, but does not answer."""
        self.breaks = 0
        """Calls that the connection breaks under, although it lives."""
        self.status_error: Exception | None = None
        """What asking for its status raises: nothing that the contract knows."""
        self.status_said: AgentStatus | None = None
        """What a hostile agent says instead of the truth."""
        self._turn = asyncio.Lock()
        self._notice: str | None = None
        self._active_at = self._now()

    def die(self, why: str = "killed") -> None:
        if not self.dead.done():
            self.dead.set_result(why)
        for run in self.runs.values():
            if run.task is not None:
                run.task.cancel()

    def activate(self, activation: Activation) -> None:
        if self.activation is not None:
            raise Conflict("the sandbox is activated already")
        self.activation = activation
        self._notice = activation.notice
        self._active_at = self._now()

    def status(self) -> AgentStatus:
        if self.status_error is not None:
            raise self.status_error
        if self.status_said is not None:
            return self.status_said
        states = [run.execution.state for run in self.runs.values()]
        running, queued = states.count(ExecutionState.RUNNING), states.count(ExecutionState.QUEUED)
        return AgentStatus(
            ready=self.ready.is_set(),
            activated=self.activation is not None,
            running=running,
            queued=queued,
            idle_seconds=0.0 if running or queued else self._now() - self._active_at,
            workspace_bytes=sum(len(data) for data, _ in self.files.values()),
        )

    def submit(self, request: ExecuteRequest) -> _Run:
        if self.activation is None:
            raise Conflict("the sandbox is not activated")
        if (known := self.runs.get(request.id)) is not None:
            return known
        waiting = sum(run.execution.state is ExecutionState.QUEUED for run in self.runs.values())
        if waiting > self.config.queue_size:
            raise ExecutionQueueFull(f"{waiting} executions wait already")
        run = self.runs[request.id] = _Run(request)
        run.task = asyncio.create_task(self._run(run))
        return run

    def run_of(self, id: str) -> _Run:
        if id not in self.runs:
            raise ExecutionNotFound(f"There is no execution '{id}'.")
        return self.runs[id]

    async def _run(self, run: _Run) -> None:
        try:
            if run.request.command is not None:
                await self._command(run)
                return
            async with self._turn:
                lost = None
                if run.client is None:  # Jupyter clients see the restart
                    lost, self._notice = self._notice, None
                count = self.kernel.count + 1
                await run.move(
                    state=ExecutionState.RUNNING, started_at=time.time(), execution_count=count, state_lost_before=lost
                )
                self.hub.begin(run.parent, run.request.code, count)
                async with asyncio.timeout(run.request.timeout):
                    succeeded = await self.kernel.run(run.request.code, partial(self._put, run))
            state = ExecutionState.SUCCEEDED if succeeded else ExecutionState.FAILED
            cause = EndCause.COMPLETED if succeeded else EndCause.RAISED
            await self._finish(run, state, cause)
        except TimeoutError:
            await self._finish(run, ExecutionState.FAILED, EndCause.TIMED_OUT)
        except asyncio.CancelledError:
            await self._finish(run, ExecutionState.CANCELED, EndCause.CANCELED)

    async def _command(self, run: _Run) -> None:
        """Knows `echo`, `sleep` and `exit`, one after the other. Waits for nothing that runs."""
        await run.move(state=ExecutionState.RUNNING, started_at=time.time())
        words = run.request.command.arguments if run.request.command else ()
        code = 0
        async with asyncio.timeout(run.request.timeout):
            for name, *rest in [list(words)] if words else map(str.split, run.request.code.split(";")):
                if name == "echo":
                    run.put(StreamOutput("stdout", " ".join(rest) + "\n"))
                elif name == "sleep":
                    await asyncio.sleep(float(rest[0]))
                elif name == "exit":
                    code = int(rest[0])
        state, cause = (
            (ExecutionState.FAILED, EndCause.RAISED) if code else (ExecutionState.SUCCEEDED, EndCause.COMPLETED)
        )
        await self._finish(run, state, cause, exit_code=code)

    def _put(self, run: _Run, output: Output) -> None:
        run.put(output)
        self.hub.output(run.parent, asdict(output))

    def state(self) -> KernelState:
        status = self.status()
        phase = KernelPhase.BUSY if status.running else KernelPhase.IDLE
        return KernelState(phase, time.time(), len(self.hub.clients), self.restarts, status.queued)

    def interrupt(self) -> None:
        for run in self.runs.values():
            if run.task is not None and run.execution.state is ExecutionState.RUNNING:
                run.task.cancel()

    async def restart(self) -> KernelState:
        self.interrupt()
        self.restarts += 1
        self.kernel.restart()
        self._notice = "the kernel was restarted on request"
        self.hub.publish("status", {"execution_state": "restarting"})
        await asyncio.sleep(0)
        return self.state()

    def receive(self, client: str, header: dict[str, Any], content: dict[str, Any]) -> None:
        """An `execute_request` of a Jupyter client."""
        request = ExecuteRequest(f"jupyter-{header['msg_id']}", content["code"], 3600, origin=Origin.JUPYTER)
        if request.id not in self.runs:
            run = self.submit(request)
            run.parent, run.client = header, client

    async def _finish(self, run: _Run, state: ExecutionState, cause: EndCause, **facts: Any) -> None:
        self._active_at = self._now()
        interrupted = cause is not EndCause.COMPLETED and run.execution.state is ExecutionState.RUNNING
        interrupted = interrupted and cause is not EndCause.RAISED
        await run.move(state=state, cause=cause, finished_at=time.time(), interrupted=interrupted, **facts)
        self.hub.end(run.parent, run.client, run.execution)

    def touch(self) -> None:
        self._active_at = self._now()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


class FakeAgent:
    """A connection to a `FakeProcess`, which survives it."""

    def __init__(self, process: FakeProcess) -> None:
        self._process = process
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait_ready(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._answer(self._process.ready.wait())
        except TimeoutError:
            raise StartFailed(f"the agent was not ready within {timeout:g} s") from None

    async def status(self) -> AgentStatus:
        await self._reach()
        self._process.pings += 1
        return self._process.status()

    async def activate(self, activation: Activation) -> None:
        await self._reach()
        await self._answer(self._process.may_activate.wait())
        self._process.activate(activation)

    async def execute(self, request: ExecuteRequest) -> Execution:
        await self._reach()
        return await self._answer(self._end_of(self._process.submit(request)))

    async def submit(self, request: ExecuteRequest) -> Execution:
        await self._reach()
        return self._process.submit(request).execution

    async def events(self, id: str, after: int = -1) -> AsyncIterator[Event | None]:
        await self._reach()
        run = self._process.run_of(id)
        seen = after + 1
        while True:
            for event in run.events[seen:]:
                seen += 1
                yield event
                if event.kind == "done":
                    return
            if seen > len(run.events) or run.execution.state.is_final:
                return
            await self._answer(self._next_event(run, seen))

    async def execution(self, id: str) -> Execution:
        await self._reach()
        return self._process.run_of(id).execution

    async def executions(
        self, after: int = 0, *, limit: int = MAX_LISTED, outputs: bool = False
    ) -> AsyncIterator[KeptExecution | int]:
        await self._reach()
        runs = list(self._process.runs.values())
        for number, run in list(enumerate(runs, 1))[after : after + limit]:
            look = run.execution if outputs else replace(run.execution, outputs=())
            yield KeptExecution(number, run.request.code, look, run.request.cell)
        yield len(runs)

    async def cancel(self, id: str) -> Execution:
        await self._reach()
        run = self._process.run_of(id)
        if run.task is not None and not run.execution.state.is_final:
            await asyncio.sleep(0)  # a task that never ran would end without a word
            run.task.cancel()
        return await self._answer(self._end_of(run))

    async def kernel(self) -> KernelState:
        await self._reach()
        return self._process.state()

    async def interrupt(self) -> None:
        await self._reach()
        self._process.interrupt()

    async def restart(self) -> KernelState:
        await self._reach()
        return await self._answer(self._process.restart())

    @asynccontextmanager
    async def channels(self, session_id: str = "", last_msg_id: str | None = None) -> AsyncIterator[Channels]:
        await self._reach()
        if len(session_id) > 256 or len(last_msg_id or "") > 256:
            raise InvalidRequest("session_id and last_msg_id must have at most 256 characters")
        if self._process.activation is None:
            raise Conflict("the sandbox is not activated")
        channels = FakeChannels(self._process.hub, session_id, last_msg_id, self._process, self._reach)
        try:
            yield channels
        finally:
            channels.close()

    async def list_files(self, path: WorkspacePath, *, recursive: bool = False) -> Sequence[FileInfo]:
        await self._reach()
        infos = self._tree()
        if path.text and path.text not in infos:
            raise FileNotFound(f"There is no '{path.text}'.")
        if path.text and not infos[path.text].is_directory:
            raise InvalidRequest(f"'{path.text}' is no directory.")
        below = [info for info in infos.values() if not path.text or info.path.startswith(path.text + "/")]
        return [info for info in below if recursive or info.directory == (path.text or ".")]

    async def file_info(self, path: WorkspacePath) -> FileInfo:
        await self._reach()
        try:
            return self._tree()[path.text]
        except KeyError:
            raise FileNotFound(f"There is no '{path.text}'.") from None

    @asynccontextmanager
    async def read_file(
        self, path: WorkspacePath, start: int | None = None, stop: int | None = None
    ) -> AsyncIterator[FileContent]:
        info = await self.file_info(path)
        if info.is_directory:
            raise InvalidRequest(f"'{path.text}' is a directory.")
        begin = 0 if start is None else start if start >= 0 else max(0, info.size + start)
        end = info.size if stop is None else min(stop, info.size)
        if begin > end or (start is not None and begin >= info.size):
            raise RangeNotSatisfiable(f"'{path.text}' has {info.size} bytes.")
        data = self._process.files[path.text][0][begin:end]
        yield FileContent(info, begin, end, self._chunks(data))

    async def write_file(self, path: WorkspacePath, chunks: AsyncIterator[bytes]) -> FileInfo:
        await self._reach()
        try:
            data = b"".join([chunk async for chunk in chunks])
        except Exception as error:
            # A real connection breaks when its source does, and cannot tell one from the other.
            raise SandboxLost("the connection to the agent broke") from error
        self._process.files[path.text] = (data, time.time())
        self._process.touch()
        return await self.file_info(path)

    async def delete_file(self, path: WorkspacePath) -> None:
        await self.file_info(path)
        for name in [name for name in self._process.files if name == path.text or name.startswith(path.text + "/")]:
            del self._process.files[name]

    async def aclose(self) -> None:
        if not self._closed.done():
            self._closed.set_result(None)

    def _tree(self) -> dict[str, FileInfo]:
        infos: dict[str, FileInfo] = {}
        for path, (data, modified_at) in sorted(self._process.files.items()):
            parts = path.split("/")
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                infos.setdefault(folder, FileInfo(folder, True, 0, modified_at))
            infos[path] = FileInfo(path, False, len(data), modified_at)
        return infos

    @staticmethod
    async def _chunks(data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), 4096):
            yield data[start : start + 4096]

    @staticmethod
    async def _end_of(run: _Run) -> Execution:
        async with run.changed:
            await run.changed.wait_for(lambda: run.execution.state.is_final)
        return run.execution

    @staticmethod
    async def _next_event(run: _Run, seen: int) -> None:
        async with run.changed:
            await run.changed.wait_for(lambda: len(run.events) > seen)

    async def _reach(self) -> None:
        await asyncio.sleep(0)  # as a real one, it never answers in the same tick
        if self._closed.done():
            raise SandboxLost("used after aclose")
        if self._process.silent or self._process.dead.done():
            raise SandboxLost("no answer")
        if self._process.breaks:
            self._process.breaks -= 1
            raise SandboxLost("the connection broke")

    async def _answer(self, work: Awaitable[R] | Coroutine[Any, Any, R]) -> R:
        """Cut short when the process dies or the connection is closed meanwhile."""
        answer = asyncio.ensure_future(work)
        try:
            await asyncio.wait((answer, self._process.dead, self._closed), return_when=asyncio.FIRST_COMPLETED)
            if self._process.dead.done() or self._closed.done():
                raise SandboxLost("the connection to the agent broke")
            return await answer
        finally:
            answer.cancel()


class FakeSandbox:
    def __init__(self, backend: FakeBackend, spec: SandboxSpec) -> None:
        self.spec = spec
        self.process = FakeProcess(spec.agent)
        self.id = spec.id
        self.pool = spec.pool
        self.fingerprint = spec.fingerprint
        self.created_at = time.time()
        self.egress = spec.egress
        self.address = UnixAddress(f"/nowhere/{spec.id}")
        self.secret = spec.agent.secret
        self._backend = backend

    def __repr__(self) -> str:
        return f"<FakeSandbox {self.id}>"

    async def wait_dead(self) -> str:
        return await asyncio.shield(self.process.dead)

    async def destroy(self) -> None:
        await self._backend.may_destroy.wait()
        if self._backend.is_stuck:
            raise OSError("device or resource busy")
        self.process.die("destroyed")
        self._backend.sandboxes.pop(self.id, None)


class FakeBackend:
    """Sandboxes that outlive a gateway as long as this object lives. Its knobs are public."""

    name = "fake"

    def __init__(self) -> None:
        self.sandboxes: dict[str, FakeSandbox] = {}
        """Those that have not been destroyed."""
        self.created: list[FakeSandbox] = []
        self.creating = 0
        self.most_creating = 0
        self.failing = 0
        """How many of the next starts fail."""
        self.is_stuck = False
        """Nothing can be destroyed."""
        self.may_create = asyncio.Event()
        self.may_destroy = asyncio.Event()
        self.may_create.set()
        self.may_destroy.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    async def check(self, spec: SandboxSpec) -> Sequence[Finding]:
        return [Finding("isolation", True, "in memory", "in memory")]

    async def prepare(self, runtime: Runtime, say: Say) -> RuntimeMetadata:
        return METADATA

    async def create(self, spec: SandboxSpec) -> Sandbox:
        self.creating += 1
        self.most_creating = max(self.most_creating, self.creating)
        try:
            await self.may_create.wait()
            await asyncio.sleep(0)
        finally:
            self.creating -= 1
        if self.failing:
            self.failing -= 1
            raise StartFailed("no space left for a sandbox")
        sandbox = FakeSandbox(self, spec)
        self.sandboxes[sandbox.id] = sandbox
        self.created.append(sandbox)
        return sandbox

    async def adopt(self) -> Sequence[Sandbox]:
        for id in [id for id, sandbox in self.sandboxes.items() if sandbox.process.dead.done()]:
            del self.sandboxes[id]
        return list(self.sandboxes.values())

    def connect(self, sandbox: Sandbox) -> Agent:
        assert isinstance(sandbox, FakeSandbox)
        return FakeAgent(sandbox.process)
