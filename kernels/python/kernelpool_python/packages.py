"""Packages that a session installs: into its own folder, importable at once, before those of the runtime."""

from __future__ import annotations

import importlib
import os
import site
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


def install() -> None:
    folder = site.getusersitepackages()
    os.environ.update(pip_settings(folder, site.getuserbase(), bool(site.ENABLE_USER_SITE)))
    # `pip` and `python` of a cell are those of the kernel; what pip installs comes before both.
    programs = (f"{site.getuserbase()}/bin", os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath))
    os.environ["PATH"] = os.pathsep.join(programs)
    sys.meta_path.append(_UserSite(folder))
    if os.path.isdir(folder):
        _add(folder)


def pip_settings(folder: str, base: str, user_site: bool) -> dict[str, str]:
    """A virtual environment hides the user site: there pip gets it as a prefix, and child processes as a path."""
    common = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_NO_CACHE_DIR": "1"}
    if user_site:
        return common | {"PIP_USER": "1", "PIP_NO_WARN_SCRIPT_LOCATION": "1"}
    return common | {"PIP_PREFIX": base, "PIP_NO_WARN_SCRIPT_LOCATION": "1", "PYTHONPATH": folder}


def _add(folder: str) -> None:
    """As Python does at its start: after the standard library, before the packages of the runtime."""
    if folder not in sys.path:
        before = [index for index, entry in enumerate(sys.path) if Path(entry).name == "site-packages"]
        sys.path.insert(before[0] if before else len(sys.path), folder)
    site.addsitedir(folder)
    importlib.invalidate_caches()


class _UserSite(MetaPathFinder):
    """Asked for what nobody else found. The folder appears with the first package in it, after Python has looked."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None or not os.path.isdir(self._folder):
            return None
        _add(self._folder)
        return PathFinder.find_spec(fullname, sys.path)
