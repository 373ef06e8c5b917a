"""How examples become rows: which sides a row has, how long an example is on each, and what is written there.

A layout plans an epoch's examples, says how many tokens each takes on every side of its row, and writes the
arrays of some rows. Encoders have one side; encoder-decoders two, source and target, whose equal segment numbers
belong together.

B rows, L or S tokens in a row of the encoder, T in one of the decoder, P segments of a row, N examples.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from lm.config import DataConfig, ObjectiveConfig
from lm.data import corruption, examples
from lm.data.corruption import ranks
from lm.data.examples import Examples
from lm.data.special_ids import SpecialIds, require
from lm.data.store import Split
from lm.errors import InputError

Arrays = dict[str, np.ndarray]

_SOURCE = ("tokens", "segments", "positions")
_TARGET = ("targets", "target_segments", "target_positions")


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where N examples lie in B rows: their row, number in the row, and offset on each side, int [N] or [N, sides]."""

    rows: int
    row: np.ndarray
    nth: np.ndarray
    offsets: np.ndarray


class Layout(Protocol):
    """See the module's docstring.

    Attributes:
        capacities: tokens in a row of each side.
    """

    capacities: tuple[int, ...]

    def plan(self, split: Split, rng: np.random.Generator) -> Examples:
        """The examples of an epoch, from lengths alone."""
        ...

    def sizes(self, found: Examples) -> np.ndarray:
        """int64 [N, sides], tokens that each example takes."""
        ...

    def arrays(self, split: Split, found: Examples, place: Placement, keys: np.ndarray) -> Arrays:
        """The arrays of the rows that hold these examples; `keys` [N] decide what is random about them."""
        ...


def create(
    data: DataConfig, objective: ObjectiveConfig, special: SpecialIds, prefix: Sequence[int] | np.ndarray = ()
) -> Layout:
    """The layout that an objective needs.

    Args:
        data: lengths of the rows, and what begins an example.
        objective: what the rows are for.
        special: ids with a meaning of their own.
        prefix: ids put before every source that an encoder-decoder reads.

    Raises:
        InputError: the tokenizer lacks the special tokens of the objective, or rows are too short for an example.
    """
    needed = {"mlm": ("cls", "mask"), "infilling": ("mask",)}.get(objective.name, ())
    require(special, *needed, use=f"objective.name={objective.name}")
    if data.begin_with_cls:
        require(special, "cls", use="data.begin_with_cls=True")
    if objective.name == "span_corruption" and not special.num_sentinels:
        raise InputError(
            "the tokenizer has no <extra_id_0>, which objective.name=span_corruption needs; use another tokenizer, or "
            "leave data.tokenizer empty to train one."
        )
    match objective.name:
        case "mlm":
            return EncoderRows(data, objective.nsp, special)
        case "span_corruption":
            spans = corruption.SpanCorruption(
                objective.mask_rate, objective.mean_span, special.first_sentinel, special.num_sentinels
            )
            return CorruptedRows(data, special, spans, prefix=prefix)
        case "infilling":
            spans = corruption.Infilling(objective.mask_rate, objective.mean_span, special.mask)
            return CorruptedRows(data, special, spans, objective.permute_sentences, prefix)
        case "pairs":
            return PairRows(data, special, prefix)
        case _:
            return CausalRows(data, special)


class EncoderRows:
    """[CLS] text [SEP], or [CLS] text [SEP] text [SEP] with the labels of next-sentence prediction.

    Arrays, int32. [B, L]: `tokens`; `segments` (0 for padding, then 1..P); `positions`, which begin again at 0 in
    every segment; `token_types` (1 in the second sentence of a pair and its [SEP]). With NSP also [B, P]:
    `cls_positions`, the place of each pair's [CLS] in its row, and `nsp_labels`, 0 for next, 1 for random, -1 for no
    pair there.
    """

    def __init__(self, data: DataConfig, nsp: bool, special: SpecialIds):
        self._data, self._nsp, self._special = data, nsp, special
        self.capacities = (data.seq_length,)

    def plan(self, split: Split, rng: np.random.Generator) -> Examples:
        length = self._data.seq_length
        if self._nsp:
            return examples.sentence_pairs(split, length, self._data.short_seq_prob, rng)
        return examples.running_text(split, length - 2, 2, rng)

    def sizes(self, found: Examples) -> np.ndarray:
        return found.row_lengths[:, None]

    def arrays(self, split: Split, found: Examples, place: Placement, keys: np.ndarray) -> Arrays:
        del keys  # masking is the device's
        total = found.row_lengths
        text = split.read(found.starts.ravel(), found.lengths.ravel())
        tokens = _ended(text, found.lengths, self._special, np.array([self._special.cls]))
        num_examples, num_spans = found.lengths.shape
        runs = found.lengths + 1  # a span and its [SEP] ...
        runs[:, 0] += 1  # ... and [CLS] before the first
        types = np.repeat(np.tile(np.arange(num_spans), num_examples), runs.ravel())
        batch = _side(_SOURCE, tokens, total, place, 0, self, self._special.pad)
        batch["token_types"] = _scattered(types, total, place, 0, self)
        if self._nsp:
            shape = (place.rows, self._data.max_segments)
            batch["cls_positions"] = np.zeros(shape, np.int32)
            batch["nsp_labels"] = np.full(shape, -1, np.int32)
            batch["cls_positions"][place.row, place.nth] = place.offsets[:, 0]
            batch["nsp_labels"][place.row, place.nth] = found.labels
        return batch


