"""Writes examples into rows: adds special tokens, and fills the arrays of tokens, segments and positions.

B rows, L or S tokens in a row of the encoder, T in one of the decoder, N examples.
"""

import numpy as np

from lm.config import Config, DataConfig
from lm.data.batches import Arrays, Placement
from lm.data.flat import ranks
from lm.tasks.task import ArraySpec
from lm.tokenizers.special_ids import SpecialIds, require

# The arrays of a side. Tokens: their ids. Segments: the number of a token's example in the row, from 1; 0 is padding.
# Positions: the index of a token in its example, from 0.
SOURCE = ("tokens", "segments", "positions")
TARGET = ("targets", "target_segments", "target_positions")


def source_and_target_shapes(config: Config) -> dict[str, ArraySpec]:
    """Returns the arrays of a row with a source and a target, of shapes [S] and [T]."""
    sides = (SOURCE, config.data.seq_length), (TARGET, config.data.target_length)
    return {name: ArraySpec((length,)) for names, length in sides for name in names}


def begins(data: DataConfig, special: SpecialIds, prefix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids that come before every source, and those before every target.

    Raises:
        InputError: `data.begin_with_cls` is set, and the tokenizer has no [CLS].
    """
    if data.begin_with_cls:
        require(special, "cls", use="data.begin_with_cls=True")
    cls = [special.cls] if data.begin_with_cls else []
    return np.array([*cls, *prefix], np.int32), np.array(cls, np.int32)


def ended(tokens: np.ndarray, lengths: np.ndarray, special: SpecialIds, begin: np.ndarray) -> np.ndarray:
    """Returns flat sequences, with `begin` before each sequence and [SEP] after each of its spans, int32.

    Args:
        tokens: int [sum(lengths)], the flat spans.
        lengths: int [N], or int [N, K] where a sequence has K spans.
        special: has the id of [SEP].
        begin: int [any], token ids.
    """
    lengths = lengths.reshape(len(lengths), *(lengths.shape[1:] or (1,)))  # -1 would not do without examples
    runs = lengths.astype(np.int64) + 1
    runs[:, 0] += len(begin)
    ends = np.cumsum(runs).reshape(runs.shape) - 1
    found = np.empty(runs.sum(), np.int32)
    found[(ends[:, 0] - runs[:, 0] + 1)[:, None] + np.arange(len(begin))] = begin
    found[ends] = special.sep
    found[np.repeat((ends - lengths).ravel(), lengths.ravel()) + ranks(lengths.ravel())] = tokens
    return found


def write_side(
    names: tuple[str, str, str],
    tokens: np.ndarray,
    sizes: np.ndarray,
    place: Placement,
    capacities: tuple[int, ...],
    pad_id: int,
    side: int = 0,
) -> Arrays:
    """Returns tokens, segments and positions of one side, int32 [B, capacities[side]].

    Args:
        names: `SOURCE` or `TARGET`.
        tokens: int [sum(sizes)], the flat tokens of N examples.
        sizes: int [N], tokens of each example.
        place: the row and the offset of each example.
        capacities: the length of a row on each side.
        pad_id: the id of padding.
        side: 0 for the source, 1 for the target.
    """
    arrays = (tokens, pad_id), (np.repeat(place.nth + 1, sizes), 0), (ranks(sizes), 0)
    return {
        name: write_values(values, sizes, place, capacities, fill, side)
        for name, (values, fill) in zip(names, arrays, strict=True)
    }


def write_values(
    values: np.ndarray,
    sizes: np.ndarray,
    place: Placement,
    capacities: tuple[int, ...],
    fill: int = 0,
    side: int = 0,
) -> np.ndarray:
    """Returns int32 [B, capacities[side]]: the flat values of N examples at their places, and `fill` elsewhere."""
    array = np.full(place.rows * capacities[side], fill, np.int32)
    array[np.repeat(place.row * capacities[side] + place.offsets[:, side], sizes) + ranks(sizes)] = values
    return array.reshape(place.rows, capacities[side])
