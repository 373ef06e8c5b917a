"""Draws the losses of a run over its steps: WORKDIR/loss.png."""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np


def draw(lines: Sequence[Mapping[str, float]]) -> bytes | None:
    """Returns a PNG with one plot for each loss: training thin and smoothed, evaluation as points.

    Args:
        lines: the lines of metrics.jsonl. If they hold no finite loss, the result is None.
    """
    from matplotlib.figure import Figure  # pyplot would take a second longer to import, and look for a screen

    names = loss_names(lines)
    if not names:
        return None
    figure = Figure(figsize=(6.4 * len(names), 4), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        steps, values = zip(*points(lines, name), strict=True)
        axis.plot(steps, values, color="tab:blue", alpha=0.3, linewidth=1)
        axis.plot(steps, smooth(values), color="tab:blue", label="training (smoothed)")
        if evaluated := points(lines, f"eval/{name}"):
            axis.plot(*zip(*evaluated, strict=True), "o-", color="tab:orange", markersize=4, label="held out")
        axis.set(title=title(name), xlabel="step", ylabel="nats per prediction")
        axis.grid(alpha=0.3)
        axis.legend()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    return picture.getvalue()


def loss_names(lines: Sequence[Mapping[str, float]]) -> list[str]:
    """Returns the losses of training that add up to the total and were finite at some step, sorted."""
    names = {name for line in lines for name in line if name.endswith("_loss") and "/" not in name}
    return sorted(name for name in names if points(lines, name))


def points(lines: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    """Returns (step, value) of a metric at the steps where it is finite. A single NaN would erase a smoothed curve."""
    return [(line["step"], line[name]) for line in lines if math.isfinite(line.get(name, math.nan))]


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