class PairRows:
    """A source and its target, each ending in [SEP] and, with `data.begin_with_cls`, beginning with [CLS].

    A prefix comes before the source. Arrays, int32: `tokens`, `segments` and `positions` [B, S] of the sources, and
    `targets`, `target_segments` and `target_positions` [B, T].
    """

    def __init__(self, data: DataConfig, special: SpecialIds, prefix: Sequence[int] | np.ndarray = ()):
        self._special, self._begins = special, _begins(data, special, prefix)
        self.capacities = (data.seq_length, data.target_length)
        self._added = np.array([len(begin) + 1 for begin in self._begins])
        if data.seq_length <= self._added[0]:
            raise InputError(
                f"data.seq_length={data.seq_length} holds no source beside a prefix of {len(prefix)} tokens; raise it."
            )

    def plan(self, split: Split, rng: np.random.Generator) -> Examples:
        del rng
        return examples.pairs(split, tuple((np.array(self.capacities) - self._added).tolist()))

    def sizes(self, found: Examples) -> np.ndarray:
        return found.lengths.astype(np.int64) + self._added

    def arrays(self, split: Split, found: Examples, place: Placement, keys: np.ndarray) -> Arrays:
        del keys
        batch: Arrays = {}
        sizes = self.sizes(found)
        for side, names in enumerate((_SOURCE, _TARGET)):
            lengths = found.lengths[:, side].astype(np.int64)
            text = split.read(found.starts[:, side], lengths)
            tokens = _ended(text, lengths, self._special, self._begins[side])
            batch |= _side(names, tokens, sizes[:, side], place, side, self, self._special.pad)
        return batch


class CorruptedRows:
    """Running text with spans hidden, and what tells them: the arrays of `PairRows`."""

    def __init__(
        self,
        data: DataConfig,
        special: SpecialIds,
        spans: corruption.SpanCorruption | corruption.Infilling,
        permute_sentences: bool = False,
        prefix: Sequence[int] | np.ndarray = (),
    ):
        self._special, self._begins = special, _begins(data, special, prefix)
        self._spans, self._permute = spans, permute_sentences
        self.capacities = (data.seq_length, data.target_length)
        lengths = np.arange(2, 4 * max(self.capacities))
        fits = np.all(self._ended_sizes(lengths) <= np.array(self.capacities), axis=1)
        # The longest piece of text that fits, as do all shorter ones: T5's 568 tokens for rows of 512 and 114.
        self.longest = int(lengths[: fits.argmin()][-1]) if fits[0] else 0
        if self.longest < 4:
            beside = f" beside a prefix of {len(prefix)} tokens" if len(prefix) else ""
            raise InputError(
                f"data.seq_length={data.seq_length} and data.target_length={data.target_length} hold no corrupted "
                f"text{beside}; raise them."
            )

    def _ended_sizes(self, lengths: np.ndarray) -> np.ndarray:
        return np.stack(self._spans.sizes(lengths), axis=1) + [len(begin) + 1 for begin in self._begins]

    def plan(self, split: Split, rng: np.random.Generator) -> Examples:
        found = examples.running_text(split, self.longest, 3 + sum(map(len, self._begins)), rng)
        return found[np.flatnonzero(found.lengths[:, 0] >= 2)]  # of one token nothing can be hidden

    def sizes(self, found: Examples) -> np.ndarray:
        return self._ended_sizes(found.lengths[:, 0].astype(np.int64))

    def arrays(self, split: Split, found: Examples, place: Placement, keys: np.ndarray) -> Arrays:
        lengths = found.lengths[:, 0].astype(np.int64)
        text = split.read(found.starts[:, 0], lengths).astype(np.int32)
        if isinstance(self._spans, corruption.SpanCorruption):
            source, target = self._spans(text, lengths, keys)
        else:
            shown = text
            if self._permute:
                at = np.repeat(found.starts[:, 0], lengths) + ranks(lengths)
                sentence = np.searchsorted(split.sentence_offsets, at, side="right")
                shown = text[corruption.permuted_sentences(lengths, sentence, keys)]
            source, target = self._spans(shown, lengths, keys), text
        batch: Arrays = {}
        sizes = np.stack(self._spans.sizes(lengths), axis=1)
        for side, (names, tokens) in enumerate(((_SOURCE, source), (_TARGET, target))):
            begin = self._begins[side]
            ended = _ended(tokens, sizes[:, side], self._special, begin)
            batch |= _side(names, ended, sizes[:, side] + 1 + len(begin), place, side, self, self._special.pad)
        return batch


