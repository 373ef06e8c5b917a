"""Every example is in one row, rows are full and never over-full."""

import numpy as np
import pytest

from lm.data.packing import pack


def best_fit_decreasing(lengths: np.ndarray, capacity: int, max_per_row: int) -> int:
    """Rows that the plain algorithm needs, one example at a time."""
    rooms: list[tuple[int, int]] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [row for row in rooms if row[0] >= length and row[1] < max_per_row]
        room, size = min(fitting) if fitting else (capacity, 0)
        if fitting:
            rooms.remove((room, size))
        rooms.append((room - length, size + 1))
    return len(rooms)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("max_per_row", [1, 3, 8, 128])
def test_rows_hold_every_example_once_within_the_limits(seed: int, max_per_row: int):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 128 + 1, rng.integers(1, 500))
    order, offsets = pack(lengths[:, None], (128,), max_per_row, rng)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert (offsets[0], offsets[-1]) == (0, len(lengths))
    sizes = np.diff(offsets)
    assert (sizes.min(), sizes.max() <= max_per_row) >= (1, True)
    assert np.add.reduceat(lengths[order], offsets[:-1]).max() <= 128


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("max_per_row", [4, 100])
def test_as_few_rows_as_best_fit_decreasing_one_by_one(seed: int, max_per_row: int):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 64 + 1, 300)
    _, offsets = pack(lengths[:, None], (64,), max_per_row, rng)
    assert len(offsets) - 1 <= best_fit_decreasing(lengths, 64, max_per_row) + 1


@pytest.mark.parametrize(("capacity", "max_per_row"), [(128, 8), (512, 16)])
def test_padding_of_realistic_lengths_is_below_a_hundredth(capacity: int, max_per_row: int):
    """Half of the pairs are full rows, the ends of documents are log-normal."""
    rng = np.random.default_rng(0)
    ends = np.clip(rng.lognormal(np.log(capacity / 2.5), 0.6, 10_000), 5, capacity).astype(int)
    lengths = np.concatenate([np.full(10_000, capacity), ends])
    _, offsets = pack(lengths[:, None], (capacity,), max_per_row, rng)
    assert 1 - lengths.sum() / ((len(offsets) - 1) * capacity) < 0.01


def test_members_and_order_are_random_but_seeded():
    lengths = np.repeat([40, 60, 70], 100)
    first, second, again = (pack(lengths[:, None], (128,), 8, np.random.default_rng(seed))[0] for seed in (0, 1, 0))
    np.testing.assert_array_equal(first, again)
    assert (first != second).mean() > 0.9


def test_no_example_needs_no_row():
    order, offsets = pack(np.zeros((0, 1), int), (128,), 8, np.random.default_rng(0))
    assert (len(order), offsets.tolist()) == (0, [0])
