"""Flash attention on a GPU: our kernels of `lm.ops.flash.gpu_kernels`, on each device's shards.

Array names carry their shape: B batch, L queries, S keys, H heads, K head dim, N distances.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lm import sharding
from lm.ops.dropout import Dropout, key_words
from lm.ops.flash import gpu_calls as calls
from lm.ops.flash.blocks import padded
from lm.ops.flash.gpu_kernels import Launch, Launches, Tiling

# Rows are padded to a multiple of it.
BLOCK = 64


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
    launches: Launches | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Returns dropout(softmax(Q K^T + bias)) V by our kernels, and zeros for a query whose keys are all masked.

    The arguments are those of `lm.models.attention.attend`, with the fields of its view by name. Only the bias
    differs. Rows are padded to whole blocks, and heads to a power of two.

    Args:
        curve_HN: float32 [H, S + L], the bias of the distances -S to L - 1, query column minus key column.
        launches: how the kernels are launched; None for what suits the shapes.
        interpret: interprets the kernels, on any platform.
    """
    biased, windowed = curve_HN is not None, window is not None
    make_tiling = functools.partial(
        Tiling,
        causal=causal,
        windowed=windowed,
        biased=biased,
        rate=dropout.rate if dropout else 0.0,
        whole=(query_BLHK.shape[2], query_BLHK.shape[1], key_BSHK.shape[1]),
        interpret=interpret,
    )
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
    return sharding.map_shards(functools.partial(_on_shard, make_tiling, launches), dims, "BLHK")(*operands)


def _on_shard(
    make_tiling: Callable[..., Tiling],
    launches: Launches | None,
    query_BLHK,
    key_BSHK,
    value_BSHK,
    curve_HN,
    segments_BL,
    memory_segments_BS,
    window,
    words,
) -> jax.Array:
    """Returns the attention of one device's shards, which are padded to whole blocks."""
    B, length, H, K = query_BLHK.shape
    more, more_keys = -length % BLOCK, -key_BSHK.shape[1] % BLOCK
    width = max(16, 1 << (K - 1).bit_length())  # a power of two, as Triton's arrays are
    S = key_BSHK.shape[1] + more_keys
    tiling = make_tiling(keys=S, launches=launches or _launches(width, biased=curve_HN.shape[1] > 1))
    starts = [sharding.shard_start(*dim) for dim in (("L", length), ("B", B), ("H", H))]
    place = jnp.stack([jnp.int32(starts[0]), window, *map(jnp.int32, starts[1:]), *words])
    wide = lambda array, more: padded(padded(array, 0, more, axis=1), 0, width - K)  # noqa: E731
    mixed_BLHK = calls.attend(
        tiling,
        wide(query_BLHK, more),
        wide(key_BSHK, more_keys),
        wide(value_BSHK, more_keys),
        padded(curve_HN, more_keys, more) if tiling.biased else curve_HN,
        padded(segments_BL, 0, more),
        padded(memory_segments_BS, 0, more_keys),
        place,
    )
    return mixed_BLHK[:, :length, :, :K]


def _launches(width: int, *, biased: bool) -> Launches:
    """Returns the launches of the kernels for heads of that width: the fastest of those that were measured.

    A bias takes registers, so the keys' gradient has fewer queries in a block with it; see
    tests/benchmarks/RESULTS.md.
    """
    warps, few = 4 if width <= 64 else 8, BLOCK // 2 if biased else BLOCK
    return Launches(
        forward=Launch(BLOCK, BLOCK, warps, 2),
        of_query=Launch(BLOCK, BLOCK, warps, 2),
        of_key=Launch(few, BLOCK, warps, 3),
        of_curve=Launch(BLOCK, BLOCK, 4, 2),
    )
