"""Draws the losses of a run over its steps: WORKDIR/loss.png."""

import io
from collections.abc import Mapping, Sequence


def draw(lines: Sequence[Mapping[str, float]]) -> bytes | None:
    """Returns a PNG with one plot for each loss: training thin and smoothed, evaluation as points.

    Args:
        lines: the lines of metrics.jsonl. If they hold no loss, the result is None.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = sorted({name for line in lines for name in line if name.endswith("_loss") and "/" not in name})
    if not names:
        return None
    figure, axes = plt.subplots(1, len(names), figsize=(6.4 * len(names), 4), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        points = [(line["step"], line[name]) for line in lines if name in line]
        steps, values = zip(*points, strict=True)
        axis.plot(steps, values, color="tab:blue", alpha=0.3, linewidth=1)
        axis.plot(steps, _smooth(values), color="tab:blue", label="training (smoothed)")
        evaluated = [(line["step"], line[f"eval/{name}"]) for line in lines if f"eval/{name}" in line]
        if evaluated:
            axis.plot(*zip(*evaluated, strict=True), "o-", color="tab:orange", markersize=4, label="held out")
        axis.set(title=name.removesuffix("_loss").upper() + " loss", xlabel="step", ylabel="nats per prediction")
        axis.grid(alpha=0.3)
        axis.legend()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    return picture.getvalue()


def _smooth(values: tuple[float, ...], decay: float = 0.8) -> list[float]:
    """Returns the exponential moving average, divided by the sum of its weights so that it has no bias at the start."""
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        smoothed.append(total / weight)
    return smoothed
