"""The kernel: ipykernel's, without a thread between it and its requests, and with a reply to each of them."""

from __future__ import annotations

import _thread
import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import isawaitable
from signal import SIG_IGN, SIGINT, default_int_handler, pthread_kill, signal
from types import FrameType
from typing import Any

from ipykernel.ipkernel import IPythonKernel
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Float, Type

from .debugging import Debugging
from .shell import ZMQSessionShell
from .streams import Streams
from .subshells import ON_CONTROL, Replies, Subshell, Subshells, in_main_thread

_INSIST_SECONDS = 0.05


class NoShellChannelThread:
    """Requests are read by the main thread. ipykernel asks whether there is such a thread, and which is its parent.

    Requests to subshells cannot be read while the main thread is busy: they come on control, see `subshells`.
    """

    parent_thread = threading.main_thread()

    def __bool__(self) -> bool:
        return False


class SessionKernel(IPythonKernel):
    shell_class = Type(ZMQSessionShell)
    _execute_sleep = Float(0.0)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._pid = os.getpid()
        self._subshells = Subshells(self._handle_in_subshell)
        self._replies = Replies(self.control_stream)
        self._debugging = Debugging(self)
        for name in ("comm_open", "comm_msg", "comm_close"):
            self.shell_handlers[name] = partial(self._run_callbacks, self.shell_handlers[name])

    @property
    def streams(self) -> Streams:
        app: Any = self.parent
        streams: Streams = app.streams
        return streams

    @property
    def _supports_kernel_subshells(self) -> bool:
        """Not in ipykernel's way."""
        return False

    @property
    def kernel_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super().kernel_info
        info |= {"supported_features": ["debugger", "kernel subshells", ON_CONTROL], "debugger": True}
        return info

    def _abort_queues(self, subshell_id: str | None = None) -> None:
        """Nothing: several clients share the kernel, and the failure of one's cell is no reason to abort another's. The
        agent sends one cell at a time, and aborts those that it holds of the same client."""

    async def poll_stopped_queue(self) -> None:
        """Not before there is a debugger."""

    async def tell_stops(self) -> None:
        await super().poll_stopped_queue()

    async def do_debug_request(self, msg: dict[str, Any]) -> dict[str, Any]:
        return await self._debugging.handle(msg)

    async def dispatch_shell(self, msg: Any, /, subshell_id: str | None = None, *, concurrent: bool = False) -> None:
        with self.streams.kernels(), self.iopub_thread.corked():
            try:
                await super().dispatch_shell(msg, subshell_id, concurrent=concurrent)
            except Exception as error:  # the user's code has replaced a part of the shell
                self._answer_with_failure(msg, error)

    async def dispatch_control(self, msg: Any) -> None:
        session: Any = self.session
        try:
            _, frames = session.feed_identities(msg, copy=False)
            id = session.deserialize(frames, content=False, copy=False)["header"].get("subshell_id")
        except Exception:
            return  # nobody who knows the key sends such a thing
        if id is None:
            await super().dispatch_control(msg)
        elif subshell := self._subshells.find(id):
            subshell.put(msg)
        else:
            self._answer_with_failure(msg, LookupError(f"there is no subshell {id!r}"), self.control_stream)

    async def create_subshell_request(self, stream: Any, ident: Any, parent: Any) -> None:
        self.session.send(stream, "create_subshell_reply", self._subshells.create(), parent, ident)

    async def delete_subshell_request(self, stream: Any, ident: Any, parent: Any) -> None:
        reply = self._subshells.delete(str(parent["content"].get("subshell_id")))
        self.session.send(stream, "delete_subshell_reply", reply, parent, ident)

    async def list_subshell_request(self, stream: Any, ident: Any, parent: Any) -> None:
        self.session.send(stream, "list_subshell_reply", self._subshells.list(), parent, ident)

    async def _handle_in_subshell(self, msg: Any) -> None:
        """As `dispatch_shell`, in a thread of its own: nothing of the main shell's is changed."""
        session: Any = self.session
        try:
            idents, frames = session.feed_identities(msg, copy=False)
            request = session.deserialize(frames, content=True, copy=False)
            self._shell_parent_ident.set(idents)
            self._shell_parent.set(request)
            self.shell.set_thread_parent(request)
            self._publish_status("busy", "shell", request)
            handler = self.shell_handlers.get(request["msg_type"])
            if handler is not None:
                result = handler(self._replies, idents, request)
                if isawaitable(result):
                    await result
            self.streams.finish()
            self._publish_status("idle", "shell", request)
        except Exception as error:  # the user's code has replaced a part of the shell
            self._answer_with_failure(msg, error, self._replies)

    def _forward_input(self, allow_stdin: bool = False) -> None:
        if in_main_thread():  # `input` is everybody's, and there is one who may answer
            super()._forward_input(allow_stdin)

    def _input_request(self, *args: Any, **kwargs: Any) -> str:
        if isinstance(threading.current_thread(), Subshell):
            self._no_raw_input()
        text: str = super()._input_request(*args, **kwargs)
        return text

    def _restore_input(self) -> None:
        if in_main_thread():
            super()._restore_input()

    async def _run_callbacks(self, handler: Callable[..., Any], stream: Any, ident: Any, parent: Any) -> None:
        with self._users_turn():
            result = handler(stream, ident, parent)
            if isawaitable(result):
                await result

    def pre_handler_hook(self) -> None:
        """Kernel code is not interrupted: `_interruptible` says what is."""

    def post_handler_hook(self) -> None:
        self.streams.finish()

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        if not in_main_thread():  # signals are for the main thread alone
            yield
            return
        signal(SIGINT, default_int_handler)
        try:
            yield
        finally:
            signal(SIGINT, SIG_IGN)

    def do_complete(self, *args: Any, **kwargs: Any) -> Any:
        with self._interruptible():
            return super().do_complete(*args, **kwargs)

    def do_inspect(self, *args: Any, **kwargs: Any) -> Any:
        with self._interruptible():
            return super().do_inspect(*args, **kwargs)

    @contextmanager
    def _users_turn(self) -> Iterator[None]:
        if not in_main_thread():
            yield
            return
        # Whoever hears that the code has begun may interrupt it.
        with self.streams.users(), self._interruptible(), self.iopub_thread.corked(False):
            yield

    async def do_execute(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Never raises: a request without a reply would leave its client waiting for ever."""
        try:
            with self._users_turn():
                reply: dict[str, Any] = await super().do_execute(*args, **kwargs)
        except BaseException as error:  # an interrupt a moment too early or late, or an exception whose own text raises
            if in_main_thread():
                # Setting a handler looks for signals first, so the interrupt may have kept it from being set.
                signal(SIGINT, SIG_IGN)
            reply = self._reply_to_failure(error)
        finally:
            self._end_if_forked()
        self.streams.finish()
        return reply

    @contextmanager
    def _cancel_on_sigint(self, future: asyncio.Task[Any]) -> Iterator[None]:
        """Interrupt a cell with top-level await, also while the loop sleeps: the base class does not wake it."""
        loop, main = asyncio.get_running_loop(), threading.get_ident()
        asked, told = False, False

        def interrupt(signum: int, frame: FrameType | None) -> None:
            nonlocal asked
            if asyncio.current_task(loop) is future and _runs_user_code(frame):
                raise KeyboardInterrupt
            loop.call_soon_threadsafe(cancel)
            if not asked:
                asked = True
                # Not threading.Thread, which takes locks that the interrupted code may hold.
                _thread.start_new_thread(insist, ())

        def cancel() -> None:
            nonlocal told
            told = True
            future.cancel()

        def insist() -> None:
            """The cell may have its turn before `cancel` has, and never give it back."""
            while not told and not future.done():
                time.sleep(_INSIST_SECONDS)
                if not told and not future.done():
                    pthread_kill(main, SIGINT)

        before = signal(SIGINT, interrupt)
        try:
            yield
        finally:
            signal(SIGINT, before)

    def _reply_to_failure(self, error: BaseException) -> dict[str, Any]:
        name = type(error).__name__
        try:
            text = str(error)
        except BaseException:  # code of the user again
            text = ""
        content = {"ename": name, "evalue": text, "traceback": [f"{name}: {text}"]}
        self.streams.finish()
        self.send_response(self.iopub_socket, "error", content, ident=self._topic("error"))
        return {"status": "error", **content, "execution_count": self._count(), "user_expressions": {}, "payload": []}

    def _count(self) -> int:
        shell: Any = self.shell
        return int(shell.execution_count) - 1

    def _answer_with_failure(self, msg: Any, error: Exception, stream: Any = None) -> None:
        stream = self.shell_stream if stream is None else stream
        session: Any = self.session
        idents, frames = session.feed_identities(msg, copy=False)
        request = session.deserialize(frames, content=True, copy=False)
        kind = request["msg_type"].removesuffix("_request") + "_reply"
        session.send(stream, kind, self._reply_to_failure(error), request, ident=idents)
        self._publish_status_and_flush("idle", "shell", stream, request)

    def _end_if_forked(self) -> None:
        """A child that the cell forked and forgot to end must not come back as a second kernel."""
        if os.getpid() != self._pid:
            self.streams.finish()
            os._exit(0)


def _runs_user_code(frame: FrameType | None) -> bool:
    """Whether IPython stands ready, further up the stack, to catch what is raised here."""
    while frame is not None:
        if frame.f_code is InteractiveShell.run_code.__code__:
            return True
        frame = frame.f_back
    return False
