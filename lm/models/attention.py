"""Multi-head attention over packed rows.

Array names carry their shape: B batch, L length, S keys (L in self-attention), D model, H heads, K head dim,
N distances between columns.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.models.layers import Dense, Execution
from lm.models.positions import rotate
from lm.ops import attention as ops
from lm.ops import key_cache
from lm.ops.dropout import Dropout
from lm.sharding import constrain

# Keys and values: each [B, S, H, K], or in the layout of `lm.ops.key_cache.store`.
KeysValues = tuple[jax.Array, jax.Array]
# Attention weights [B, H, L, S] -> the weights that multiply the values. Dropout is one.
OnWeights = Callable[[jax.Array], jax.Array]
# (queries, keys, values, view, transform of the weights) -> [B, L, H, K]
Kernel = Callable[[jax.Array, jax.Array, jax.Array, "View", OnWeights | None], jax.Array]


@dataclasses.dataclass(frozen=True)
class View:
    """All that one attention depends on besides its inputs and weights: mask, bias, rotary angles, KV cache.

    A query attends to the keys of its own segment. `causal`, `window` and `visible_BLS` mask more keys.

    Attributes:
        segments_BL, key_segments_BS: int32. Padding is segment 0. It attends to padding, so every softmax has a key.
        causal: masks the keys to the right of a query.
        window: how many tokens to either side a query attends to; it may be traced. None for all.
        visible_BLS: masks the keys where it is False.
        bias: float32, added to the scores: [H, L, S] or [B, H, L, S], where L may be 1 for all queries. A flash
            kernel takes the bias of each distance, [H, N]; see `lm.ops.flash.tpu`.
        bias_of: returns `bias` from a table of relative positions, for layers that have tables of their own.
        angles_BLK: float32 [B, L, K / 2], the rotary angles of the queries and of the new keys.
        local_angles_BLK: the rotary angles of the local layers.
        memory_BSD: the hidden states that keys and values are computed from; None for the queries' own inputs.
        cache: the KV cache of the layer; None where all keys and values are computed anew.
        columns_B: the column of each row's cache where new keys and values are written; None writes nothing.
        kernel: the function that computes the attention; None for `attend`.
    """

    segments_BL: jax.Array
    key_segments_BS: jax.Array
    causal: bool = False
    window: jax.Array | int | None = None
    visible_BLS: jax.Array | None = None
    bias: jax.Array | None = None
    bias_of: Callable[[jax.Array], jax.Array] | None = None
    angles_BLK: jax.Array | None = None
    local_angles_BLK: jax.Array | None = None
    memory_BSD: jax.Array | None = None
    cache: KeysValues | None = None
    columns_B: jax.Array | None = None
    kernel: Kernel | None = None


def attend(
    query_BLHK: jax.Array, key_BSHK: jax.Array, value_BSHK: jax.Array, view: View, dropout: OnWeights | None = None
) -> jax.Array:
    """Returns softmax(Q K^T + bias) V over the visible keys (Vaswani et al., 2017, section 3.2.1).

    Args:
        query_BLHK: queries, already scaled by 1 / sqrt(d_k).
        key_BSHK, value_BSHK: keys and values. All three may have any float dtype; the softmax is float32.
        view: the mask and the bias.
        dropout: applied to the attention weights.

    Returns:
        [B, L, H, K], each head's weighted sum of the values.
    """
    scores_BHLS = jnp.einsum("BLHK,BSHK->BHLS", query_BLHK, key_BSHK, preferred_element_type=jnp.float32)
    weights_BHLS = attention_weights(scores_BHLS, view, dropout)
    return ops.mix(weights_BHLS.astype(value_BSHK.dtype), value_BSHK)


def attention_weights(scores_BHLS: jax.Array, view: View, dropout: OnWeights | None = None) -> jax.Array:
    """Returns softmax(scores + bias) over the visible keys, float32 [B, H, L, S]."""
    if view.bias is not None:
        scores_BHLS = ops.add_bias(scores_BHLS, view.bias) if view.bias.ndim == 3 else scores_BHLS + view.bias
    scores_BHLS = jnp.where(visible(view)[:, None], scores_BHLS, jnp.finfo(jnp.float32).min)
    weights_BHLS = jax.nn.softmax(scores_BHLS, axis=-1)
    return weights_BHLS if dropout is None else dropout(weights_BHLS)


def visible(view: View) -> jax.Array:
    """Returns the attention mask, bool [B, L, S]: True where a query attends to a key."""
    seen_BLS = view.segments_BL[:, :, None] == view.key_segments_BS[:, None, :]
    if view.visible_BLS is not None:
        seen_BLS &= view.visible_BLS
    length, keys = seen_BLS.shape[1:]
    distance_LS = jnp.arange(length)[:, None] - jnp.arange(keys)[None, :]
    if view.causal:
        seen_BLS &= (distance_LS >= 0)[None]
    if view.window is not None:
        seen_BLS &= (jnp.abs(distance_LS) <= view.window)[None]
    return seen_BLS


def attend_flash(
    flash: Callable[..., jax.Array],
    query_BLHK: jax.Array,
    key_BSHK: jax.Array,
    value_BSHK: jax.Array,
    view: View,
    dropout: OnWeights | None = None,
) -> jax.Array:
    """Computes `attend` with a kernel of `lm.ops.flash`. It drops weights by the hash of `lm.ops.dropout`."""
    assert dropout is None or isinstance(dropout, Dropout)
    return flash(
        query_BLHK,
        key_BSHK,
        value_BSHK,
        segments_BL=view.segments_BL,
        memory_segments_BS=view.key_segments_BS,
        causal=view.causal,
        window=view.window,
        curve_HN=view.bias,
        dropout=dropout,
    )


def attend_stored(
    query_BLHK: jax.Array, key: jax.Array, value_BHSK: jax.Array, view: View, dropout: OnWeights | None = None
) -> jax.Array:
    """Computes `attend` over a KV cache."""
    weights_BHLS = attention_weights(key_cache.scores(query_BLHK, key), view, dropout)
    return ops.mix(weights_BHLS.astype(value_BHSK.dtype), value_BHSK.swapaxes(1, 2))


def attend_pinned(
    query_BLHK: jax.Array, key: jax.Array, value_BHSK: jax.Array, view: View, dropout: OnWeights | None = None
) -> jax.Array:
    """Computes `attend_stored` in a loop that does not change the cache; see `key_cache.pin`."""
    return attend_stored(*key_cache.pin(query_BLHK, key, value_BHSK), view, dropout)


class Recorder:
    """Computes `attend` and keeps the attention weights of each call, float32 [B, H, L, S]."""

    def __init__(self) -> None:
        self.weights_BHLS: list[jax.Array] = []

    def __call__(
        self, query_BLHK: jax.Array, key_BSHK: jax.Array, value_BSHK: jax.Array, view: View, dropout: OnWeights | None
    ) -> jax.Array:
        del dropout  # a picture shows the weights without it
        return attend(query_BLHK, key_BSHK, value_BSHK, view, self._keep)

    def _keep(self, weights_BHLS: jax.Array) -> jax.Array:
        self.weights_BHLS.append(weights_BHLS)
        return weights_BHLS


class Attention(nnx.Module):
    """Projects to heads, attends, concatenates the heads and projects back (Vaswani et al., 2017, section 3.2.2)."""

    def __init__(self, config: ModelConfig, execution: Execution, *, rngs: nnx.Rngs):
        width, heads, depth = config.d_model, config.num_heads, config.width_per_head
        dense = functools.partial(Dense, config, bias=config.attention_bias, float8=execution.float8, rngs=rngs)
        # A model without attention_scale, such as T5, has the factor 1 / sqrt(d_k) in its initial query kernel.
        gain = 1.0 if config.attention_scale else depth**-0.5
        self.query = dense("attention/query", (width, heads, depth), gain=gain)
        self.key = dense("attention/key", (width, heads, depth))
        self.value = dense("attention/value", (width, heads, depth))
        self.out = dense("attention/out", (heads, depth, width), inputs=2, residual=True)
        self.scale = depth**-0.5 if config.attention_scale else 1.0

    def __call__(
        self, inputs_BLD: jax.Array, view: View, dropout: OnWeights | None = None
    ) -> tuple[jax.Array, KeysValues]:
        """Returns the attention's output [B, L, D], and its keys and values: the updated cache where there is one."""
        keys_values = view.cache  # complete in the cross-attention of decoding, where `columns_B` is None
        if keys_values is None:
            memory_BSD = inputs_BLD if view.memory_BSD is None else view.memory_BSD
            keys_values = self.keys_values(memory_BSD, view.angles_BLK)
        elif view.columns_B is not None:
            new = self.keys_values(inputs_BLD, view.angles_BLK)
            keys_values = key_cache.write(keys_values, *new, view.columns_B)
        query_BLHK = constrain(self.query(inputs_BLD, self.scale), "BLHK")
        if view.angles_BLK is not None:
            query_BLHK = rotate(query_BLHK, view.angles_BLK)
        mixed_BLHK = (view.kernel or attend)(query_BLHK, *keys_values, view, dropout)
        return constrain(self.out(mixed_BLHK), "BLD"), keys_values

    def keys_values(self, memory_BSD: jax.Array, angles_BSK: jax.Array | None = None) -> KeysValues:
        """Returns the keys and values [B, S, H, K] of a sequence, with the keys rotated by the angles.

        Each device projects its shard of the sequence. An all-gather over `context` follows.
        """
        key_BLHK = constrain(self.key(memory_BSD), "BLHK")
        value_BLHK = constrain(self.value(memory_BSD), "BLHK")
        if angles_BSK is not None:
            key_BLHK = rotate(key_BLHK, angles_BSK)
        return constrain(key_BLHK, "BSHK"), constrain(value_BLHK, "BSHK")
