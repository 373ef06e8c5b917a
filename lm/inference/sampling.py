"""Draws tokens at random, by the options of each row.

Array names carry their shape: B rows, V vocabulary.
"""

import jax
import jax.numpy as jnp

from lm.inference.options import RowOptions


def draw(logits_B1V: jax.Array, options: RowOptions, position_B: jax.Array) -> jax.Array:
    """Returns a token for each row, sampled by its options, int32 [B, 1]. The position decides the random numbers."""
    logits_BV = logits_B1V[:, 0]
    keys_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(jnp.asarray(options.key_B2)), position_B)
    # The sample of a greedy row, whose temperature is 0, is not used.
    logits_BV = logits_BV / jnp.where(options.temperature_B > 0, options.temperature_B, 1.0)[:, None]
    restricts = (options.top_k_B > 0) | (options.top_p_B < 1)
    logits_BV = jax.lax.cond(
        restricts.any(), lambda logits_BV: _restricted(logits_BV, options), lambda logits_BV: logits_BV, logits_BV
    )
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV)[:, None].astype(jnp.int32)


def _restricted(logits_BV: jax.Array, options: RowOptions) -> jax.Array:
    """Returns the logits, with -inf for all tokens outside of `top_k` or of `top_p` (Holtzman et al., 2020)."""
    size = logits_BV.shape[1]
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    kept_B = jnp.where(options.top_k_B > 0, jnp.minimum(options.top_k_B, size), size)
    least_B1 = jnp.take_along_axis(sorted_BV, kept_B[:, None] - 1, axis=1)
    sorted_BV = jnp.where(sorted_BV >= least_B1, sorted_BV, -jnp.inf)
    share_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(share_BV, axis=-1) - share_BV
    is_kept_BV = (before_BV < options.top_p_B[:, None]) | (options.top_p_B == 1)[:, None]
    least_B1 = jnp.maximum(least_B1, jnp.where(is_kept_BV, sorted_BV, jnp.inf).min(axis=-1, keepdims=True))
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
