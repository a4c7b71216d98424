"""The state directory of the bubblewrap backend: who may enter what, and that only one gateway uses it.

lock             held by the gateway that is running
bin/             a copy of the bundled bwrap
doors/<id>/      egress.sock, for the user of that sandbox; shown in it as /run/kp
etc/             files that every sandbox is shown
probe/           what the doctor shows a sandbox in the agent's place
runtimes/        trees, see backends/tree; a link to those of another state directory shares them
sandboxes/<id>/  agent.sock and sandbox.json, for the gateway alone
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kernelpool.backends.bwrap_argv import SANDBOX_UID
from kernelpool.backends.egress import RESOLVER
from kernelpool.backends.locks import take_lock
from kernelpool.backends.records import DOORS, SOCKET
from kernelpool.errors import StartFailed

_SOCKET_PATH_BYTES: Final = 107
_ID_LENGTH: Final = 12

_FILES: Final[Mapping[str, str]] = {
    "passwd": (
        f"sandbox:x:{SANDBOX_UID}:{SANDBOX_UID}:sandbox:/mnt/data:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "group": f"sandbox:x:{SANDBOX_UID}:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "resolv.conf": "",
    "resolv.conf.egress": f"nameserver {RESOLVER}\n",
    "empty": "",
}
_SHOWN: Final = ("passwd", "group", "hosts", "nsswitch.conf", "resolv.conf")


class StateFolder:
    """Opens the directory and holds its lock until `close`. Blocks."""

    def __init__(self, path: Path) -> None:
        """Raises `StartFailed` when the directory cannot serve: too long, not to be entered, or in use."""
        self.path = Path(os.path.abspath(path))
        self.sandboxes = self.path / "sandboxes"
        self.empty = self.path / "etc" / "empty"
        self._lock = -1
        self._check_length()
        try:
            self._make()
        except OSError as error:
            raise StartFailed(f"the state directory {self.path} cannot be used: {error.strerror}") from error
        self._check_way()
        self._lock = take_lock(self.path)

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def tag(self) -> str:
        """Tells the groups of this state directory from those of another one."""
        return hashlib.sha256(os.fsencode(self.path)).hexdigest()[:8]

    def sandbox(self, id: str) -> Path:
        return self.sandboxes / id

    def files(self, *, egress: bool = False) -> dict[str, Path]:
        """Path in the sandbox → file that it is shown there."""
        files = {f"/etc/{name}": self.path / "etc" / name for name in _SHOWN}
        if egress:
            files["/etc/resolv.conf"] = self.path / "etc" / "resolv.conf.egress"
        return files

    def remove(self, id: str) -> None:
        shutil.rmtree(self.sandbox(id), ignore_errors=True)

    def _check_length(self) -> None:
        longest = len(os.fsencode(self.sandboxes)) + 1 + _ID_LENGTH + 1 + len(SOCKET)
        if longest > _SOCKET_PATH_BYTES:
            room = _SOCKET_PATH_BYTES - longest + len(os.fsencode(self.path))
            raise StartFailed(f"{self.path} is too long a path for sockets in it: at most {room} bytes")

    def _make(self) -> None:
        self.path.mkdir(mode=0o711, parents=True, exist_ok=True)
        if not any(self.path.iterdir()) or (self.path / "lock").exists():
            # Others may pass through, to what is meant for them; they may not look around.
            self.path.chmod(0o711)
        elif self.path.stat().st_mode & 0o022:
            raise StartFailed(f"the state directory {self.path} is not ours alone: choose a directory that is new")
        self.sandboxes.mkdir(mode=0o700, exist_ok=True)
        doors = self.path / DOORS
        doors.mkdir(mode=0o711, exist_ok=True)
        doors.chmod(0o711)  # to be passed through by the users of sandboxes, not to be looked around in
        folder = self.path / "etc"
        folder.mkdir(mode=0o755, exist_ok=True)
        folder.chmod(0o755)
        for name, text in _FILES.items():
            file = folder / name
            if not file.is_file() or file.read_text() != text:
                part = folder / f"{name}.new"
                part.write_text(text)
                part.chmod(0o644)
                part.replace(file)

    def _check_way(self) -> None:
        """As root: the sandboxes' own users have to get to the runtime tree."""
        if os.geteuid() != 0:
            return
        for folder in (self.path, *self.path.parents):
            if not folder.stat().st_mode & 0o001:
                raise StartFailed(
                    f"the users of sandboxes cannot get into the state directory, because {folder} is closed to "
                    f"others: choose another state directory, or run `chmod o+x {folder}`"
                )
