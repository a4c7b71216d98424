"""Start the Python kernel of a session: `python launch.py -f connection.json`.

What is imported here may be loaded once in a parent and forked from; sockets and threads come with `main` only.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The modules beside this file, and never the current folder: that is the user's.
FOLDER = str(Path(__file__).resolve().parent)
sys.path[:] = [FOLDER, *(entry for entry in sys.path if entry not in ("", FOLDER))]

from kernelpool_python.app import KernelApp  # noqa: E402

# The package stays importable by its own path; the user's `import launch` is not for us to answer.
sys.path.remove(FOLDER)


def main(argv: list[str]) -> None:
    app = KernelApp.instance()
    app.initialize(argv)
    app.start()


if __name__ == "__main__":
    main(sys.argv[1:])
