"""Reductions over the vocabulary: argmax, top-k and log-sum-exp.

Array names carry their shape: B sequences, N beams of each, V vocabulary, C largest, Y blocks of K tokens.
"""

import jax
import jax.numpy as jnp

BLOCK = 128  # tokens of the vocabulary that are reduced together


def argmax_plain(logits: jax.Array) -> jax.Array:
    """Returns the index of the largest entry along the last axis; the first of equal ones."""
    return logits.argmax(axis=-1)


def largest_plain(scores_BNV: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Returns the `count` largest scores of each beam, descending, and their tokens: [B, N, C] each."""
    return jax.lax.top_k(scores_BNV, count)


def log_sum_exp_plain(scores_BNV: jax.Array) -> jax.Array:
    """Returns log-sum-exp over the vocabulary: [B, N]."""
    return jax.nn.logsumexp(scores_BNV, axis=-1)


def argmax(logits: jax.Array) -> jax.Array:
    """Computes `argmax_plain` as two reductions. On CPUs they take a tenth of the time of XLA's own argmax."""
    indices = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    is_largest = logits == logits.max(axis=-1, keepdims=True)
    return jnp.where(is_largest, indices.reshape((1,) * (logits.ndim - 1) + (-1,)), indices[-1]).min(axis=-1)


def largest(scores_BNV: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Computes `largest_plain`. It sorts only the `count` blocks of tokens with the largest maxima."""
    size = scores_BNV.shape[-1]
    count = min(count, size)
    if size < 2 * BLOCK * count:
        return jax.lax.top_k(scores_BNV, count)
    rows = scores_BNV.shape[:2]
    blocks_BNYK = _blocks(scores_BNV)
    block_BNC = jnp.sort(jax.lax.top_k(blocks_BNYK.max(axis=-1), count)[1], axis=-1)
    candidates_BNCK = jnp.take_along_axis(blocks_BNYK, block_BNC[..., None], axis=2)
    best_BNC, place_BNC = jax.lax.top_k(candidates_BNCK.reshape(*rows, -1), count)
    chosen_BNC = jnp.take_along_axis(block_BNC, place_BNC // BLOCK, axis=2)
    return best_BNC, (chosen_BNC * BLOCK + place_BNC % BLOCK).astype(jnp.int32)


def log_sum_exp(scores_BNV: jax.Array) -> jax.Array:
    """Computes `log_sum_exp_plain` over the blocks of `largest`, so that XLA writes the blocks once for both.

    XLA would merge the two maxima into one reduction, which `largest` cannot share. The barrier prevents that.
    """
    blocks_BNYK = _blocks(scores_BNV)
    largest_BN = jax.lax.optimization_barrier(blocks_BNYK.max(axis=-1)).max(axis=-1)
    return largest_BN + jnp.log(jnp.exp(blocks_BNYK - largest_BN[:, :, None, None]).sum(axis=(-2, -1)))


def _blocks(scores_BNV: jax.Array) -> jax.Array:
    """Returns the scores in blocks of the vocabulary, [B, N, Y, K]. The last block is padded with -inf."""
    padding = ((0, 0), (0, 0), (0, -scores_BNV.shape[2] % BLOCK))
    return jnp.pad(scores_BNV, padding, constant_values=-jnp.inf).reshape(*scores_BNV.shape[:2], -1, BLOCK)
