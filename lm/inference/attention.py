"""Attention weights: what they are for a request, and a picture of them.

Array names carry their shape: N layers, B batch (always 1), H heads, L queries, S keys, T decoded length.
"""

import dataclasses
import functools
import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from lm.data.tokenizer import Tokenizer
from lm.errors import InputError
from lm.inference.predict import Predictor
from lm.inference.requests import Answer, Row
from lm.inference.write import Writer, until_end

LONGEST = 64  # tokens on an axis of a picture
_ANNOTATED = 12  # tokens up to which the numbers are written, too
_POINTS = 9  # size of the labels


@dataclasses.dataclass(frozen=True)
class Weights:
    """The attention weights of one sequence.

    Attributes:
        title: which attention it is.
        weights_NHLS: float32; how much the query takes of the value at the key, one in sum over the keys.
        queries, keys: labels of the tokens.
        query, key: what the queries and keys are, for the axes.
    """

    title: str
    weights_NHLS: np.ndarray
    queries: Sequence[str]
    keys: Sequence[str]
    query: str = "query"
    key: str = "key"


class Watched(Protocol):
    """Answers requests, and tells the attention of the first one that it answered."""

    def attention(self) -> dict[str, Weights]:
        """By what attends: `encoder`, `decoder` (to itself) or `cross` (decoder to encoder); the most telling first."""
        ...


