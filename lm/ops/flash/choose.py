"""Chooses the flash attention of a platform: the kernels for TPUs, those for GPUs, or none."""

import dataclasses
from collections.abc import Callable

import jax

from lm import sharding
from lm.config import nearest
from lm.errors import InputError
from lm.ops.flash import gpu, tpu

Flash = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What an attention needs.

    Attributes:
        length, keys: the numbers of queries and of keys, over all devices.
        head_dim: K.
        dtype: the dtype of queries and keys.
        has_bias: whether a relative bias is added.
        has_window: whether a window masks keys.
        drops_weights: whether attention weights are dropped out.
    """

    length: int
    keys: int
    head_dim: int
    dtype: str
    has_bias: bool = False
    has_window: bool = False
    drops_weights: bool = False


def choose(setting: str, asked: Asked) -> Flash | None:
    """Returns the flash attention of the platform that is compiled for; None where plain attention is used.

    Args:
        setting: `auto`, `plain` or `flash`; see `TrainConfig`.
        asked: what the attention needs.

    Raises:
        InputError: the setting is `flash`, but the platform has no flash attention that does what is asked.
    """
    if setting == "plain":
        return None
    platform = sharding.platform()
    refusal = _refusal(platform, asked)
    if not refusal:
        return tpu.attend if platform == "tpu" else gpu.attend
    if setting == "flash":
        raise InputError(f"train.attention is 'flash', but {refusal}; or set train.attention=auto.")
    return None


def _refusal(platform: str, asked: Asked) -> str:
    """Returns why a platform has no flash attention for what is asked, and what it accepts; empty if it has one."""
    if platform not in ("gpu", "tpu"):
        return f"a {platform} has no flash attention; accepted there: auto, plain"
    if platform == "tpu" and asked.drops_weights:
        return "our kernels for TPUs cannot drop attention weights; accepted there: model.attention_dropout=0"
    if platform == "gpu" and asked.dtype != "bfloat16":
        return f"train.dtype is {asked.dtype}; accepted on a GPU: bfloat16"
    multiple, widest = (16, 256) if platform == "tpu" else (1, 128)
    if asked.head_dim % multiple or asked.head_dim > widest:
        return f"heads are {asked.head_dim} wide; accepted on a {platform}: multiples of {multiple} up to {widest}"
    if asked.length % (ways := sharding.ways("L")):
        return f"rows are {asked.length} long, no multiple of {ways}; nearest: {nearest(asked.length, ways)}"
    return ""
