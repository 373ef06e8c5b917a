"""Products of 8-bit floats equal the plain ones where the operands fit 8 bits, and are close to them elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.ops import float8
from lm.ops.linear import Linear, linear_plain


def both(how, array, kernel, gradient):
    """The output and both gradients, in 8 bits and plain."""
    found = []
    for function in (functools.partial(float8.linear, how), lambda x, w: linear_plain(x, w, how.inputs, how.scale)):
        out, backward = jax.vjp(function, array, kernel)
        found.append((out, *backward(gradient)))
    return zip(*found, strict=True)


@pytest.mark.parametrize(("kernel", "inputs"), [((6, 2, 3), 1), ((2, 3, 6), 2)])
def test_operands_that_fit_8_bits_are_multiplied_exactly(kernel, inputs):
    """Whole numbers up to 7, the largest: scaled by a power of two they have at most two bits of mantissa."""
    shapes = ((4, 5, *kernel[:inputs]), kernel, (4, 5, *kernel[inputs:]))
    rng = np.random.default_rng(0)
    operands = [rng.integers(-7, 8, shape).astype(np.float32) for shape in shapes]
    for operand in operands:
        operand.flat[0] = 7
    for one, other in both(Linear(inputs, scale=0.5), *map(jnp.asarray, operands)):
        assert np.abs(other).max() > 10
        np.testing.assert_array_equal(one, other)


def test_other_operands_are_rounded():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((64, 256), (256, 128), (64, 128))
    array, kernel, gradient = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    for one, other in both(Linear(), 1e3 * array, 1e-3 * kernel, 1e-6 * gradient):
        error = float(jnp.linalg.norm(one - other) / jnp.linalg.norm(other))
        assert 0.005 < error < 0.08  # 2^-4 a value of e4m3, 2^-3 one of e5m2, at most


def test_what_is_not_finite_stays_so():
    """So that the training step is skipped."""
    for bad in (jnp.nan, jnp.inf):
        out = float8.linear(Linear(), jnp.ones((4, 8)).at[1, 2].set(bad), jnp.ones((8, 4)))
        assert not jnp.isfinite(out[1]).any()
    for small in (0.0, 1e-37):
        np.testing.assert_array_equal(float8.linear(Linear(), jnp.full((4, 8), small), jnp.ones((8, 4))), 0.0)
