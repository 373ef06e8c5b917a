"""Random documents as flat arrays, for the tests of the two tasks that hide spans."""

import numpy as np

from lm.data.flat import make_keys


def documents(count: int, longest: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, lengths and keys of random documents."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest, count)
    return rng.integers(105, 4000, lengths.sum()), lengths, make_keys(seed, np.arange(count))


def split(flat: np.ndarray, sizes: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(flat, np.cumsum(sizes)[:-1])]
