"""Where packages of npm are in a tree, and which they are."""

from __future__ import annotations

import json
from pathlib import Path

NODE_MODULES = "/node_modules"
LOCK = ".package-lock.json"
"""In the folder of packages: what npm says is in it."""


def npm_packages(folder: Path) -> dict[str, str]:
    """Names and versions in a folder of packages, those inside of others left out; nothing where there is none."""
    try:
        known = json.loads((folder / LOCK).read_text())["packages"]
    except FileNotFoundError:
        return {}
    found = {place.removeprefix("node_modules/"): str(facts.get("version", "")) for place, facts in known.items()}
    return {name: version for name, version in found.items() if "node_modules" not in name}
