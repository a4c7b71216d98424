"""Start the Node.js kernel of a session: `python launch.py -f connection.json [--memory BYTES]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# The modules beside this file and the program's own, and never the current folder: that is the user's.
FOLDER = Path(__file__).resolve().parent
sys.path[:] = [str(FOLDER), str(FOLDER.parents[1]), *(entry for entry in sys.path if entry not in ("", str(FOLDER)))]

from kernelpool_node.kernel import run  # noqa: E402

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-f", dest="file", type=Path, required=True)
    parser.add_argument("--memory", type=int, default=0, help="bytes that the session may use")
    arguments = parser.parse_args()
    run(arguments.file, arguments.memory)
