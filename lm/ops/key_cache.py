"""Keys and values as products with few queries read them fastest, and how new ones are written among them.

Array names carry their shape: B sequences, N queries, S keys, H heads, K head dim, G blocks of C keys.
"""

import jax
import jax.numpy as jnp

from lm.ops.few_rows import COLUMNS
from lm.sharding import is_trivial, platform

# Rows up to which each row's write is an operation of its own; beyond, programs would grow with them.
_MOST_WRITES = 64


def scores_plain(query_BNHK: jax.Array, key_BSHK: jax.Array) -> jax.Array:
    """Q K^T, float32 [B, H, N, S]."""
    return jnp.einsum("BNHK,BSHK->BHNS", query_BNHK, key_BSHK, preferred_element_type=jnp.float32)


def write_plain(array_BSHK: jax.Array, new_BNHK: jax.Array, column_B: jax.Array) -> jax.Array:
    """Writes each row's new keys or values from a column on."""
    at_BN = column_B[:, None] + jnp.arange(new_BNHK.shape[1])[None]
    return jax.vmap(lambda array, at, new: array.at[at].set(new))(array_BSHK, at_BN, new_BNHK)


def memory_block(keys: int, hypotheses: int) -> int:
    """How many keys of a memory are laid out in one block.

    One query reads all keys at once fastest. Of more queries, XLA's CPU backend copies the keys into blocks of 64
    before it multiplies, which takes three times as long as the product.
    """
    return COLUMNS if _in_blocks(hypotheses) and keys % COLUMNS == 0 else keys


def positions_in_block(positions: int, hypotheses: int) -> int:
    """How many positions, of a key for each hypothesis, are laid out in one block; see `memory_block`."""
    return min(positions, max(1, COLUMNS // hypotheses)) if _in_blocks(hypotheses) else positions


def _in_blocks(hypotheses: int) -> bool:
    return platform() == "cpu" and hypotheses > 1


def store(key_BSHK: jax.Array, value_BSHK: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """Keys [B, H, K, S], or [B, H, G, K, C] in blocks of C = `block`, and values [B, H, S, K]."""
    key_BHKS, value_BHSK = key_BSHK.transpose(0, 2, 3, 1), value_BSHK.swapaxes(1, 2)
    if block == key_BHKS.shape[3]:
        return key_BHKS, value_BHSK
    return key_BHKS.reshape(*key_BHKS.shape[:3], -1, block).swapaxes(2, 3), value_BHSK


def write(
    stored: tuple[jax.Array, jax.Array], key_BNHK: jax.Array, value_BNHK: jax.Array, column_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Stored keys and values with each row's N new ones from its own column on, all N within a block.

    XLA makes a loop over rows of one scatter. On a CPU one write a row is as fast as a write that all rows share.
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
    """Q K^T of stored keys, float32 [B, H, N, S]."""
    if key.ndim == 4:
        return jnp.einsum("BNHK,BHKS->BHNS", query_BNHK, key, preferred_element_type=jnp.float32)
    # Queries are repeated, so that blocks multiply as one more axis of the batch.
    query_BHGNK = jnp.repeat(query_BNHK.swapaxes(1, 2)[:, :, None], key.shape[2], axis=2)
    scores_BHGNC = jnp.einsum("BHGNK,BHGKC->BHGNC", query_BHGNK, key, preferred_element_type=jnp.float32)
    scores_BHNGC = scores_BHGNC.swapaxes(2, 3)
    return scores_BHNGC.reshape(*scores_BHNGC.shape[:3], -1)


def pin(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same arrays, tied to the queries of a step.

    The barrier keeps XLA from hoisting the transposes of stored arrays out of the loop, where they would no longer
    fuse with the product.
    """
    query, key, value = jax.lax.optimization_barrier((query, key, value))
    return query, key, value
