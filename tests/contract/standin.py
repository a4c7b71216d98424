"""The agent's stand-in: runs each piece of Python that a connection sends in a process, and answers its output.

Shown in the agent's place by the suite of the backends, which is about sandboxes and not about agents.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading


def serve(connection: socket.socket) -> None:
    with connection:
        code = b"".join(iter(lambda: connection.recv(65536), b""))
        done = subprocess.run(
            [sys.executable, "-I", "-c", RAISE_OOM_SCORE + code.decode()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        with contextlib.suppress(OSError):
            connection.sendall(done.stdout + f"[{done.returncode}]".encode())


RAISE_OOM_SCORE = "open('/proc/self/oom_score_adj', 'w').write('800')\n"


def listen(where: str) -> socket.socket:
    if where == "fd:3":
        return socket.socket(fileno=3)
    if where.startswith("tcp:"):
        host, _, port = where.removeprefix("tcp:").rpartition(":")
        return socket.create_server((host, int(port)), backlog=100)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(where.removeprefix("unix:"))
    os.chmod(where.removeprefix("unix:"), 0o666)
    listener.listen(100)
    return listener


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen")
    parser.add_argument("--config")
    options = parser.parse_args()
    kind, _, number = options.config.partition(":")
    with open(int(number) if kind == "fd" else options.config) as file:
        config = json.load(file)
    if config["processes"]:
        resource.setrlimit(resource.RLIMIT_NPROC, (config["processes"], config["processes"]))
    listener = listen(options.listen)
    while True:
        with contextlib.suppress(OSError, RuntimeError):
            threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
