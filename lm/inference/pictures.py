"""Draws attention weights: `draw(model, pipeline, request, Picture("a.png"))`.

Array names carry their shape: N layers, H heads, L queries, S keys.
"""

import dataclasses
import math
import unicodedata

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lm import fonts
from lm.errors import InputError
from lm.inference import attention
from lm.inference.attention import Weights
from lm.inference.predict import Pipeline, Predictor
from lm.inference.requests import Request, RequestError

LONGEST = 64  # tokens on an axis of a picture
_ANNOTATED = 12  # the most tokens of a picture into which the weights are written as numbers
_POINTS = 9  # size of the labels


@dataclasses.dataclass(frozen=True)
class Picture:
    """Which picture to draw.

    Attributes:
        path: the file to write; its name ends in .png, .pdf or .svg.
        of: `cross` (decoder to encoder), `encoder` or `decoder`. Empty is the first of these that the model has.
        layer: the layer to draw, from 1; None draws every layer.
        head: the head to draw, from 1. None draws all heads of `layer`; without a layer, the mean over heads.
    """

    path: str
    of: str = ""
    layer: int | None = None
    head: int | None = None


def draw(model: Predictor, pipeline: Pipeline, request: Request, picture: Picture) -> None:
    """Draws the attention weights of a request and of the text that the model writes for it.

    Args:
        model: the model.
        pipeline: one of the model's tasks.
        request: a request of that task.
        picture: what to draw, and the file.

    Raises:
        InputError: the request cannot be answered, the model has no such attention, or the picture cannot be drawn.
    """
    try:
        found = attention.of_request(model, pipeline, request)
    except RequestError as error:
        raise InputError(f"the first request has no attention to draw: {error}") from error
    if picture.of and picture.of not in found:
        raise InputError(f"the attention to draw is {picture.of!r}; this model has: {', '.join(found)}.")
    draw_weights(found[picture.of or next(iter(found))], picture)


def draw_weights(weights: Weights, picture: Picture) -> None:
    """Draws heatmaps, with queries down, keys across, and one colour scale that begins at 0.

    With few tokens it also writes the weights as numbers, except those that round to .00.

    Raises:
        InputError: no such layer or head, too many tokens, no font for a label, or the file cannot be written.
    """
    panels = _panels(weights.weights_NHLS, picture)
    rows, columns = panels[0][1].shape
    if max(rows, columns) > LONGEST:
        raise InputError(f"{max(rows, columns)} tokens are too many for a picture; shorten the text to {LONGEST}.")
    family = fonts.families([*weights.queries, *weights.keys])
    annotated = max(rows, columns) <= _ANNOTATED
    cell = 0.46 if annotated else 0.2  # inches
    upright = max(map(_width, weights.keys)) <= cell
    beside, below = max(map(_width, weights.queries)), 0.15 if upright else max(map(_width, weights.keys))
    down = math.ceil(len(panels) / (4 if annotated else 3))
    across = math.ceil(len(panels) / down)
    size = (across * (columns * cell + beside + 0.4) + 0.8, down * (rows * cell + below + 0.6) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(weights.title)
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    top = max(matrix_LS.max() for _, matrix_LS in panels)
    for axis, (title, matrix_LS) in zip(axes, panels, strict=False):
        image = axis.imshow(matrix_LS, cmap="Blues", vmin=0.0, vmax=top)
        axis.set_title(title, fontsize=10)
        _label(axis, weights, family, rotation=0 if upright else 90)
        if annotated:
            _write_numbers(axis, matrix_LS, top)
    for axis in axes[len(panels) :]:
        axis.remove()
    bar = {"shrink": min(1.0, 4 / size[1]), "fraction": 0.03, "aspect": 20, "pad": 0.01}
    figure.colorbar(image, ax=axes[: len(panels)], label="attention weight", **bar)
    try:
        figure.savefig(picture.path, dpi=120)
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"the picture is {picture.path!r}: {why}; give a file that can be written.") from error


def _label(axis: Axes, weights: Weights, family: list[str], rotation: float) -> None:
    for set_ticks, labels, degrees in (
        (axis.set_xticks, weights.keys, rotation),
        (axis.set_yticks, weights.queries, 0),
    ):
        set_ticks(range(len(labels)), labels, rotation=degrees, parse_math=False, fontfamily=family, fontsize=_POINTS)
    axis.tick_params(length=0)
    axis.set_xlabel(weights.key)
    axis.set_ylabel(weights.query)
    axis.spines[:].set_color("lightgrey")


def _write_numbers(axis: Axes, matrix_LS: np.ndarray, top: float) -> None:
    for (query, key), weight in np.ndenumerate(matrix_LS):
        number = f"{weight:.2f}".lstrip("0") if weight >= 0.005 else ""
        shade = "white" if weight > 0.68 * top else "black"
        axis.text(key, query, number, ha="center", va="center", fontsize=8, color=shade)


def _width(label: str) -> float:
    """Returns the width of a label in inches: an East Asian character is one em wide, others are 0.6 em on average."""
    return sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.6 for c in label) * _POINTS / 72


def _panels(weights_NHLS: np.ndarray, picture: Picture) -> list[tuple[str, np.ndarray]]:
    """Returns the titles of the heatmaps to draw, and their weights [L, S]."""
    sizes = dict(zip(("layer", "head"), weights_NHLS.shape, strict=False))
    for name, size in sizes.items():
        value = getattr(picture, name)
        if value is not None and not 1 <= value <= size:
            raise InputError(f"the {name} to draw is {value}; this model has {name}s 1 to {size}.")
    if picture.layer is None and picture.head is None:
        title = "layer {}, mean of " + (f"{sizes['head']} heads" if sizes["head"] > 1 else "1 head")
        return [(title.format(i + 1), matrix_LS) for i, matrix_LS in enumerate(weights_NHLS.mean(axis=1))]
    layers = range(sizes["layer"]) if picture.layer is None else [picture.layer - 1]
    heads = range(sizes["head"]) if picture.head is None else [picture.head - 1]
    return [(f"layer {i + 1}, head {j + 1}", weights_NHLS[i, j]) for i in layers for j in heads]
