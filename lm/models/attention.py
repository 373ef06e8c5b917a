"""Multi-head attention over packed rows.

Array names carry their shape: B batch, L length, S memory length (L in self-attention), D model,
H heads, K head dim.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.models.layers import Dense
from lm.sharding import constrain


def scores(query_BLHK: jax.Array, key_BSHK: jax.Array) -> jax.Array:
    """Q K^T, float32 [B, H, L, S]."""
    return jnp.einsum("BLHK,BSHK->BHLS", query_BLHK, key_BSHK, preferred_element_type=jnp.float32)


def attend(
    query_BLHK: jax.Array,
    key_BSHK: jax.Array,
    value_BSHK: jax.Array,
    *,
    segments_BL: jax.Array,
    memory_segments_BS: jax.Array,
    visible_BLS: jax.Array | None = None,
    causal: bool = False,
    window: jax.Array | int | None = None,
    bias_HLS: jax.Array | None = None,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
    score: Callable[[jax.Array, jax.Array], jax.Array] = scores,
) -> jax.Array:
    """softmax(Q K^T) V, with Q scaled by 1 / sqrt(d_k), where a token sees only tokens of its own segment.

    Vaswani et al., 2017, section 3.2.1. Padding is segment 0: it attends to padding, so that no row
    of the softmax is empty, and no real token ever sees it.

    Args:
        query_BLHK, key_BSHK, value_BSHK: projections, queries scaled; any float dtype, but the softmax is float32.
        segments_BL, memory_segments_BS: int32; segments of queries and of keys.
        visible_BLS: hides more keys where it is False.
        causal: hides the keys to the right of a query.
        window: how many tokens to either side are visible, possibly traced; None for all.
        bias_HLS: float32, added to the scores; L may be 1 for all queries.
        dropout: what the attention weights, float32 [B, H, L, S], go through.
        score: Q K^T of queries and keys, where keys are laid out in another way.

    Returns:
        [B, L, H, K], the weighted values of each head.
    """
    scores_BHLS = score(query_BLHK, key_BSHK)
    if bias_HLS is not None:
        scores_BHLS = _biased(scores_BHLS, bias_HLS)
    seen_BLS = segments_BL[:, :, None] == memory_segments_BS[:, None, :]
    if visible_BLS is not None:
        seen_BLS &= visible_BLS
    distance_LS = jnp.arange(segments_BL.shape[1])[:, None] - jnp.arange(memory_segments_BS.shape[1])[None, :]
    if causal:
        seen_BLS &= (distance_LS >= 0)[None]
    if window is not None:
        seen_BLS &= (jnp.abs(distance_LS) <= window)[None]
    scores_BHLS = jnp.where(seen_BLS[:, None], scores_BHLS, jnp.finfo(jnp.float32).min)
    weights_BHLS = jax.nn.softmax(scores_BHLS, axis=-1)
    if dropout is not None:
        weights_BHLS = dropout(weights_BHLS)
    # In this order: the product that einsum makes of "->BLHK" takes ten times as long on CPUs for a few queries.
    return jnp.einsum("BHLS,BSHK->BHLK", weights_BHLS.astype(value_BSHK.dtype), value_BSHK).swapaxes(1, 2)


@jax.custom_vjp
def _biased(scores_BHLS: jax.Array, bias_HLS: jax.Array) -> jax.Array:
    return scores_BHLS + bias_HLS[None]


def _biased_backward(shape: tuple[int, ...], gradient_BHLS: jax.Array) -> tuple[jax.Array, jax.Array]:
    # A product with ones, because XLA's CPU compiler takes eighty times as long for the sum that it is.
    ones_B = jnp.ones(len(gradient_BHLS), gradient_BHLS.dtype)
    of_bias_HLS = jnp.tensordot(ones_B, gradient_BHLS, axes=1)
    return gradient_BHLS, of_bias_HLS.sum(axis=1, keepdims=True) if shape[1] == 1 else of_bias_HLS


_biased.defvjp(lambda scores_BHLS, bias_HLS: (_biased(scores_BHLS, bias_HLS), bias_HLS.shape), _biased_backward)


def rotate(heads_BLHK: jax.Array, angles_BLK: jax.Array) -> jax.Array:
    """Rotary positions (Su et al., 2021), halves paired: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin).

    Args:
        heads_BLHK: queries or keys.
        angles_BLK: float32 [B, L, K / 2], position times frequency.
    """
    cos, sin = jnp.cos(angles_BLK)[:, :, None], jnp.sin(angles_BLK)[:, :, None]
    first, second = jnp.split(heads_BLHK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(heads_BLHK.dtype)


def relative_buckets(distance: jax.Array, *, causal: bool, num_buckets: int, max_distance: int) -> jax.Array:
    """T5's bucket of each distance, key column minus query column (Raffel et al., 2020, section 2.1).

    Half of the buckets hold one distance each, the other half ranges that grow logarithmically up to
    `max_distance`. Where both directions are seen, the keys to the right have buckets of their own.
    """
    offset = jnp.zeros_like(distance)
    if causal:
        distance = jnp.maximum(-distance, 0)
    else:
        num_buckets //= 2
        offset = jnp.where(distance > 0, num_buckets, 0)
        distance = jnp.abs(distance)
    exact = num_buckets // 2
    octaves = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact)
    far = jnp.minimum(exact + (octaves * (num_buckets - exact)).astype(jnp.int32), num_buckets - 1)
    return offset + jnp.where(distance < exact, distance, far)


class Attention(nnx.Module):
    """Projects to heads, attends, concatenates the heads and projects back (Vaswani et al., 3.2.2)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        width, heads, depth = config.d_model, config.num_heads, config.width_per_head
        make = lambda name, shape, inputs=1, gain=1.0: Dense(  # noqa: E731
            config, f"attention/{name}", shape, inputs=inputs, bias=config.attention_bias, gain=gain, rngs=rngs
        )
        # Scores that are not scaled at run time are scaled in the initial queries.
        self.query = make("query", (width, heads, depth), gain=1.0 if config.attention_scale else depth**-0.5)
        self.key = make("key", (width, heads, depth))
        self.value = make("value", (width, heads, depth))
        self.out = make("out", (heads, depth, width), inputs=2)
        self.scale = depth**-0.5 if config.attention_scale else 1.0

    def keys_values(self, memory_BLD: jax.Array, angles_BLK: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """What queries meet: keys and values [B, S, H, K] of a sequence, the keys rotated by `angles_BLK`.

        Each device computes those of its part of the sequence, and gets the others from its neighbours.
        """
        key_BLHK = constrain(self.key(memory_BLD), "BLHK")
        value_BLHK = constrain(self.value(memory_BLD), "BLHK")
        if angles_BLK is not None:
            key_BLHK = rotate(key_BLHK, angles_BLK)
        return constrain(key_BLHK, "BSHK"), constrain(value_BLHK, "BSHK")

    def __call__(
        self,
        inputs_BLD: jax.Array,
        keys_values_BSHK: tuple[jax.Array, jax.Array],
        *,
        angles_BLK: jax.Array | None = None,
        backend: Callable[..., jax.Array] = attend,
        **visibility: Any,
    ) -> jax.Array:
        """[B, L, D]: what the inputs see of keys and values; `visibility` is handed on to `attend` or its like."""
        query_BLHK = constrain(self.query(inputs_BLD, self.scale), "BLHK")
        if angles_BLK is not None:
            query_BLHK = rotate(query_BLHK, angles_BLK)
        mixed_BLHK = backend(query_BLHK, *keys_values_BSHK, **visibility)
        return constrain(self.out(mixed_BLHK), "BLD")
