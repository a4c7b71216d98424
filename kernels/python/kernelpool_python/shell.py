"""IPython's shell with outputs made for readers that are no notebook, and robust against what user code replaces."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NoReturn

from ipykernel.displayhook import ZMQShellDisplayHook
from ipykernel.zmqshell import ZMQDisplayPublisher, ZMQInteractiveShell
from traitlets import Type

from . import figures
from .streams import Streams
from .subshells import in_main_thread

SHELL = shutil.which("bash", path=os.defpath) or "/bin/sh"


class DisplayHook(ZMQShellDisplayHook):
    def __call__(self, result: object = None) -> None:
        super().__call__(result)
        if not self.quiet():
            figures.forget(result)

    def cull_cache(self) -> None:
        """Forget the oldest values, of a thousand, without a warning in the output of the cell that is next."""
        with warnings.catch_warnings(action="ignore"):
            super().cull_cache()

    def finish_displayhook(self) -> None:
        shell: Any = self.shell
        with shell.streams.kernels():
            shell.streams.finish()
            super().finish_displayhook()


class DisplayPublisher(ZMQDisplayPublisher):
    def _flush_streams(self) -> None:
        shell: Any = self.shell
        shell.streams.finish()


class NoOutputs(dict[int, list[Any]]):
    """IPython 9 keeps all that was ever printed and displayed, for its own export: a leak in a session of days."""

    def __missing__(self, _execution_count: int) -> list[Any]:
        return []


def _trigger(trigger: Callable[..., None], event: str, *args: Any, **kwargs: Any) -> None:
    """What is done at the end of a cell (matplotlib has a part of its own in it) is not done at that of a look from a
    subshell: open figures may be of a cell that is still drawing."""
    if in_main_thread() or event != "post_execute":
        trigger(event, *args, **kwargs)


# Libraries look for "ZMQ" in the name of the class to know that they are in a kernel.
class ZMQSessionShell(ZMQInteractiveShell):
    displayhook_class = Type(DisplayHook)
    display_pub_class = Type(DisplayPublisher)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.events.register("post_execute", partial(figures.show_open_figures, self))
        self.events.trigger = partial(_trigger, self.events.trigger)
        self.history_manager.outputs = NoOutputs()

    def _tee(self, channel: str) -> Any:
        """Nothing: see `NoOutputs`."""
        return nullcontext()

    @property
    def streams(self) -> Streams:
        streams: Streams = self.kernel.streams
        return streams

    def system(self, cmd: str) -> None:
        """`!cmd`, without a pseudo terminal: lines end in \n, nothing is coloured, the output keeps its place."""
        command = self.var_expand(cmd, depth=1)
        process = subprocess.Popen(command, shell=True, executable=SHELL, process_group=0)
        try:
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        self.user_ns["_exit_code"] = code

    def init_environment(self) -> None:
        for name in ("FORCE_COLOR", "CLICOLOR_FORCE"):
            os.environ.pop(name, None)
        os.environ.update(TERM="dumb", NO_COLOR="1", PAGER="cat", GIT_PAGER="cat")

    def ask_exit(self) -> NoReturn:
        """`exit()` and `quit()` end the cell, as they end a script; the session keeps its state."""
        raise SystemExit

    def _showtraceback(self, etype: type[BaseException], evalue: BaseException, stb: list[str]) -> None:
        with self.streams.kernels():
            self.streams.finish()
            super()._showtraceback(etype, evalue, stb)
