"""Random numbers for the places of flat sequences are uniform and independent, and so are choices of places."""

import numpy as np

from lm.data.flat import choose, make_keys, ranks, starts, uniform


def test_choices_are_uniform():
    counts, chosen = np.full(5000, 6), np.full(5000, 2)
    marked = choose(make_keys(3, np.arange(5000)), counts, chosen, use=0).reshape(5000, 6)
    assert (marked.sum(axis=1) == 2).all()
    pairs = np.bincount((marked * 2 ** np.arange(6)).sum(axis=1), minlength=64)
    found = pairs[pairs > 0]
    assert len(found) == 15
    np.testing.assert_allclose(found / 5000, 1 / 15, atol=4 * np.sqrt(1 / 15 / 5000))


def test_random_numbers_are_uniform_and_independent():
    keys, counts = make_keys(0, np.arange(300)), np.full(300, 200)
    numbers = uniform(keys, counts, use=1)
    assert 0 <= numbers.min() <= numbers.max() < 1
    np.testing.assert_allclose(np.histogram(numbers, 20)[0] / len(numbers), 0.05, atol=0.004)
    grid = numbers.reshape(300, 200) - 0.5
    for one, other in ((grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])):
        assert abs((one * other).mean() * 12) * np.sqrt(one.size) < 4
    assert (ranks(np.array([2, 0, 3])) == [0, 1, 0, 1, 2]).all()
    assert (starts(np.array([2, 0, 3])) == [0, 2, 2]).all()
