"""Norms equal their formulas, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.ops.norm import normalize, normalize_plain
from tests.ops.plain import assert_same, normals


@pytest.mark.parametrize(("centred", "with_bias"), [(True, True), (True, False), (False, False)])
def test_norms(centred, with_bias):
    fast, plain = (
        functools.partial(lambda form, *operands: form(centred, 1e-3, *operands, *[None] * (not with_bias)), form)
        for form in (normalize, normalize_plain)
    )
    assert_same(fast, plain, *normals((2, 5, 48), (48,), *[(48,)] * with_bias))


def test_statistics_in_one_pass_are_those_of_a_rounded_array():
    """In bfloat16 the variance is a difference of two squares; it is as exact as the rounded input allows."""
    array = (3.0 + jax.random.normal(jax.random.key(0), (64, 256))).astype(jnp.bfloat16)
    one, none = jnp.ones(256), jnp.zeros(256)
    found = jnp.asarray(normalize(True, 1e-6, array, one, none), jnp.float32)
    expected = normalize_plain(True, 1e-6, array.astype(jnp.float32), one, none)
    np.testing.assert_allclose(found, expected, atol=2e-2)
    np.testing.assert_allclose(found - expected, 0, atol=2**-8 * np.abs(expected).max())
