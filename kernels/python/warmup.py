"""Executed once, silently, before a session gets the kernel: what its first cell would otherwise wait for."""


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


try:
    _warm_up()
finally:
    del _warm_up
