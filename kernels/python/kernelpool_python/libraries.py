"""Settings for libraries, applied right after the first import of each, whenever that is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from . import figures


def wider_tables(pandas: ModuleType) -> None:
    pandas.set_option("display.width", 200, "display.max_columns", 40, "display.max_rows", 60)


def vega_bundles(altair: ModuleType) -> None:
    """The chart itself as a MIME bundle, not a page that loads its code from elsewhere."""
    altair.renderers.enable("mimetype")


def text_bars(tqdm: ModuleType) -> None:
    """Progress as text, also for code written for notebooks: the bars there are widgets, and fail without them."""
    for name in ("tqdm.notebook", "tqdm.autonotebook"):
        sys.modules.setdefault(name, tqdm.std)


SETTINGS: dict[str, Callable[[ModuleType], None]] = {
    "altair": vega_bundles,
    "matplotlib": figures.keep_inline,
    "pandas": wider_tables,
    "tqdm": text_bars,
}


def install() -> None:
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def __init__(self) -> None:
        self._waiting = dict(SETTINGS)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        settle = self._waiting.pop(fullname, None)
        if settle is None:
            return None
        spec = find_spec(fullname)  # asks the other finders: this one no longer answers for the name
        if spec is None or spec.loader is None:
            self._waiting[fullname] = settle  # not installed yet
            return None
        spec.loader = _Loader(spec.loader, settle)
        return spec


class _Loader(Loader):
    """Loads by the real loader, which it puts back, then settles."""

    def __init__(self, loader: Loader, settle: Callable[[ModuleType], None]) -> None:
        self._loader, self._settle = loader, settle

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        try:
            self._settle(module)
        except Exception:  # another version of the library, or a file of the user's with its name
            return
