"""Every example is in one row, rows are full and never over-full."""

import numpy as np
import pytest

from lm.data import two_sided
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


@pytest.fixture(params=["one row at a time", "many"])
def at_a_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many":
        monkeypatch.setattr(two_sided, "_ONE_BY_ONE", 0)


@pytest.mark.usefixtures("at_a_time")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_per_row", [1, 4, 64])
def test_rows_of_two_sides_hold_every_example_once_within_the_limits(seed: int, max_per_row: int):
    rng = np.random.default_rng(seed)
    capacities = (96, 64)
    sizes = np.stack([rng.integers(1, capacity + 1, rng.integers(1, 300)) for capacity in (96,)] * 2, axis=1)
    sizes = np.minimum(sizes, capacities)
    order, offsets = pack(sizes, capacities, max_per_row, rng)
    assert sorted(order.tolist()) == list(range(len(sizes)))
    assert (offsets[0], offsets[-1]) == (0, len(sizes))
    assert np.diff(offsets).min() >= 1
    assert np.diff(offsets).max() <= max_per_row
    assert (np.add.reduceat(sizes[order], offsets[:-1], axis=0) <= capacities).all()


@pytest.mark.usefixtures("at_a_time")
def test_both_sides_of_pairs_are_filled_to_98_percent():
    """Messages as programs have them: many short ones whose target is shorter, few long ones where it is longer."""
    rng = np.random.default_rng(0)
    words = rng.lognormal(1.6, 0.9, 30_000)
    source = np.clip(5 + 1.4 * words, 6, 128).astype(int)
    target = np.clip(1 + 1.5 * words * rng.choice([0.7, 1.2], len(words)) * rng.lognormal(0, 0.2, len(words)), 2, 128)
    sizes = np.stack([source, target.astype(int)], axis=1)
    capacities = (256, round(256 * sizes[:, 1].mean() / sizes[:, 0].mean()))
    sizes = np.minimum(sizes, capacities)
    order, offsets = pack(sizes, capacities, 64, rng)
    filled = np.add.reduceat(sizes[order], offsets[:-1], axis=0).mean(axis=0) / capacities
    assert filled.min() > 0.98


@pytest.mark.parametrize("capacity", [128, 512])
def test_many_rows_of_independent_sides_are_filled_to_99_percent(capacity: int):
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(np.log(20), 0.6, (20_000, 2)), 1, capacity).astype(int)
    order, offsets = pack(sizes, (capacity, capacity), capacity // 8, rng, together=True)
    rows = np.add.reduceat(sizes[order], offsets[:-1], axis=0)
    assert rows.max() <= capacity
    assert rows.mean() > 0.99 * capacity
