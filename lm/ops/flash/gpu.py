"""Flash attention on a GPU: calls our kernels of `lm.ops.flash.gpu_kernels`, or cuDNN's, on each device's shards.

Array names carry their shape: B batch, L queries, S keys, H heads, K head dim, N distances.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from lm import sharding
from lm.ops.dropout import Dropout, key_words
from lm.ops.flash import gpu_kernels as kernels
from lm.ops.flash.blocks import padded
from lm.ops.flash.gpu_kernels import Launch

# Rows are padded to a multiple of the smaller one. Launches are made for blocks of the larger one where it divides them.
BLOCKS = (128, 64)


def attend(
    query_BLHK: jax.Array,
    key_BSHK: jax.Array,
    value_BSHK: jax.Array,
    *,
    segments_BL: jax.Array,
    memory_segments_BS: jax.Array,
    causal: bool = False,
    window: jax.Array | int | None = None,
    curve_HN: jax.Array | None = None,
    dropout: Dropout | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Returns dropout(softmax(Q K^T + bias)) V by our kernels, and zeros for a query whose keys are all masked.

    The arguments are those of `lm.models.attention.attend`, with the fields of its view by name. Only the bias
    differs. Rows are padded to whole blocks, and heads to a power of two.

    Args:
        curve_HN: float32 [H, S + L], the bias of the distances -S to L - 1, query column minus key column.
        interpret: interprets the kernels, on any platform.
    """
    biased, windowed = curve_HN is not None, window is not None
    whole = (query_BLHK.shape[2], query_BLHK.shape[1], key_BSHK.shape[1])

    def on_shard(query_BLHK, key_BSHK, value_BSHK, curve_HN, segments_BL, memory_segments_BS, window, words) -> jax.Array:
        B, length, H, K = query_BLHK.shape
        more, more_keys = -length % BLOCKS[-1], -key_BSHK.shape[1] % BLOCKS[-1]
        width = max(16, 1 << (K - 1).bit_length()) - K
        keys = key_BSHK.shape[1] + more_keys
        tiling = kernels.Tiling(
            **_launches(length + more, keys, K + width),
            keys=keys,
            causal=causal,
            windowed=windowed,
            biased=biased,
            rate=dropout.rate if dropout else 0.0,
            whole=whole,
            interpret=interpret,
        )
        starts = [sharding.shard_start(*dim) for dim in (("L", length), ("B", B), ("H", H))]
        place = jnp.stack([jnp.int32(starts[0]), window, *map(jnp.int32, starts[1:]), *words])
        wide = lambda array, more: padded(padded(array, 0, more, axis=1), 0, width)  # noqa: E731
        mixed_BLHK = kernels.attend(
            tiling,
            wide(query_BLHK, more),
            wide(key_BSHK, more_keys),
            wide(value_BSHK, more_keys),
            padded(curve_HN, more_keys, more) if biased else curve_HN,
            padded(segments_BL, 0, more),
            padded(memory_segments_BS, 0, more_keys),
            place,
        )
        return mixed_BLHK[:, :length, :, :K]

    operands = (
        query_BLHK,
        key_BSHK,
        value_BSHK,
        curve_HN if biased else jnp.zeros((query_BLHK.shape[2], 1)),
        segments_BL,
        memory_segments_BS,
        jnp.int32(window if windowed else 0),
        jax.lax.bitcast_convert_type(key_words(dropout.key), jnp.int32) if dropout else jnp.zeros(2, jnp.int32),
    )
    dims = ("BLHK", "BSHK", "BSHK", "HN", "BL", "BS", "", "")
    return sharding.map_shards(on_shard, dims, "BLHK")(*operands)


def _launches(length: int, keys: int, width: int) -> dict[str, Launch]:
    """Returns the launches of the kernels for rows of so many queries and keys, and heads of that width."""
    wide, small = (next(size for size in BLOCKS if length % size == 0) for length in (length, keys)), BLOCKS[-1]
    queries, columns = wide
    warps = 4 if width <= 64 else 8
    return {
        "forward": Launch(queries, small, warps, 3),
        "of_query": Launch(queries, small // 2, warps, 2),
        "of_key": Launch(small // 2, columns, warps, 2),
        "of_curve": Launch(small, small, 4, 1),
    }


def attend_cudnn(
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
