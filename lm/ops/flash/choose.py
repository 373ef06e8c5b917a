"""Which flash attention a platform has: our kernels on a TPU, cuDNN's on a GPU."""

from collections.abc import Callable, Sequence

import jax

from lm import sharding
from lm.errors import InputError
from lm.ops.flash.gpu import attend as attend_gpu
from lm.ops.flash.tpu import attend as attend_tpu

Flash = Callable[..., jax.Array]


def choose(
    setting: str, *, lengths: Sequence[int], head_dim: int, dtype: str, has_bias: bool, needs_weights: bool
) -> Flash | None:
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
        return attend_tpu if platform == "tpu" else attend_gpu
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
