"""When a child process has ended, as a descriptor: for selectors and event loops, so that nobody polls."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading


def end_of(pid: int) -> int:
    """A descriptor, to be closed by the caller, that is readable once that child has ended; it can be waited for then
    without blocking. A pidfd, or where the kernel has none, as gVisor's, a pipe and a thread that waits. Raises
    `OSError` when there is no room for it."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
    read, write = os.pipe()
    waiting = threading.Thread(target=_wait, args=(pid, write), name=f"end of {pid}", daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # signals are the main thread's
    try:
        waiting.start()
    except RuntimeError as error:
        os.close(read)
        os.close(write)
        raise OSError(errno.EAGAIN, str(error)) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return read


def _wait(pid: int, told: int) -> None:
    with contextlib.suppress(ChildProcessError):  # somebody has waited for it, so it has ended
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(told, b"\0")
    os.close(told)