class CausalRows:
    """Running text and [SEP], to be predicted from left to right: `targets` and their like, [B, L]."""

    def __init__(self, data: DataConfig, special: SpecialIds):
        self._special = special
        self.capacities = (data.seq_length,)

    def plan(self, split: Split, rng: np.random.Generator) -> Examples:
        return examples.running_text(split, self.capacities[0] - 1, 1, rng)

    def sizes(self, found: Examples) -> np.ndarray:
        return found.lengths.astype(np.int64) + 1

    def arrays(self, split: Split, found: Examples, place: Placement, keys: np.ndarray) -> Arrays:
        del keys
        lengths = found.lengths[:, 0].astype(np.int64)
        tokens = _ended(split.read(found.starts[:, 0], lengths), lengths, self._special, np.zeros(0, np.int32))
        return _side(_TARGET, tokens, lengths + 1, place, 0, self, self._special.pad)


def _begins(data: DataConfig, special: SpecialIds, prefix: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids that every source and every target begins with."""
    cls = [special.cls] if data.begin_with_cls else []
    return np.array([*cls, *prefix], np.int32), np.array(cls, np.int32)


def _ended(tokens: np.ndarray, lengths: np.ndarray, special: SpecialIds, begin: np.ndarray) -> np.ndarray:
    """Flat sequences of spans, [SEP] after each span and `begin` before the first of a sequence.

    Args:
        tokens: int [sum(lengths)].
        lengths: int [N] or, of several spans, [N, K].
        special: for the id of [SEP].
        begin: int [any].
    """
    lengths = lengths.reshape(len(lengths), -1)
    runs = lengths.astype(np.int64) + 1
    runs[:, 0] += len(begin)
    ends = np.cumsum(runs).reshape(runs.shape) - 1
    ended = np.empty(runs.sum(), np.int32)
    ended[(ends[:, 0] - runs[:, 0] + 1)[:, None] + np.arange(len(begin))] = begin
    ended[ends] = special.sep
    ended[np.repeat((ends - lengths).ravel(), lengths.ravel()) + ranks(lengths.ravel())] = tokens
    return ended


def _side(
    names: tuple[str, str, str],
    tokens: np.ndarray,
    sizes: np.ndarray,
    place: Placement,
    side: int,
    layout: Layout,
    pad_id: int,
) -> Arrays:
    """Tokens, segments and positions of one side, int32 [B, capacity]; segment 0 is padding."""
    arrays = (tokens, pad_id), (np.repeat(place.nth + 1, sizes), 0), (ranks(sizes), 0)
    return {
        name: _scattered(values, sizes, place, side, layout, fill)
        for name, (values, fill) in zip(names, arrays, strict=True)
    }


def _scattered(
    values: np.ndarray, sizes: np.ndarray, place: Placement, side: int, layout: Layout, fill: int = 0
) -> np.ndarray:
    """Flat values of N examples, `sizes` long, as int32 [B, capacity]."""
    capacity = layout.capacities[side]
    array = np.full(place.rows * capacity, fill, np.int32)
    array[np.repeat(place.row * capacity + place.offsets[:, side], sizes) + ranks(sizes)] = values
    return array.reshape(place.rows, capacity)
