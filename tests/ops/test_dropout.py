"""Dropout's masks are random, and its gradient has the same mask."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from lm.ops.dropout import Dropout, drop_plain, keep_mask
from tests.ops.plain import assert_same, normals


def test_dropout_equals_its_formula():
    key, shape = jax.random.key(5), (6, 50)
    keep = keep_mask(0.3, shape, key)
    assert 0.5 < keep.mean() < 0.9
    assert_same(Dropout(0.3, key), lambda array: drop_plain(0.3, array, keep), *normals(shape))


def dropped(seed: int, shape: tuple[int, ...], rate: float) -> np.ndarray:
    """Which entries a key drops."""
    return np.asarray(Dropout(rate, jax.random.fold_in(jax.random.key(0), seed))(jnp.ones(shape))) == 0


def test_masks_are_as_random_as_they_need_to_be():
    """Rates, neighbours in every direction and other keys: deviations as wide as chance makes them, and no wider."""
    rate, shape, keys = 0.1, (4, 8, 64, 64), 64
    masks = [dropped(seed, shape, rate).ravel() for seed in range(keys)]
    size, centred = masks[0].size, [mask - rate for mask in masks]
    spread = np.sqrt(rate * (1 - rate))
    rates = [mask.sum() / spread / np.sqrt(size) for mask in centred]
    shifts = (1, 63, 64, 65, 4096)
    neighbours = [mask[:-by] @ mask[by:] / spread**2 / np.sqrt(size - by) for mask in centred for by in shifts]
    others = [one @ other / spread**2 / np.sqrt(size) for one, other in itertools.pairwise(centred)]
    for deviations in (rates, neighbours, others):
        assert abs(np.mean(deviations)) < 4 / np.sqrt(len(deviations))
        assert 0.7 < np.std(deviations) < 1.3


def test_what_is_kept_is_scaled_up_and_the_gradient_goes_through_it_alone():
    dropout = Dropout(0.25, jax.random.key(3))
    ones = jnp.ones((16, 32))
    kept = np.asarray(dropout(ones))
    assert set(np.unique(kept)) == {0.0, np.float32(1 / 0.75)}
    np.testing.assert_array_equal(jax.grad(lambda x: dropout(x).sum())(ones), kept)
    np.testing.assert_array_equal(dropped(5, (8, 8), 0.0), np.zeros((8, 8), bool))
