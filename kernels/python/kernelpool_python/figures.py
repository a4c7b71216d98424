"""Figures: every figure that a cell leaves open is shown once, whatever backend the code asked for."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

INLINE = "module://matplotlib_inline.backend_inline"

SHOWN_INLINE = {
    *("agg", "macosx", "nbagg", "notebook", "ipympl", "widget", "webagg", "wx", "wxagg", "wxcairo"),
    *("gtk3agg", "gtk3cairo", "gtk4agg", "gtk4cairo", "qtagg", "qtcairo", "qt5agg", "qt5cairo", "tkagg", "tkcairo"),
}
"""Backends that code written for a script or a desktop asks for: here they would show nothing, or fail."""


def show_open_figures(shell: Any) -> None:
    """Show what is open and close it. Costs nothing as long as nobody has imported matplotlib."""
    helpers = sys.modules.get("matplotlib._pylab_helpers")
    if helpers is None or not helpers.Gcf.figs:
        return
    # Not at the top: the start of a kernel does not wait for matplotlib.
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib_inline.backend_inline import configure_inline_support, show  # noqa: PLC0415

    if Figure not in shell.display_formatter.formatters["image/png"].type_printers:
        configure_inline_support(shell, INLINE)  # another backend is in use, so nobody has done it
    show(close=True)


def forget(result: object) -> None:
    """A figure that was just shown as the value of a cell is not shown again at its end."""
    helpers = sys.modules.get("matplotlib._pylab_helpers")
    if helpers is None or not helpers.Gcf.figs:
        return
    for manager in helpers.Gcf.get_all_fig_managers():
        if manager.canvas.figure is result:
            helpers.Gcf.destroy(manager)


def keep_inline(matplotlib: ModuleType) -> None:
    """Let `matplotlib.use('Agg')` and the like stay with the backend that shows figures."""
    original = matplotlib.use

    def use(backend: Any, *args: Any, **kwargs: Any) -> None:
        shown_inline = isinstance(backend, str) and backend.lower() in SHOWN_INLINE
        original(INLINE if shown_inline else backend, *args, **kwargs)

    use.__doc__ = original.__doc__
    matplotlib.use = use  # type: ignore[attr-defined]
