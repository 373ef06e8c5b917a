"""Linear maps, y = x W and y = x + b, with gradients computed as matrix products.

The kernel's first `inputs` axes are contracted with the last axes of the array.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lm.sharding import gathered, platform, scattered


def linear_plain(array: jax.Array, kernel: jax.Array, inputs: int = 1, scale: float = 1.0) -> jax.Array:
    """Returns scale * (x W)."""
    return jnp.tensordot(array, kernel, axes=inputs) * scale


def add_bias_plain(array: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns x + b, where b has the last axes of x."""
    return array + bias.astype(array.dtype).reshape((1,) * (array.ndim - bias.ndim) + bias.shape)


@dataclasses.dataclass(frozen=True)
class Linear:
    """The static arguments of `linear`.

    Attributes:
        inputs: how many of the kernel's first axes are summed over.
        scale: a factor of the product. The gradient scales W, which is smaller than the result.
        path: the kernel's path in `sharding.PARAMETERS`; empty where the kernel is not sharded.
        dtype: the dtype of the product; None for that of the array.
    """

    inputs: int = 1
    scale: float = 1.0
    path: str = ""
    dtype: jax.typing.DTypeLike | None = None


def _linear(how: Linear, array: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `linear_plain` with a kernel that may be sharded.

    A sharded kernel is all-gathered for the product, and again for the gradient. A scan over layers thus keeps only the
    shards. Without a scan the compiler merges the two all-gathers and keeps the whole kernel.
    """
    whole = gathered(how.path, kernel.astype(array.dtype))
    return jnp.tensordot(array, whole, axes=how.inputs, preferred_element_type=how.dtype or array.dtype) * how.scale


def _linear_backward(how: Linear, kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, ...]:
    # JAX's own rule computes the kernel's gradient transposed. XLA's CPU backend then adds a copy that transposes it
    # back, and its product is slower.
    array, kernel = kept
    gradient = gradient.astype(array.dtype)
    whole = gathered(how.path, kernel.astype(array.dtype)) * how.scale
    axes = tuple(range(how.inputs - kernel.ndim, 0))
    of_array = jnp.tensordot(gradient, whole, axes=(axes, axes))

    leading = tuple(range(array.ndim - how.inputs))
    rows = lambda array: array.reshape(*array.shape[: len(leading)], -1)  # noqa: E731
    of_kernel = jnp.tensordot(rows(array), rows(gradient), axes=(leading, leading)) * how.scale
    if kernel.ndim > 2:
        # Without the barrier XLA makes heads an axis of the product. A head of 64 fills half of a TPU's matrix unit.
        of_kernel = jax.lax.optimization_barrier(of_kernel).reshape(kernel.shape)
    return of_array, scattered(how.path, of_kernel).astype(kernel.dtype)


linear = jax.custom_vjp(_linear, nondiff_argnums=(0,))
linear.defvjp(lambda how, *operands: (_linear(how, *operands), operands), _linear_backward)


@jax.custom_vjp
def add_bias(array: jax.Array, bias: jax.Array) -> jax.Array:
    """Computes `add_bias_plain`. Its gradient for b is a matrix product."""
    if platform() != "gpu":
        return add_bias_plain(array, bias)
    # cuBLAS adds a bias to rows as it multiplies. XLA does not see that heads are rows in two axes.
    rows = array.reshape(*array.shape[: array.ndim - bias.ndim], -1)
    return add_bias_plain(rows, bias.reshape(-1)).reshape(array.shape)


def _add_bias_backward(bias: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of x and b.

    The gradient of b is a sum over rows. As a product with ones it takes a TPU half the time. XLA turns a product with
    one row of ones back into a sum. We use eight equal rows and a barrier, which prevent that.
    """
    leading = gradient.shape[: gradient.ndim - bias.ndim]
    ones = jax.lax.optimization_barrier(jnp.ones((8, *leading), gradient.dtype))
    axes = tuple(range(len(leading)))
    sums = jnp.tensordot(ones, gradient.reshape(*leading, -1), axes=(tuple(axis + 1 for axis in axes), axes))
    return gradient, jax.lax.optimization_barrier(sums)[0].reshape(bias.shape).astype(bias.dtype)


add_bias.defvjp(lambda array, bias: (add_bias(array, bias), bias), _add_bias_backward)
