"""The layout of the KV cache: how keys and values are stored, written and multiplied with a few queries.

Array names carry their shape: B sequences, N queries, S keys, H heads, K head dim, G blocks of C keys.
"""

import jax
import jax.numpy as jnp

from lm.ops.few_rows import COLUMNS
from lm.sharding import is_trivial, platform

# Largest number of rows that are written by one operation each. The program grows with the number of operations.
_MOST_WRITES = 64


def scores_plain(query_BNHK: jax.Array, key_BSHK: jax.Array) -> jax.Array:
    """Returns Q K^T, float32 [B, H, N, S]."""
    return jnp.einsum("BNHK,BSHK->BHNS", query_BNHK, key_BSHK, preferred_element_type=jnp.float32)


def write_plain(array_BSHK: jax.Array, new_BNHK: jax.Array, column_B: jax.Array) -> jax.Array:
    """Returns the array with each row's new keys or values written at its column and the ones after."""
    at_BN = column_B[:, None] + jnp.arange(new_BNHK.shape[1])[None]
    return jax.vmap(lambda array, at, new: array.at[at].set(new))(array_BSHK, at_BN, new_BNHK)


def memory_block(keys: int, hypotheses: int) -> int:
    """Returns the size of a block of the encoder's keys.

    For several queries, XLA's CPU backend copies the keys into blocks of 64 before it multiplies. The copy takes three
    times as long as the product, so we store the keys in blocks of 64. For one query a single block is fastest.
    """
    return COLUMNS if _in_blocks(hypotheses) and keys % COLUMNS == 0 else keys


def positions_in_block(positions: int, hypotheses: int) -> int:
    """Returns how many positions share a block of the decoder's keys, each with a key for every beam.

    For the reason see `memory_block`.
    """
    return min(positions, max(1, COLUMNS // hypotheses)) if _in_blocks(hypotheses) else positions


def _in_blocks(hypotheses: int) -> bool:
    return platform() == "cpu" and hypotheses > 1


def store(key_BSHK: jax.Array, value_BSHK: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """Returns keys and values in the layout of the cache.

    Keys are [B, H, K, S], or in blocks [B, H, G, K, C] with C = `block`. Values are [B, H, S, K].
    """
    key_BHKS, value_BHSK = key_BSHK.transpose(0, 2, 3, 1), value_BSHK.swapaxes(1, 2)
    if block == key_BHKS.shape[3]:
        return key_BHKS, value_BHSK
    return key_BHKS.reshape(*key_BHKS.shape[:3], -1, block).swapaxes(2, 3), value_BHSK


def write(
    stored: tuple[jax.Array, jax.Array], key_BNHK: jax.Array, value_BNHK: jax.Array, column_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the cache with N new keys and values a row, written at the row's own column and the ones after.

    The N columns lie within one block. XLA's CPU backend turns one scatter for all rows into a loop over rows. There we
    write each row by an operation of its own, which is as fast as if all rows shared a column.
    """
    key, value_BHSK = stored
    new_key_BHKN, new_value_BHNK = store(key_BNHK, value_BNHK, key_BNHK.shape[1])
    if key.ndim == 5:
        block = key.shape[-1]
        new_key, at = new_key_BHKN[:, :, None], lambda column: (0, column // block, 0, column % block)
    else:
        new_key, at = new_key_BHKN, lambda column: (0, 0, column)
    rows = len(column_B)
    if platform() == "cpu" and is_trivial() and rows <= _MOST_WRITES:
        for row in range(rows):
            column, part = column_B[row], slice(row, row + 1)
            key = jax.lax.dynamic_update_slice(key, new_key[part], (row, *at(column)))
            value_BHSK = jax.lax.dynamic_update_slice(value_BHSK, new_value_BHNK[part], (row, 0, column, 0))
        return key, value_BHSK
    key = jax.vmap(lambda key, new, column: jax.lax.dynamic_update_slice(key, new, at(column)))(key, new_key, column_B)
    value_BHSK = jax.vmap(lambda value, new, column: jax.lax.dynamic_update_slice(value, new, (0, column, 0)))(
        value_BHSK, new_value_BHNK, column_B
    )
    return key, value_BHSK


def scores(query_BNHK: jax.Array, key: jax.Array) -> jax.Array:
    """Returns Q K^T for keys from the cache, float32 [B, H, N, S]."""
    if key.ndim == 4:
        return jnp.einsum("BNHK,BHKS->BHNS", query_BNHK, key, preferred_element_type=jnp.float32)
    # The queries are repeated for each block, so that the blocks are one more batch axis of the product.
    query_BHGNK = jnp.repeat(query_BNHK.swapaxes(1, 2)[:, :, None], key.shape[2], axis=2)
    scores_BHGNC = jnp.einsum("BHGNK,BHGKC->BHGNC", query_BHGNK, key, preferred_element_type=jnp.float32)
    scores_BHNGC = scores_BHGNC.swapaxes(2, 3)
    return scores_BHNGC.reshape(*scores_BHNGC.shape[:3], -1)


def pin(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the same arrays, behind a barrier.

    XLA would hoist the transposes of arrays that do not change out of the decoding loop, where they no longer fuse with
    the product. The barrier makes the arrays depend on the queries of the iteration.
    """
    query, key, value = jax.lax.optimization_barrier((query, key, value))
    return query, key, value
