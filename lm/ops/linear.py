"""Linear maps: y = x W and y = x + b, with gradients that are products as well.

The kernel's first `inputs` axes are contracted with the last axes of the array.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lm.sharding import gathered, scattered


def linear_plain(array: jax.Array, kernel: jax.Array, inputs: int = 1, scale: float = 1.0) -> jax.Array:
    """scale * (x W)."""
    return jnp.tensordot(array, kernel, axes=inputs) * scale


def add_bias_plain(array: jax.Array, bias: jax.Array) -> jax.Array:
    """x + b over the last axes."""
    return array + bias.astype(array.dtype).reshape((1,) * (array.ndim - bias.ndim) + bias.shape)


@dataclasses.dataclass(frozen=True)
class Linear:
    """What a product with a kernel depends on, besides arrays.

    Attributes:
        inputs: the kernel's first axes that are summed over.
        scale: a factor of the product. The gradient scales W, which is smaller than the result.
        path: the kernel's path in `sharding.PARAMETERS`; empty where the kernel is whole on every device.
        dtype: of the product; None for the array's.
    """

    inputs: int = 1
    scale: float = 1.0
    path: str = ""
    dtype: jax.typing.DTypeLike | None = None


def _linear(how: Linear, array: jax.Array, kernel: jax.Array) -> jax.Array:
    """`linear_plain` with a kernel that may be split over devices.

    A split kernel is gathered for the product, and once more for the gradient. So a scan over layers keeps only the
    parts. Without a scan the compiler sees that both are the same, and keeps the whole kernel.
    """
    whole = gathered(how.path, kernel.astype(array.dtype))
    return jnp.tensordot(array, whole, axes=how.inputs, preferred_element_type=how.dtype or array.dtype) * how.scale


def _linear_backward(how: Linear, kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, ...]:
    # JAX's own rule computes the kernel's gradient transposed. On CPUs XLA copies it to turn it, and multiplies slowly.
    array, kernel = kept
    gradient = gradient.astype(array.dtype)
    whole = gathered(how.path, kernel.astype(array.dtype)) * how.scale
    axes = tuple(range(how.inputs - kernel.ndim, 0))
    of_array = jnp.tensordot(gradient, whole, axes=(axes, axes))

    leading = tuple(range(array.ndim - how.inputs))
    rows = lambda array: array.reshape(*array.shape[: len(leading)], -1)  # noqa: E731
    of_kernel = jnp.tensordot(rows(array), rows(gradient), axes=(leading, leading)) * how.scale
    if kernel.ndim > 2:
        # The barrier keeps XLA from making heads an axis of the product: 64 wide, they fill half of a TPU's arrays.
        of_kernel = jax.lax.optimization_barrier(of_kernel).reshape(kernel.shape)
    return of_array, scattered(how.path, of_kernel).astype(kernel.dtype)


linear = jax.custom_vjp(_linear, nondiff_argnums=(0,))
linear.defvjp(lambda how, *operands: (_linear(how, *operands), operands), _linear_backward)


@jax.custom_vjp
def add_bias(array: jax.Array, bias: jax.Array) -> jax.Array:
    """`add_bias_plain`, whose gradient of b is a product."""
    return add_bias_plain(array, bias)


def _add_bias_backward(bias: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradient of b is a sum over rows. A TPU computes it in half the time as a product with ones.

    XLA turns a product with one row of ones, or one that it can see through, back into a sum. Eight equal rows and a
    barrier prevent that.
    """
    leading = gradient.shape[: gradient.ndim - bias.ndim]
    ones = jax.lax.optimization_barrier(jnp.ones((8, *leading), gradient.dtype))
    axes = tuple(range(len(leading)))
    sums = jnp.tensordot(ones, gradient.reshape(*leading, -1), axes=(tuple(axis + 1 for axis in axes), axes))
    return gradient, jax.lax.optimization_barrier(sums)[0].reshape(bias.shape).astype(bias.dtype)


add_bias.defvjp(lambda array, bias: (add_bias(array, bias), bias), _add_bias_backward)
