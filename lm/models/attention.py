"""Multi-head attention over packed rows.

Array names carry their shape: B batch, L length, S memory length (L in self-attention), D model,
H heads, K head dim.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.models.layers import Dense, Dropout
from lm.sharding import constrain


def attend(
    query_BLHK: jax.Array,
    key_BSHK: jax.Array,
    value_BSHK: jax.Array,
    *,
    segments_BL: jax.Array,
    memory_segments_BS: jax.Array,
    window: jax.Array | int | None = None,
    scale: float = 1.0,
    dropout: Dropout | None = None,
) -> jax.Array:
    """softmax(Q K^T / sqrt(d_k)) V, where a token sees only tokens of its own segment.

    Vaswani et al., 2017, section 3.2.1. Padding is segment 0: it attends to padding, so that no row
    of the softmax is empty, and no real token ever sees it.

    Args:
        query_BLHK, key_BSHK, value_BSHK: projections, any float dtype; the softmax is float32.
        segments_BL, memory_segments_BS: int32; segments of queries and of keys.
        window: how many tokens to either side are visible, possibly traced; None for all.
        scale: what the scores are multiplied by, 1 / sqrt(d_k) in the paper.
        dropout: applied to the attention weights.

    Returns:
        [B, L, H, K], the weighted values of each head.
    """
    scores_BHLS = jnp.einsum("BLHK,BSHK->BHLS", query_BLHK * scale, key_BSHK, preferred_element_type=jnp.float32)
    visible_BLS = segments_BL[:, :, None] == memory_segments_BS[:, None, :]
    if window is not None:
        distance_LS = jnp.arange(segments_BL.shape[1])[:, None] - jnp.arange(memory_segments_BS.shape[1])[None, :]
        visible_BLS &= (jnp.abs(distance_LS) <= window)[None]
    scores_BHLS = jnp.where(visible_BLS[:, None], scores_BHLS, jnp.finfo(jnp.float32).min)
    weights_BHLS = jax.nn.softmax(scores_BHLS, axis=-1)
    if dropout is not None:
        weights_BHLS = dropout(weights_BHLS)
    return jnp.einsum("BHLS,BSHK->BLHK", weights_BHLS.astype(value_BSHK.dtype), value_BSHK)


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


class Attention(nnx.Module):
    """Projects to heads, attends, concatenates the heads and projects back (Vaswani et al., 3.2.2)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        width, heads, depth = config.d_model, config.num_heads, config.width_per_head
        make = lambda shape, inputs: Dense(  # noqa: E731
            shape, inputs=inputs, bias=config.attention_bias, std=config.init_std, rngs=rngs
        )
        self.query = make((width, heads, depth), 1)
        self.key = make((width, heads, depth), 1)
        self.value = make((width, heads, depth), 1)
        self.out = make((heads, depth, width), 2)
        self.scale = depth**-0.5 if config.attention_scale else 1.0

    def __call__(
        self,
        inputs_BLD: jax.Array,
        *,
        segments_BL: jax.Array,
        window: jax.Array | int | None = None,
        angles_BLK: jax.Array | None = None,
        dropout: Dropout | None = None,
    ) -> jax.Array:
        query_BLHK = constrain(self.query(inputs_BLD), "BLHK")
        key_BSHK = constrain(self.key(inputs_BLD), "BSHK")
        value_BSHK = constrain(self.value(inputs_BLD), "BSHK")
        if angles_BLK is not None:
            query_BLHK, key_BSHK = rotate(query_BLHK, angles_BLK), rotate(key_BSHK, angles_BLK)
        mixed_BLHK = attend(
            query_BLHK,
            key_BSHK,
            value_BSHK,
            segments_BL=segments_BL,
            memory_segments_BS=segments_BL,
            window=window,
            scale=self.scale,
            dropout=dropout,
        )
        return constrain(self.out(mixed_BLHK), "BLD")
