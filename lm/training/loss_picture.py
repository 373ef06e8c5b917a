"""Draws the losses of a run over its steps: WORKDIR/loss.png."""

import io
from collections.abc import Mapping, Sequence

import numpy as np


def draw(lines: Sequence[Mapping[str, float]]) -> bytes | None:
    """Returns a PNG with one plot for each loss: training thin and smoothed, evaluation as points.

    Args:
        lines: the lines of metrics.jsonl. If they hold no loss, the result is None.
    """
    from matplotlib.figure import Figure  # pyplot would take a second longer to import, and look for a screen

    names = sorted({name for line in lines for name in line if is_loss(name)})
    if not names:
        return None
    figure = Figure(figsize=(6.4 * len(names), 4), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        points = [(line["step"], line[name]) for line in lines if name in line]
        steps, values = zip(*points, strict=True)
        axis.plot(steps, values, color="tab:blue", alpha=0.3, linewidth=1)
        axis.plot(steps, smooth(values), color="tab:blue", label="training (smoothed)")
        evaluated = [(line["step"], line[f"eval/{name}"]) for line in lines if f"eval/{name}" in line]
        if evaluated:
            axis.plot(*zip(*evaluated, strict=True), "o-", color="tab:orange", markersize=4, label="held out")
        axis.set(title=title(name), xlabel="step", ylabel="nats per prediction")
        axis.grid(alpha=0.3)
        axis.legend()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    return picture.getvalue()


def is_loss(name: str) -> bool:
    """Returns whether a metric is a loss of training, one of those that add up to the total."""
    return name.endswith("_loss") and "/" not in name


def title(name: str) -> str:
    """Returns the title of a loss: `MLM loss` for `mlm_loss`."""
    return f"{name.removesuffix('_loss').upper()} loss"


def smooth(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns a moving average over a tenth of the curve.

    The window is centred, and shrinks towards both ends. So a straight line stays as it is.
    """
    count = len(values)
    index = np.arange(count)
    half = np.minimum(np.minimum(index, count - 1 - index), count // 20)
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64))])
    return (sums[index + half + 1] - sums[index - half]) / (2 * half + 1)
