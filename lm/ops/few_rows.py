"""Products y = x W of a few rows, fast on CPUs: decoding multiplies one row for each beam.

Array names carry their shape: R rows, I inputs, O outputs, G blocks of C outputs.
"""

import jax
import jax.numpy as jnp

from lm.sharding import is_trivial, platform

# Columns in a block. XLA's CPU backend reads blocks of 64 columns without copying them first.
COLUMNS = 64
# Largest number of rows for which the blocked kernels are faster. One row is faster without them.
MOST_ROWS = 8


def by_columns_plain(array: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    """Returns x W, [..., O]."""
    return jnp.tensordot(array, kernel_IO, axes=1)


def are_few(rows: int) -> bool:
    """Returns whether the blocked kernels are faster for so many rows on the platform that is compiled for."""
    return platform() == "cpu" and is_trivial() and 1 < rows <= MOST_ROWS


def in_columns(kernel_IO: jax.Array) -> jax.Array:
    """Returns a kernel in blocks of columns, [G, I, C]; or unchanged, [I, O], where blocks do not divide the columns.

    XLA's CPU backend copies a kernel into such blocks before every product with a few rows. We make the blocks once,
    before the loop. The barrier keeps XLA from moving the copy back into the loop.
    """
    if kernel_IO.shape[1] % COLUMNS == 0:
        kernel_IO = kernel_IO.reshape(len(kernel_IO), -1, COLUMNS).swapaxes(0, 1)
    return jax.lax.optimization_barrier(kernel_IO)


def by_columns(array: jax.Array, blocks: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Returns x W, [..., O] in that dtype, for x [..., I] and a kernel from `in_columns`."""
    if blocks.ndim == 2:
        return jnp.tensordot(array, blocks, axes=1, preferred_element_type=dtype)
    array_RI = array.reshape(-1, array.shape[-1])
    # A batched product over the blocks. Every block multiplies the same rows.
    array_GRI = jnp.broadcast_to(array_RI[None], (len(blocks), *array_RI.shape))
    out_GRC = jnp.einsum("GRI,GIC->GRC", array_GRI, blocks, preferred_element_type=dtype)
    return out_GRC.swapaxes(0, 1).reshape(*array.shape[:-1], -1)
