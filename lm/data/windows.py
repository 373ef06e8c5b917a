"""Cuts an epoch of a large corpus into windows, each with a number of rows that is known before it is planned.

A batch is a function of (seed, step), so the rows of a step must be found without planning all rows before them. And
the memory of a process must not grow with the corpus. Both follow from three rules:

1. Each epoch puts the blocks of the split (`lm.data.split`) into a random order of its own and cuts the order into
   windows of about equal numbers of tokens. A document is in one block, so each epoch shows it in one window. A window
   of a hundred million tokens mixes about fifty blocks from all over the corpus. Its examples are planned, packed and
   shuffled from the lengths of its own documents. A next-sentence pair takes its other document from the same window.
2. The number of rows of a window is fixed from the counts of its blocks. At the start, twelve samples of blocks, as
   large as a window together, are planned and packed, each three times with other random numbers. A least-squares fit
   gives the rows that a block needs from its numbers of documents, sentences and tokens. A window gets the rows that
   its blocks need and a margin: 0.05%, and twice the error that the fit would make for a window. Counts and samples
   depend on the store and the seed alone, so every process finds the same numbers, at the start as after a restart.
3. A window is packed as tightly as it can be. If that takes fewer rows than the window has, some rows are split in
   two, so each example is in one row still; the cost is padding of the size of the margin. If it takes more, the window
   is planned again with other random numbers. That happens to one window of next-sentence pairs in nine. If it fails
   eight times, as it might where one block is unlike all others, the rows beyond are left out until the next epoch, and
   a line on stderr says so.

A split of at most one and a half windows is one window. Its first epoch has the rows that packing needs; the others
are cut to as many, or refilled from their own beginning.
"""

import functools
from collections.abc import Callable

import numpy as np

from lm.data.split import TOKENS, Split

_SAMPLES = 12
_DRAWS = 3  # plans of a sample; of next-sentence pairs most of the fit's error is in the random numbers
_LEAST_MARGIN = 0.0005
_DEVIATIONS = 2.0
_FEWEST = 6  # samples that fit three coefficients; fewer fit one, the rows of a token
_ORDER, _SAMPLE = 1, 2  # uses of random numbers

# Plans and packs a split: its rows, and how many of its examples lost tokens.
CountRows = Callable[[Split, np.random.Generator], tuple[int, int]]


class Windows:
    """The windows of each epoch of a split.

    Attributes:
        count: windows in an epoch. If it is 1, `rows_per_epoch` and `truncated` are not known here.
        rows_per_epoch: rows of an epoch.
        truncated: about how many examples of an epoch lose tokens.
    """

    def __init__(self, split: Split, window_tokens: int, seed: int, count_rows: CountRows):
        """Counts the windows and, where there are several, the rows of an epoch.

        Args:
            split: the corpus.
            window_tokens: tokens in a window, about.
            seed: decides the samples and the order of each epoch.
            count_rows: plans and packs a sample.
        """
        self._split, self._seed = split, seed
        tokens, total = split.blocks[:, TOKENS], split.num_tokens
        wanted = round(total / window_tokens) if total > 1.5 * window_tokens else 1
        self.count = min(wanted, len(tokens)) or 1
        self.rows_per_epoch = self.truncated = 0
        if self.count > 1:
            self._fit(count_rows)

    def _fit(self, count_rows: CountRows) -> None:
        blocks, count = self._split.blocks, len(self._split.blocks)
        size = max(1, count // self.count // _SAMPLES)  # blocks of a sample
        order = np.random.default_rng((self._seed, 0, 0, _SAMPLE)).permutation(count)
        groups = [np.sort(order[at : at + size]) for at in range(0, min(_SAMPLES * size, count - size + 1), size)]
        found = [
            [count_rows(sample, np.random.default_rng((self._seed, index, draw, _SAMPLE))) for draw in range(_DRAWS)]
            for index, sample in enumerate(map(self._split.window, groups))
        ]
        rows, truncated = np.mean(found, axis=1).T
        counts = np.stack([blocks[group].sum(axis=0) for group in groups])
        if not rows.sum():
            return
        self.truncated = round(truncated.sum() * self._split.num_tokens / counts[:, TOKENS].sum())

        features = slice(None) if len(groups) >= _FEWEST else slice(TOKENS, None)
        scale = counts.mean(axis=0)[features]
        coefficients = np.linalg.lstsq(counts[:, features] / scale, rows, rcond=1e-6)[0]
        by_tokens = blocks[:, TOKENS] * (rows.sum() / counts[:, TOKENS].sum())
        # Far from the samples a fit may be absurd: a block needs between half and twice what its tokens would.
        self._rows = np.clip((blocks[:, features] / scale) @ coefficients, by_tokens / 2, by_tokens * 2)
        errors = rows / np.array([self._rows[group].sum() for group in groups]) - 1
        freedom = max(1, len(groups) - len(coefficients))
        of_window = np.sqrt((errors**2).sum() / freedom * size * self.count / count)
        self.rows_per_epoch = int(np.ceil(self._rows.sum() * (1 + _LEAST_MARGIN + _DEVIATIONS * of_window)))

    @functools.lru_cache(maxsize=4)  # noqa: B019  the windows live as long as the process
    def of_epoch(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Returns the blocks of each window, ascending numbers, and the bounds of its rows, int64 [count + 1]."""
        tokens = self._split.blocks[:, TOKENS]
        order = np.random.default_rng((self._seed, epoch, 0, _ORDER)).permutation(len(tokens))
        middle = np.cumsum(tokens[order]) - tokens[order] / 2
        ends = np.searchsorted(middle, np.arange(1, self.count) * (self._split.num_tokens / self.count))
        needed = np.append(0.0, np.cumsum(self._rows[order]))
        bounds = np.floor(needed[[0, *ends, -1]] * (self.rows_per_epoch / needed[-1])).astype(np.int64)
        bounds[-1] = self.rows_per_epoch
        return [np.sort(blocks) for blocks in np.split(order, ends)], bounds


def fill(row_offsets: np.ndarray, num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Returns a packing of the same examples into exactly `num_rows` rows, int64 [num_rows + 1].

    Rows of several examples are split. If there are too few of these, the last rows are empty. Of more than `num_rows`
    rows the last ones are left out.

    Args:
        row_offsets: int64 [R+1]; row r holds the examples `row_offsets[r]:row_offsets[r+1]`.
        num_rows: rows wanted.
        rng: decides which rows are split.
    """
    missing = max(0, num_rows + 1 - len(row_offsets))
    several = np.flatnonzero(np.diff(row_offsets) > 1)
    divided = rng.permutation(several)[:missing]
    offsets = np.sort(np.append(row_offsets, row_offsets[divided] + 1))
    return np.append(offsets, np.full(missing - len(divided), offsets[-1]))[: num_rows + 1]
