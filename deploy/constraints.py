"""Writes the exact versions of what images hold: `make constraints`, whenever newer ones are wanted.

They are those of the oldest Python, whose wheels the newer ones have too; that each Python and machine finds them all
is checked before anything is written. Needs a pip that can report (22.2 or later).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from kernelpool.backends.tree.packages import AGENT_REQUIREMENTS
from kernelpool.runtimes import load_runtimes

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
GLIBCS = ("manylinux2014", "manylinux_2_17", "manylinux_2_24", "manylinux_2_27", "manylinux_2_28", "manylinux_2_34")
HEADER = "# Exact versions for images, made by deploy/constraints.py: `make constraints` renews them.\n"


def resolve(lines: Iterable[str], python: str, machine: str, constraints: Path | None = None) -> list[str]:
    """What pip would install, as `name==version`."""
    with tempfile.TemporaryDirectory() as folder:
        report, wanted = Path(folder, "report.json"), Path(folder, "requirements.txt")
        wanted.write_text("".join(f"{line}\n" for line in lines))
        argv = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        argv += ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", f"--target={folder}/none"]
        argv += [f"--platform={glibc}_{machine}" for glibc in GLIBCS]
        argv += ["-c", str(constraints)] if constraints else []
        subprocess.run([*argv, "--report", str(report), "-r", str(wanted)], check=True)
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return sorted((f"{item['name']}=={item['version']}" for item in found), key=str.lower)


def renew(file: Path, lines: Sequence[str]) -> None:
    new = file.with_suffix(".new")
    new.write_text(HEADER + "".join(f"{line}\n" for line in resolve(lines, PYTHONS[0], MACHINES[0])))
    for python in PYTHONS:
        for machine in MACHINES:
            loose = set(resolve(lines, python, machine, new)) - set(new.read_text().splitlines())
            if loose:
                sys.exit(f"{file}: Python {python} on {machine} would also install {', '.join(sorted(loose))}")
    new.replace(file)
    print(f"{file.relative_to(ROOT)}: {len(file.read_text().splitlines()) - 1} packages")


def main() -> None:
    for runtime in load_runtimes(ROOT / "kernels").values():
        renew(runtime.folder / "constraints.txt", [*AGENT_REQUIREMENTS, *runtime.requirements])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    renew(ROOT / "constraints.txt", [*project["dependencies"], *extras["mcp"], *extras["otel"]])


if __name__ == "__main__":
    main()
