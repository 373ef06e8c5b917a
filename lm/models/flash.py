"""Flash attention by platform: our kernels on a TPU, cuDNN's on a GPU.

Array names carry their shape: B batch, L queries, S keys, H heads, K head dim, N distances.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lm import sharding
from lm.errors import InputError
from lm.models import kernels

BLOCKS = (512, 256, kernels.LANES)


def choose(
    setting: str, *, lengths: Sequence[int], head_dim: int, dtype: str, has_bias: bool, needs_weights: bool
) -> Callable[..., jax.Array] | None:
    """The flash attention of the platform that the program is for; None where plain attention computes.

    Args:
        setting: `auto`, `plain` or `flash`; see `TrainConfig`.
        lengths: of queries and of keys, over all devices.
        head_dim, dtype: of queries and keys.
        has_bias: whether a relative bias is added.
        needs_weights: whether something acts on the attention weights, such as dropout: flash has none.

    Raises:
        InputError: `flash` is asked for and cannot be had.
    """
    if setting == "plain" or needs_weights:
        return None
    platform = sharding.platform()
    refusal = _refusal(platform, lengths, head_dim, dtype, has_bias)
    if not refusal:
        return tpu if platform == "tpu" else gpu
    if setting == "flash":
        raise InputError(f"train.attention is 'flash', but {refusal}; or set train.attention=auto.")
    return None


def _refusal(platform: str, lengths: Sequence[int], head_dim: int, dtype: str, has_bias: bool) -> str:
    """Why a platform cannot, and what would do; empty where it can."""
    if platform not in ("gpu", "tpu"):
        return f"a {platform} has none; accepted there: auto, plain"
    # cuDNN takes a relative bias only with a mask that all rows share: it gives no gradient to any other.
    if platform == "gpu" and has_bias:
        return "cuDNN cannot learn model.position=relative over packed rows; accepted there: auto, plain"
    if platform == "gpu" and dtype != "bfloat16":
        return f"train.dtype is {dtype}; accepted on a GPU: bfloat16"
    multiple, widest = (16, 256) if platform == "tpu" else (8, 128)
    if head_dim % multiple or head_dim > widest:
        return f"heads are {head_dim} wide; accepted on a {platform}: multiples of {multiple} up to {widest}"
    for length, step in zip(lengths, (2 * sharding.ways("L"), 2), strict=True):
        if platform == "gpu" and length % step:
            return f"rows are {length} long, no multiple of {step}; nearest: {sharding.nearest(length, step)}"
    return ""


def gpu(
    query_BLHK: jax.Array,
    key_BSHK: jax.Array,
    value_BSHK: jax.Array,
    *,
    segments_BL: jax.Array,
    memory_segments_BS: jax.Array,
    causal: bool = False,
    window: jax.Array | int | None = None,
    dropout: None = None,
    implementation: Any = "cudnn",
) -> jax.Array:
    """cuDNN's kernel behind one mask for segments, causality and window; arguments as in `attend`.

    Args:
        implementation: `xla` computes the same on any platform.
    """
    del dropout

    def attend(query_BLHK, key_BSHK, value_BSHK, segments_BL, memory_segments_BS, window):
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
    return sharding.map_shards(attend, dims, "BLHK")(*operands, jnp.int32(furthest if window is None else window))


def tpu(
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
    """Our kernels; arguments as in `attend`, but for the bias, and a query that sees nothing gives zeros.

    Rows are padded to whole blocks.

    Args:
        curve_HN: float32 [H, S + L], the bias of every distance, query column minus key column, from -S on.
        interpret: computes the same on any platform.
    """
    del dropout
    biased, windowed = curve_HN is not None, window is not None

    def attend(query_BHKL, key_BHKS, value_BHKS, curve_HN, segments_BL, memory_segments_BS, window) -> Any:
        length = query_BHKL.shape[3]
        more, more_keys = -length % kernels.LANES, -key_BHKS.shape[3] % kernels.LANES
        keys = key_BHKS.shape[3] + more_keys
        block = next(size for size in BLOCKS if (length + more) % size == keys % size == 0)
        tiling = kernels.Tiling(block, keys, causal, windowed, biased, interpret)
        place = jnp.stack([jnp.int32(sharding.shard_start("L", length)), window])
        mixed_BHKL: Any = kernels.attend(
            tiling,
            _padded(query_BHKL, 0, more),
            _padded(key_BHKS, 0, more_keys),
            _padded(value_BHKS, 0, more_keys),
            _padded(curve_HN, more_keys, more) if biased else curve_HN,
            _padded(segments_BL, 0, more),
            _padded(memory_segments_BS, 0, more_keys),
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
    return sharding.map_shards(attend, dims, "BHKL")(*operands).transpose(0, 3, 1, 2)


def _padded(array: jax.Array, before: int, after: int) -> jax.Array:
    """Zeros at both ends of the last axis."""
    return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(before, after)])
