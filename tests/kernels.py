"""Kernels as a client on their sockets sees them: started by our launchers, in a folder of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import write_connection_file

SECONDS = 60.0
"""No wait for a kernel is longer."""


@dataclass
class Cell:
    """What came back for one request."""

    reply: dict[str, Any]
    outputs: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def status(self) -> str:
        return str(self.reply["status"])

    @property
    def whole(self) -> list[tuple[str, dict[str, Any]]]:
        """The outputs, with neighbouring text of a stream as one: where it is cut is a matter of time."""
        whole: list[tuple[str, dict[str, Any]]] = []
        for kind, content in self.outputs:
            if kind == "stream" and whole and whole[-1][1].get("name") == content["name"]:
                whole[-1] = (kind, {**content, "text": whole[-1][1]["text"] + content["text"]})
            else:
                whole.append((kind, content))
        return whole

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.whole]

    def text(self, name: str = "stdout") -> str:
        return "".join(
            content["text"] for kind, content in self.outputs if kind == "stream" and content["name"] == name
        )

    def bundles(self, *kinds: str) -> list[dict[str, Any]]:
        kinds = kinds or ("display_data", "execute_result")
        return [content["data"] for kind, content in self.outputs if kind in kinds]

    @property
    def result(self) -> str:
        return "".join(bundle["text/plain"] for bundle in self.bundles("execute_result"))

    @property
    def images(self) -> int:
        return sum("image/png" in bundle for bundle in self.bundles())


class Kernel:
    """A kernel process and a client that misses nothing."""

    def __init__(self, home: Path, client: BlockingKernelClient, process: subprocess.Popen[bytes]) -> None:
        self.home, self.client, self.process = home, client, process

    def wait_until_ready(self) -> None:
        """Until the kernel answers and our subscription has reached it: what it sent before is lost."""
        while True:
            request = self.client.kernel_info()
            self.reply(request)
            with suppress(Empty):
                while self.client.get_iopub_msg(timeout=0.5)["parent_header"].get("msg_id") != request:
                    pass
                return

    def run(self, code: str, **options: Any) -> Cell:
        return self.finish(self.send(code, **options))

    def send(self, code: str, *, stop_on_error: bool = False, **options: Any) -> str:
        request: str = self.client.execute(code, allow_stdin=False, stop_on_error=stop_on_error, **options)
        return request

    def finish(self, request: str) -> Cell:
        """Up to `idle`, which is the last message of a request on IOPub."""
        outputs: list[tuple[str, dict[str, Any]]] = []
        while (message := self.next_output(request)) != ("status", {"execution_state": "idle"}):
            if message[0] not in ("status", "execute_input"):
                outputs.append(message)
        return Cell(self.reply(request), outputs)

    def next_output(self, request: str) -> tuple[str, dict[str, Any]]:
        while True:
            message = self.client.get_iopub_msg(timeout=SECONDS)
            if message["parent_header"].get("msg_id") == request:
                return message["msg_type"], message["content"]

    def reply(self, request: str) -> dict[str, Any]:
        while True:
            message = self.client.get_shell_msg(timeout=SECONDS)
            if message["parent_header"]["msg_id"] == request:
                return dict(message["content"])

    def ask_on_control(self, kind: str) -> None:
        """Until it is answered; nobody reads outputs meanwhile."""
        request = self.client.session.msg(kind, {})
        self.client.control_channel.send(request)
        while self.client.get_control_msg(timeout=SECONDS)["parent_header"]["msg_id"] != request["msg_id"]:
            pass  # nobody has read the answer to an earlier one

    def wait_until_received(self) -> None:
        """Until the kernel has, unread, what was sent before: a message on control, which is answered while a cell
        runs, comes behind it."""
        self.ask_on_control("kernel_info_request")

    def wait_for_text(self, request: str, text: str) -> None:
        seen = ""
        while text not in seen:
            kind, content = self.next_output(request)
            assert (kind, content.get("execution_state")) != ("status", "idle"), f"{text!r} never came, only {seen!r}"
            seen += content.get("text", "") + content.get("data", {}).get("text/plain", "")


@contextmanager
def started_kernel(argv: Sequence[str], environment: Callable[[Path], Mapping[str, str]]) -> Iterator[Kernel]:
    """`argv` without the connection file; `environment` is asked with the kernel's home."""
    # Not tmp_path: its name is longer than the address of a Unix socket may be.
    with tempfile.TemporaryDirectory(prefix="kp") as name:
        home = Path(name, "data")
        home.mkdir()
        file = Path(name, "c.json")
        ports = {
            f"{channel}_port": port for port, channel in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)
        }
        write_connection_file(str(file), transport="ipc", ip=str(Path(name, "k")), **ports)  # type: ignore[arg-type]
        process = subprocess.Popen(
            [*argv, "-f", str(file)],
            cwd=home,
            env=environment(home),
            stdin=subprocess.PIPE,  # never closed nor written to
            stdout=subprocess.PIPE,  # read by nobody: a kernel that echoes would come to a halt
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        client = BlockingKernelClient()
        client.load_connection_file(str(file))
        client.start_channels()
        try:
            kernel = Kernel(home, client, process)
            kernel.wait_until_ready()
            yield kernel
        finally:
            client.stop_channels()
            with suppress(ProcessLookupError):  # as the agent does
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=SECONDS)
            client.context.destroy(linger=0)
