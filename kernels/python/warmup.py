"""Executed once, silently, before a session gets the kernel: what its first cells would otherwise wait for."""


def _warm_up():
    import io  # noqa: PLC0415

    import matplotlib.pyplot as plt  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415
    import pandas as pd  # noqa: PLC0415

    frame = pd.DataFrame({"x": np.arange(3), "y": ["a", "b", "c"]})
    repr(frame)
    frame._repr_html_()
    figure, axes = plt.subplots(figsize=(1, 1))
    axes.plot(frame["x"], frame["x"], label="x")
    axes.set_title("x")
    axes.legend()
    figure.savefig(io.BytesIO(), format="png")
    plt.close("all")


def _rehearse():
    """Cells as users write them, until the way through the shell is run in: it spares the first a third of its time,
    and the first traceback most of it. What they show has no reader, and nothing of them stays."""
    import sys  # noqa: PLC0415

    from IPython import get_ipython  # noqa: PLC0415

    shell = get_ipython()
    before = set(shell.user_ns)
    for _ in range(5):
        for cell in ("0", "print(0)", "display(0)", "0 / 0"):
            shell.run_cell(cell, store_history=False)
    shell.displayhook.flush()
    for name in set(shell.user_ns) - before:
        del shell.user_ns[name]
        shell.user_ns_hidden.pop(name, None)
    del sys.last_type, sys.last_value, sys.last_traceback


try:
    _warm_up()
    _rehearse()
finally:
    del _warm_up, _rehearse
