"""Rows of the two denoising tasks: the source is running text with spans hidden, the target restores them."""

import abc

import numpy as np

from lm.config import DataConfig
from lm.data.batches import Arrays, Placement
from lm.data.examples import Examples, running_text
from lm.data.store import Split
from lm.errors import InputError
from lm.tasks.rows import SOURCE, TARGET, begins, ended, write_side
from lm.tokenizers.special_ids import SpecialIds

# Flat tokens of N texts, int [sum(sizes)], and their sizes, int64 [N].
Texts = tuple[np.ndarray, np.ndarray]


class CorruptedRows(abc.ABC):
    """Rows of a text with spans hidden, and a target that restores them. The arrays are those of `PairRows`."""

    def __init__(self, data: DataConfig, special: SpecialIds, prefix: np.ndarray):
        """Finds the longest text whose source and target fit into a row.

        Raises:
            InputError: a text of four tokens does not fit.
        """
        self._special, self._begins = special, begins(data, special, prefix)
        self.capacities = (data.seq_length, data.target_length)
        lengths = np.arange(2, 4 * max(self.capacities))
        fits = np.all(self._ended_sizes(lengths) <= np.array(self.capacities), axis=1)
        # The longest text that fits together with all shorter ones. For rows of 512 and 114 it has T5's 568 tokens.
        self.longest = int(lengths[: fits.argmin()][-1]) if fits[0] else 0
        if self.longest < 4:
            after = f" after a prefix of {len(prefix)} tokens" if len(prefix) else ""
            raise InputError(
                f"data.seq_length={data.seq_length} and data.target_length={data.target_length} hold no corrupted "
                f"text{after}; raise them."
            )

    @abc.abstractmethod
    def corrupted_sizes(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the largest sizes of source and target, int [N] each in tokens, given the lengths of N texts."""

    @abc.abstractmethod
    def corrupt(self, split: Split, examples: Examples, keys: np.ndarray) -> tuple[Texts, Texts]:
        """Returns the sources and the targets of N texts. They are at most as long as `corrupted_sizes`."""

    def pieces(self, split: Split, rng: np.random.Generator) -> Examples:
        """Returns the texts of an epoch, each of at most `longest` tokens."""
        return running_text(split, self.longest, 3 + sum(map(len, self._begins)), rng)

    def _ended_sizes(self, lengths: np.ndarray) -> np.ndarray:
        return np.stack(self.corrupted_sizes(lengths), axis=1) + [len(begin) + 1 for begin in self._begins]

    def plan(self, split: Split, rng: np.random.Generator) -> Examples:
        examples = self.pieces(split, rng)
        return examples[np.flatnonzero(examples.lengths[:, 0] >= 2)]  # a text of one token has none to hide

    def sizes(self, examples: Examples) -> np.ndarray:
        return self._ended_sizes(examples.lengths[:, 0].astype(np.int64))

    def arrays(self, split: Split, examples: Examples, place: Placement, keys: np.ndarray) -> Arrays:
        batch: Arrays = {}
        sides = list(zip((SOURCE, TARGET), self.corrupt(split, examples, keys), self._begins, strict=True))
        full_sizes = [sizes + 1 + len(begin) for _, (_, sizes), begin in sides]
        place = place.moved(np.stack(full_sizes, axis=1))
        for side, (names, (tokens, sizes), begin) in enumerate(sides):
            with_ends = ended(tokens, sizes, self._special, begin)
            batch |= write_side(names, with_ends, full_sizes[side], place, self.capacities, self._special.pad, side)
        return batch


def hidden_counts(lengths: np.ndarray, rate: float, mean_span: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many tokens of each text to hide, 1 to n - 1, and in how many spans, each int64 [N]."""
    hidden = np.clip(np.round(rate * lengths), 1, lengths - 1).astype(np.int64)
    return hidden, np.maximum(1, np.round(hidden / mean_span)).astype(np.int64)
