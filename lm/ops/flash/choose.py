"""Chooses the flash attention of a platform: our kernels on a TPU, cuDNN's kernel on a GPU."""

from collections.abc import Callable, Sequence

import jax

from lm import sharding
from lm.config import nearest
from lm.errors import InputError
from lm.ops.flash.gpu import attend as attend_gpu
from lm.ops.flash.tpu import attend as attend_tpu

Flash = Callable[..., jax.Array]


def choose(
    setting: str, *, lengths: Sequence[int], head_dim: int, dtype: str, has_bias: bool, needs_weights: bool
) -> Flash | None:
    """Returns the flash attention of the platform that is compiled for; None where plain attention is used.

    Args:
        setting: `auto`, `plain` or `flash`; see `TrainConfig`.
        lengths: the numbers of queries and of keys, over all devices.
        head_dim: K.
        dtype: the dtype of queries and keys.
        has_bias: whether a relative bias is added.
        needs_weights: whether something acts on the attention weights, such as dropout. Flash attention never writes
            them, so plain attention is used, even with `flash`.

    Raises:
        InputError: the setting is `flash`, but the platform has no flash attention for these arguments.
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
    """Returns why a platform has no flash attention for these arguments, and what it accepts; empty if it has one."""
    if platform not in ("gpu", "tpu"):
        return f"a {platform} has no flash attention; accepted there: auto, plain"
    # cuDNN computes the gradient of a bias only where all rows share the mask. Packed rows do not.
    if platform == "gpu" and has_bias:
        return "cuDNN cannot learn model.position=relative over packed rows; accepted there: auto, plain"
    if platform == "gpu" and dtype != "bfloat16":
        return f"train.dtype is {dtype}; accepted on a GPU: bfloat16"
    multiple, widest = (16, 256) if platform == "tpu" else (8, 128)
    if head_dim % multiple or head_dim > widest:
        return f"heads are {head_dim} wide; accepted on a {platform}: multiples of {multiple} up to {widest}"
    for length, step in zip(lengths, (2 * sharding.ways("L"), 2), strict=True):
        if platform == "gpu" and length % step:
            return f"rows are {length} long, no multiple of {step}; nearest: {nearest(length, step)}"
    return ""
