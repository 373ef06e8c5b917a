"""Products of a few rows with a kernel, on CPUs: y = x W.

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
    """x W: [..., O]."""
    return jnp.tensordot(array, kernel_IO, axes=1)


def are_few(rows: int) -> bool:
    """Whether products of that many rows are faster with kernels in blocks, on the platform that is traced for."""
    return platform() == "cpu" and is_trivial() and 1 < rows <= MOST_ROWS


def in_columns(kernel_IO: jax.Array) -> jax.Array:
    """A kernel in blocks of its columns, [G, I, C]; unchanged, [I, O], where its columns do not divide into blocks.

    XLA's CPU backend copies a kernel into such blocks each time before it multiplies it with a few rows. The barrier
    keeps it from making the blocks anew in each iteration of a loop.
    """
    if kernel_IO.shape[1] % COLUMNS == 0:
        kernel_IO = kernel_IO.reshape(len(kernel_IO), -1, COLUMNS).swapaxes(0, 1)
    return jax.lax.optimization_barrier(kernel_IO)


def by_columns(array: jax.Array, blocks: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The product of an array [..., I] and a kernel that is laid out `in_columns`: [..., O] of that dtype."""
    if blocks.ndim == 2:
        return jnp.tensordot(array, blocks, axes=1, preferred_element_type=dtype)
    array_RI = array.reshape(-1, array.shape[-1])
    # One product of a batch for each block: every block meets the same rows.
    array_GRI = jnp.broadcast_to(array_RI[None], (len(blocks), *array_RI.shape))
    out_GRC = jnp.einsum("GRI,GIC->GRC", array_GRI, blocks, preferred_element_type=dtype)
    return out_GRC.swapaxes(0, 1).reshape(*array.shape[:-1], -1)
