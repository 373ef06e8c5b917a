"""Flash attention on a GPU by cuDNN's kernel, on each device's shards.

Array names carry their shape: B batch, L queries, S keys, H heads, K head dim.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from lm import sharding


def attend(
    query_BLHK: jax.Array,
    key_BSHK: jax.Array,
    value_BSHK: jax.Array,
    *,
    segments_BL: jax.Array,
    memory_segments_BS: jax.Array,
    causal: bool = False,
    window: jax.Array | int | None = None,
    curve_HN: None = None,
    dropout: None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Returns softmax(Q K^T) V by cuDNN's kernel, with one mask for segments, causality and window.

    The arguments are those of `lm.models.attention.attend`, with the fields of its view by name.

    Args:
        implementation: `xla` computes the same on any platform.
    """
    del curve_HN, dropout  # `choose` admits neither: cuDNN has no gradient for the one, and another hash for the other

    def on_shard(query_BLHK, key_BSHK, value_BSHK, segments_BL, memory_segments_BS, window):
        visible_BLS = segments_BL[:, :, None] == memory_segments_BS[:, None, :]
        length, keys = visible_BLS.shape[1:]
        columns_L = sharding.shard_start("L", length) + jnp.arange(length)
        distance_LS = columns_L[:, None] - jnp.arange(keys)[None, :]
        if causal:
            visible_BLS &= (distance_LS >= 0)[None]
        visible_BLS &= (jnp.abs(distance_LS) <= window)[None]
        return jax.nn.dot_product_attention(
            query_BLHK, key_BSHK, value_BSHK, mask=visible_BLS[:, None], scale=1.0, implementation=implementation
        )

    furthest = segments_BL.shape[1] + memory_segments_BS.shape[1]
    operands = (query_BLHK, key_BSHK, value_BSHK, segments_BL, memory_segments_BS)
    dims = ("BLHK", "BSHK", "BSHK", "BL", "BS", "")
    return sharding.map_shards(on_shard, dims, "BLHK")(*operands, jnp.int32(furthest if window is None else window))
