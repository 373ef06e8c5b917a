"""Compares a fast form with its plain formula."""

import jax
import numpy as np


def assert_same(fast, plain, *operands: jax.Array, least: float = 0.1, tolerance: float = 3e-6) -> None:
    """The same values, and the same gradients of every operand under a random cotangent."""
    value, backward = jax.vjp(fast, *operands)
    with jax.numpy_rank_promotion("allow"):
        plain_value, plain_backward = jax.vjp(plain, *operands)
    cotangent = jax.random.normal(jax.random.key(9), value.shape, value.dtype)
    for left, right in zip([value, *backward(cotangent)], [plain_value, *plain_backward(cotangent)], strict=True):
        assert (left.shape, left.dtype) == (right.shape, right.dtype)
        scale = np.abs(right).max()
        assert scale > least
        np.testing.assert_allclose(left, right, atol=tolerance * scale, rtol=0)


def normals(*shapes: tuple[int, ...]) -> list[jax.Array]:
    """Normal arrays with a mean of one half, so that no sum is nearly zero."""
    return [jax.random.normal(jax.random.key(index), shape) + 0.5 for index, shape in enumerate(shapes)]
