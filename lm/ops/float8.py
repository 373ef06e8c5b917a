"""Linear maps whose products multiply 8-bit floats, with current scaling (Micikevicius et al., 2022).

Each operand is scaled by its own largest value at the time of the product. Values and weights are e4m3, with 3 bits of
mantissa; gradients are e5m2, with 2 bits and more exponents. GPUs since NVIDIA's Hopper multiply such operands at twice
the rate of bfloat16 and add up in float32. Elsewhere the products are as exact, but no faster.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.ops.linear import Linear
from lm.sharding import gathered, scattered


class Scaled(NamedTuple):
    """The array `values * scale`: 8-bit values and a float32 scalar."""

    values: jax.Array
    scale: jax.Array


def scaled(array: jax.Array, dtype: jax.typing.DTypeLike) -> Scaled:
    """Returns the array in 8 bits. Its largest value becomes the largest of the dtype.

    Values that are not finite stay so: the training step that computed them is skipped.
    """
    wide, most = array.astype(jnp.float32), float(jnp.finfo(dtype).max)
    largest = jnp.abs(wide).max()
    # Below this, most / largest would overflow: such an array becomes zeros.
    is_zero = largest <= most * jnp.finfo(jnp.float32).tiny
    enlarged = wide * jnp.where(is_zero, 1.0, most / largest)
    return Scaled(jnp.clip(enlarged, -most, most).astype(dtype), jnp.where(is_zero, 1.0, largest / most))


def _product(left: Scaled, right: Scaled, axes: tuple[tuple[int, ...], tuple[int, ...]], dtype) -> jax.Array:
    """Returns the product over the contracted axes of both."""
    out = jax.lax.dot_general(left.values, right.values, (axes, ((), ())), preferred_element_type=dtype)
    return (out.astype(jnp.float32) * (left.scale * right.scale)).astype(dtype)


def _forward(how: Linear, array: jax.Array, kernel: jax.Array):
    array8, kernel8 = scaled(array, jnp.float8_e4m3fn), scaled(kernel, jnp.float8_e4m3fn)
    whole = kernel8._replace(values=gathered(how.path, kernel8.values))
    inputs = tuple(range(how.inputs))
    out = _product(array8, whole, (tuple(axis - how.inputs + array.ndim for axis in inputs), inputs), array.dtype)
    # The gradient finds both operands in 8 bits. `like` carries the kernel's dtype.
    return out * how.scale, (array8, kernel8, jnp.zeros((), kernel.dtype))


def _backward(how: Linear, kept: tuple[Scaled, Scaled, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    array8, kernel8, like = kept
    gradient8 = scaled(gradient, jnp.float8_e5m2)
    gradient8 = gradient8._replace(scale=gradient8.scale * how.scale)
    whole = kernel8._replace(values=gathered(how.path, kernel8.values))
    outputs = kernel8.values.ndim - how.inputs
    leading = tuple(range(gradient.ndim - outputs))
    last = tuple(range(len(leading), gradient.ndim))
    of_array = _product(gradient8, whole, (last, tuple(range(how.inputs, kernel8.values.ndim))), gradient.dtype)
    of_kernel = _product(array8, gradient8, (leading, leading), gradient.dtype)
    return of_array, scattered(how.path, of_kernel).astype(like.dtype)


def _linear(how: Linear, array: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `lm.ops.linear.linear_plain` with operands in 8 bits."""
    return _forward(how, array, kernel)[0]


linear = jax.custom_vjp(_linear, nondiff_argnums=(0,))
linear.defvjp(_forward, _backward)
