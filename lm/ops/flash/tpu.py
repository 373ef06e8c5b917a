"""Flash attention on a TPU: calls the kernels of `lm.ops.flash.tpu_kernels` on each device's shards.

Array names carry their shape: B batch, L queries, S keys, H heads, K head dim, N distances.
"""

import jax
import jax.numpy as jnp

from lm import sharding
from lm.ops.flash import tpu_kernels as kernels
from lm.ops.flash.blocks import padded

BLOCKS = (512, 256, kernels.LANES)


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
    dropout: None = None,
    interpret: bool = False,
) -> jax.Array:
    """Returns softmax(Q K^T + bias) V by our kernels, and zeros for a query whose keys are all masked.

    The arguments are those of `lm.models.attention.attend`, with the fields of its view by name. Only the bias
    differs. Rows are padded to whole blocks.

    Args:
        curve_HN: float32 [H, S + L], the bias of the distances -S to L - 1, query column minus key column.
        interpret: interprets the kernels, on any platform.
    """
    del dropout  # `choose` admits none
    biased, windowed = curve_HN is not None, window is not None

    def on_shard(query_BHKL, key_BHKS, value_BHKS, curve_HN, segments_BL, memory_segments_BS, window) -> jax.Array:
        length = query_BHKL.shape[3]
        more, more_keys = -length % kernels.LANES, -key_BHKS.shape[3] % kernels.LANES
        keys = key_BHKS.shape[3] + more_keys
        block = next(size for size in BLOCKS if (length + more) % size == keys % size == 0)
        tiling = kernels.Tiling(block, keys, causal, windowed, biased, interpret)
        place = jnp.stack([jnp.int32(sharding.shard_start("L", length)), window])
        mixed_BHKL = kernels.attend(
            tiling,
            padded(query_BHKL, 0, more),
            padded(key_BHKS, 0, more_keys),
            padded(value_BHKS, 0, more_keys),
            padded(curve_HN, more_keys, more) if biased else curve_HN,
            padded(segments_BL, 0, more),
            padded(memory_segments_BS, 0, more_keys),
            place,
        )
        return mixed_BHKL[..., :length]

    length_last = lambda array_BLHK: array_BLHK.transpose(0, 2, 3, 1)  # noqa: E731
    operands = (
        length_last(query_BLHK),
        length_last(key_BSHK),
        length_last(value_BSHK),
        curve_HN if biased else jnp.zeros((query_BLHK.shape[2], 1)),
        segments_BL,
        memory_segments_BS,
        jnp.int32(window if windowed else 0),
    )
    dims = ("BHKL", "BHKS", "BHKS", "HN", "BL", "BS", "")
    return sharding.map_shards(on_shard, dims, "BHKL")(*operands).transpose(0, 3, 1, 2)
