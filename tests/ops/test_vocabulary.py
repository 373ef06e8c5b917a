"""Reductions over a vocabulary equal their formulas, ties included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.ops.vocabulary import argmax, argmax_plain, largest, largest_plain, log_sum_exp, log_sum_exp_plain


def rounded(size: int) -> jax.Array:
    """Scores among which there are ties."""
    return jnp.round(jax.random.normal(jax.random.key(0), (3, 2, size)), 2)


@pytest.mark.parametrize("size", [300, 5000, 8192])
def test_the_largest_are_found_block_by_block(size):
    scores = rounded(size)
    found, tokens = largest(scores, 8)
    expected, _ = largest_plain(scores, 8)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(jnp.take_along_axis(scores, tokens, axis=2), expected)
    assert all(len(set(row)) == 8 for row in np.asarray(tokens).reshape(-1, 8).tolist())


@pytest.mark.parametrize("size", [7, 5000])
def test_argmax_is_the_first_of_the_largest(size):
    np.testing.assert_array_equal(argmax(rounded(size)), argmax_plain(rounded(size)))


@pytest.mark.parametrize("size", [7, 5000, 8192])
def test_the_logarithm_of_the_sum(size):
    np.testing.assert_allclose(log_sum_exp(rounded(size)), log_sum_exp_plain(rounded(size)), rtol=1e-6)
