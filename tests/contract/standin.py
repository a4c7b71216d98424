"""The agent's stand-in: runs each piece of Python that a connection sends in a process, and answers its output.

Shown in the agent's place by the suite of the backends, which is about sandboxes and not about agents.
"""

from __future__ import annotations

import contextlib
import json
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

if __name__ == "__main__":
    with open(4) as file:
        config = json.load(file)
    if config["processes"]:
        resource.setrlimit(resource.RLIMIT_NPROC, (config["processes"], config["processes"]))
    listener = socket.socket(fileno=3)
    while True:
        with contextlib.suppress(OSError, RuntimeError):
            threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
