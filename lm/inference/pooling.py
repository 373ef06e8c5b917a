"""Makes one vector of the vectors of a text's tokens, for all texts of packed rows at once.

Array names carry their shape: B rows of a batch, L length, D model, P texts of a row; see `packed`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lm import models

_Poolings = dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]]


def pool(
    poolings: tuple[str, ...],
    module: models.Encoder,
    tokens_BL: jax.Array,
    types_BL: jax.Array,
    segments_BL: jax.Array,
    positions_BL: jax.Array,
    places_BP: jax.Array,
) -> jax.Array:
    """Returns float32 [B, P, D]: the vector of each row's segment p + 1, pooled from place p to the segment's end.

    The vectors of several poolings are joined along D. Their names and formulas are those of sentence-transformers.
    """
    hidden_BLD = module(tokens_BL, segments_BL, positions_BL, types_BL).astype(jnp.float32)
    numbers_1P1 = jnp.arange(1, places_BP.shape[1] + 1)[None, :, None]
    is_pooled_BPL = segments_BL[:, None, :] == numbers_1P1
    is_pooled_BPL &= jnp.arange(segments_BL.shape[1])[None, None] >= places_BP[:, :, None]
    return jnp.concatenate([_POOLINGS[name](hidden_BLD, is_pooled_BPL, positions_BL) for name in poolings], axis=2)


def _first(hidden_BLD: jax.Array, is_pooled_BPL: jax.Array, positions_BL: jax.Array) -> jax.Array:
    del positions_BL
    return jnp.take_along_axis(hidden_BLD, is_pooled_BPL.argmax(axis=2)[:, :, None], axis=1)


def _last(hidden_BLD: jax.Array, is_pooled_BPL: jax.Array, positions_BL: jax.Array) -> jax.Array:
    del positions_BL
    last_BP = jnp.where(is_pooled_BPL, jnp.arange(is_pooled_BPL.shape[2])[None, None], 0).max(axis=2)
    return jnp.take_along_axis(hidden_BLD, last_BP[:, :, None], axis=1)


def _greatest(hidden_BLD: jax.Array, is_pooled_BPL: jax.Array, positions_BL: jax.Array) -> jax.Array:
    del positions_BL
    greatest_BPD = jnp.where(is_pooled_BPL[..., None], hidden_BLD[:, None], -jnp.inf).max(axis=2)
    return jnp.where(is_pooled_BPL.any(axis=2)[..., None], greatest_BPD, 0.0)


def _sum(hidden_BLD: jax.Array, weights_BPL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the weighted sums of the vectors [B, P, D], and the sums of the weights [B, P, 1]."""
    sum_BPD = jnp.einsum("BPL,BLD->BPD", weights_BPL, hidden_BLD, precision=jax.lax.Precision.HIGHEST)
    return sum_BPD, jnp.maximum(weights_BPL.sum(axis=2, keepdims=True), 1.0)


def _mean(hidden_BLD: jax.Array, is_pooled_BPL: jax.Array, positions_BL: jax.Array) -> jax.Array:
    del positions_BL
    sum_BPD, count_BP1 = _sum(hidden_BLD, is_pooled_BPL.astype(jnp.float32))
    return sum_BPD / count_BP1


def _mean_sqrt(hidden_BLD: jax.Array, is_pooled_BPL: jax.Array, positions_BL: jax.Array) -> jax.Array:
    del positions_BL
    sum_BPD, count_BP1 = _sum(hidden_BLD, is_pooled_BPL.astype(jnp.float32))
    return sum_BPD / jnp.sqrt(count_BP1)


def _weighted_mean(hidden_BLD: jax.Array, is_pooled_BPL: jax.Array, positions_BL: jax.Array) -> jax.Array:
    """A token's weight is its position in the text, from 1."""
    sum_BPD, weight_BP1 = _sum(hidden_BLD, jnp.where(is_pooled_BPL, positions_BL[:, None] + 1.0, 0.0))
    return sum_BPD / weight_BP1


_POOLINGS: _Poolings = {
    "cls": _first,
    "max": _greatest,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