class WatchedPredictor(Predictor):
    """Answers as `Predictor` does; see `Watched`."""

    _first: Row | None = None

    def _pad(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        self._first = next((row for row in rows if row.index == 0), self._first)
        return super()._pad(rows)

    def attention(self) -> dict[str, Weights]:
        assert self._first is not None
        row = self._first

        def weights(params: Any) -> jax.Array:
            return self._model.merge(params).encoder.attention_weights(*_alone(row.tokens), row.types[None])[0]

        return {"encoder": _of_encoder(jax.jit(weights)(self._params), labels(self.tokenizer, row.tokens))}


class WatchedWriter(Writer):
    """Writes as `Writer` does; see `Watched`. Of several hypotheses it is the best one's attention."""

    _first: tuple[Row, np.ndarray] | None = None

    def _decode(self, rows: Sequence[Row], *args: Any, **options: Any) -> Iterator[tuple[np.ndarray, Any]]:
        for row, found in zip(rows, super()._decode(rows, *args, **options), strict=False):
            if row.index == 0:
                self._first = row, found[0][0]
            yield found

    def attention(self) -> dict[str, Weights]:
        assert self._first is not None
        row, written_T = self._first
        special, data = self.tokenizer.special, self.config.data
        written_T = written_T[: len(until_end(written_T, special.sep)) + 1]
        begin = ([special.cls] if data.begin_with_cls else []) if self.has_source else row.tokens
        start = special.start(self.config.model.decoder_start)
        tokens_T = np.array([start, *begin, *written_T], np.int32)

        @jax.jit
        def weights(params: Any) -> tuple[jax.Array | None, jax.Array, jax.Array | None]:
            model = self._model.merge(params)
            memory = model.encode(*_alone(row.tokens)) if self.has_source else None
            encoder = model.encoder.attention_weights(*_alone(row.tokens))[0] if self.has_source else None
            return encoder, *model.attention_weights(memory, *_alone(tokens_T[:-1]))

        encoder_NBHSS, decoder_NBHTT, cross_NBHTS = weights(self._params)
        tokens = labels(self.tokenizer, tokens_T)
        make = functools.partial(Weights, queries=tokens[1:], query="query: the token to be written")
        found = {}
        if encoder_NBHSS is not None and cross_NBHTS is not None:
            source = labels(self.tokenizer, row.tokens)
            title = "Attention of the decoder to the encoder"
            found["cross"] = make(title, _one(cross_NBHTS), keys=source, key="key: a token of the source")
            found["encoder"] = _of_encoder(encoder_NBHSS, source)
        title, key = "Self-attention of the decoder", "key: a token before it"
        return found | {"decoder": make(title, _one(decoder_NBHTT), keys=tokens[:-1], key=key)}


def _alone(tokens_L: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, segments and positions [1, L] of a sequence without padding."""
    return tokens_L[None], np.ones((1, len(tokens_L)), np.int32), np.arange(len(tokens_L), dtype=np.int32)[None]


def _one(weights_NBHLS: jax.Array) -> np.ndarray:
    return np.asarray(weights_NBHLS[:, 0], np.float32)


def _of_encoder(weights_NBHLL: jax.Array, tokens: Sequence[str]) -> Weights:
    return Weights("Self-attention of the encoder", _one(weights_NBHLL), tokens, tokens)


def labels(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """What to call each token: its text without a word mark, or the name of a special token.

    Of a character that is spelt by several tokens (its bytes), each is called by the character and its number.
    """
    special = set(tokenizer.special_ids.tolist())
    found: list[str] = []
    while (at := len(found)) < len(ids):
        if int(ids[at]) in special:
            found.append(_readable(tokenizer.id_to_piece(int(ids[at]))))
            continue
        size = next((n for n in range(1, 5) if "\ufffd" not in tokenizer.decode(ids[at : at + n])), 1)
        text = tokenizer.decode(ids[at : at + size]).strip(" ")
        if size > 1:
            found += [f"{_readable(text)} {number}/{size}" for number in range(1, size + 1)]
        else:
            piece = tokenizer.id_to_piece(int(ids[at]))
            found.append(_readable(piece if "\ufffd" in text else text.removeprefix("##") or text or "␣"))
    return found[: len(ids)]


def _readable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# ---- The picture ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Picture:
    """Which picture.

    Attributes:
        path: of the file to write, its kind told by the name: .png, .pdf or .svg.
        of: `encoder`, `decoder` or `cross`, see `Watched`; empty for the most telling.
        layer: draws the heads of this layer, from 1; None draws every layer.
        head: draws this head, from 1, alone; None draws the mean over heads of every layer, or all of `layer`.
    """

    path: str
    of: str = ""
    layer: int | None = None
    head: int | None = None


def with_picture(answers: Iterable[Answer], watched: Watched, picture: Picture) -> Iterator[Answer]:
    """Passes the answers of `watched` on; before the first, draws the attention of what it answers.

    Raises:
        InputError: there is nothing to draw, or the picture cannot be drawn.
    """
    for number, answer in enumerate(answers):
        if number == 0:
            if "error" in answer:
                raise InputError(f"the first request has no attention to draw: {answer['error']}")
            found = watched.attention()
            if picture.of and picture.of not in found:
                raise InputError(f"the attention to draw is {picture.of!r}; this model has: {', '.join(found)}.")
            draw(found[picture.of or next(iter(found))], picture)
        yield answer


def draw(weights: Weights, picture: Picture) -> None:
    """Draws heatmaps side by side, queries down and keys across, on one colour scale from 0.

    With few tokens the numbers are written in, but for those that would read .00.

    Raises:
        InputError: no such layer or head, too many tokens, no font for a label, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    from lm.inference import fonts

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
    text: dict[str, Any] = {"parse_math": False, "fontfamily": family, "fontsize": _POINTS}
    for axis, (title, matrix_LS) in zip(axes, panels, strict=False):
        image = axis.imshow(matrix_LS, cmap="Blues", vmin=0.0, vmax=top)
        axis.set_xticks(range(columns), weights.keys, rotation=0 if upright else 90, **text)
        axis.set_yticks(range(rows), weights.queries, **text)
        axis.tick_params(length=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(weights.key)
        axis.set_ylabel(weights.query)
        axis.spines[:].set_color("lightgrey")
        if annotated:
            for (query, key), weight in np.ndenumerate(matrix_LS):
                number = f"{weight:.2f}".lstrip("0") if weight >= 0.005 else ""
                shade = "white" if weight > 0.68 * top else "black"
                axis.text(key, query, number, ha="center", va="center", fontsize=8, color=shade)
    for axis in axes[len(panels) :]:
        axis.remove()
    bar = {"shrink": min(1.0, 4 / size[1]), "fraction": 0.03, "aspect": 20, "pad": 0.01}
    figure.colorbar(image, ax=axes[: len(panels)], label="attention weight", **bar)
    try:
        figure.savefig(picture.path, dpi=120)
    except (OSError, ValueError) as error:  # ValueError: a kind of file that matplotlib does not write
        raise InputError(f"the picture cannot be written to {picture.path!r}: {error}") from error


def _width(label: str) -> float:
    """Of a label, in inches: an East Asian character is one em wide, others are 0.6 on average."""
    return sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.6 for c in label) * _POINTS / 72


def _panels(weights_NHLS: np.ndarray, picture: Picture) -> list[tuple[str, np.ndarray]]:
    """The chosen heatmaps and their titles."""
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
