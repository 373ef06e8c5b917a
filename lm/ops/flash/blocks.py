"""What the kernels of both platforms share: products of blocks, masked scores, and which blocks are masked completely.

Array names carry their shape: B batch, L queries, S keys, R rows of blocks, C columns of blocks.
"""

import functools

import jax
import jax.numpy as jnp

# A masked score is HIDDEN and a maximum is at least LEAST, so the exponential of a masked score is exactly zero.
LEAST, HIDDEN = -1e30, -2e30

# Contracted axes of a product of two blocks. N takes an operand as it is, T transposes it.
NN, NT, TN = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ())), (((0,), (0,)), ((), ()))
product = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)


def seen(
    segments_BL: jax.Array,
    memory_segments_BS: jax.Array,
    block: tuple[int, int],
    *,
    start: jax.Array | int,
    causal: bool,
    window: jax.Array | int | None,
) -> jax.Array:
    """Returns bool [B, R, C]: False only for blocks of scores that are masked completely.

    Args:
        segments_BL, memory_segments_BS: int32, the segments of queries and keys, whole blocks of each.
        block: the numbers of queries and of keys in a block.
        start: the column of the first query.
        causal, window: see `lm.models.attention.View`.
    """

    def ends(segments_BL: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        # Padding, segment 0, follows the last segment of a row. Here it counts as the highest number.
        order_BL = jnp.where(segments_BL == 0, jnp.iinfo(jnp.int32).max, segments_BL)
        order_BRT = order_BL.reshape(len(order_BL), -1, size)
        return order_BRT.min(axis=2), order_BRT.max(axis=2)

    (low_BR, high_BR), (low_BC, high_BC) = ends(segments_BL, block[0]), ends(memory_segments_BS, block[1])
    seen_BRC = (low_BR[:, :, None] <= high_BC[:, None]) & (low_BC[:, None] <= high_BR[:, :, None])
    # The distances of a block's pairs, query column minus key column, lie between these two.
    corner_RC = (
        start + (block[0] * jnp.arange(low_BR.shape[1]))[:, None] - (block[1] * jnp.arange(low_BC.shape[1]))[None]
    )
    least_RC, most_RC = corner_RC - (block[1] - 1), corner_RC + (block[0] - 1)
    if causal:
        seen_BRC &= (most_RC >= 0)[None]
    if window is not None:
        seen_BRC &= ((least_RC <= window) & (most_RC >= -window))[None]
    return seen_BRC


def bounds(seen_BRC: jax.Array) -> jax.Array:
    """Returns the first and last unmasked column of blocks in each row of blocks; (0, -1) for none: int32 [B * R * 2].

    Args:
        seen_BRC: from `seen`.
    """
    C = seen_BRC.shape[2]
    first_BR = seen_BRC.argmax(axis=2)
    last_BR = jnp.where(seen_BRC.any(axis=2), C - 1 - seen_BRC[:, :, ::-1].argmax(axis=2), -1)
    return jnp.stack([first_BR, last_BR], axis=2).astype(jnp.int32).reshape(-1)


def padded(array: jax.Array, before: int, after: int, axis: int = -1) -> jax.Array:
    """Returns the array with so many zeros before and after an axis."""
    if not before and not after:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (before, after)
    return jnp.pad(array, widths)
