"""Layer norm (Ba et al., 2016) and RMS norm (Zhang and Sennrich, 2019) over the last axis, D.

Mean and variance are float32 for every dtype of the array.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.ops import norm_gpu


def normalize_plain(
    centred: bool, eps: float, array: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None
) -> jax.Array:
    """Returns (x - mean) / sqrt(var + eps) * scale + bias. RMS norm is not `centred`: it takes the mean as 0."""
    wide = array.astype(jnp.float32)
    wide = wide - wide.mean(axis=-1, keepdims=True) if centred else wide
    variance = jnp.square(wide).mean(axis=-1, keepdims=True)
    out = wide / jnp.sqrt(variance + eps) * _broadcast(scale_D, wide.ndim)
    return (out if bias_D is None else out + _broadcast(bias_D, wide.ndim)).astype(array.dtype)


class _Kept(NamedTuple):
    """The residuals of the gradient: the operands, and mean and 1 / sqrt(var + eps) of each token.

    Recomputing these two would read the array once more.
    """

    array: jax.Array
    scale_D: jax.Array
    bias_D: jax.Array | None
    mean: jax.Array | None
    inverse: jax.Array


def normalize(centred: bool, eps: float, array: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None) -> jax.Array:
    """Computes `normalize_plain`. It reads the array once for its statistics and once for its gradient."""
    chosen = norm_gpu.normalize if norm_gpu.takes(array) else _normalize
    return chosen(centred, eps, array, scale_D, bias_D)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _normalize(centred: bool, eps: float, array: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None) -> jax.Array:
    return _forward(centred, eps, array, scale_D, bias_D)[0]


def _forward(
    centred: bool, eps: float, array: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None
) -> tuple[jax.Array, _Kept]:
    wide = array.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True) if centred else None
    square = jnp.square(wide).mean(axis=-1, keepdims=True)
    if mean is not None:
        wide = wide - mean
        # The mean of squares minus the square of the mean needs one pass. It is exact enough for bfloat16 arrays.
        in_one_pass = array.dtype != jnp.float32
        square = jnp.maximum(square - mean**2, 0.0) if in_one_pass else jnp.square(wide).mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(square + eps)
    out = wide * inverse * _broadcast(scale_D, wide.ndim)
    if bias_D is not None:
        out = out + _broadcast(bias_D, wide.ndim)
    return out.astype(array.dtype), _Kept(array, scale_D, bias_D, mean, inverse)


def _backward(centred: bool, eps: float, kept: _Kept, gradient: jax.Array) -> tuple[jax.Array | None, ...]:
    del centred, eps
    wide, gradient = kept.array.astype(jnp.float32), gradient.astype(jnp.float32)
    normal = (wide if kept.mean is None else wide - kept.mean) * kept.inverse
    leading = tuple(range(wide.ndim - 1))
    of_scale_D = (gradient * normal).sum(leading)
    of_bias_D = None if kept.bias_D is None else gradient.sum(leading)
    of_normal = gradient * _broadcast(kept.scale_D, wide.ndim)
    of_array = of_normal - normal * (of_normal * normal).mean(axis=-1, keepdims=True)
    if kept.mean is not None:
        of_array = of_array - of_normal.mean(axis=-1, keepdims=True)
    return (of_array * kept.inverse).astype(kept.array.dtype), of_scale_D, of_bias_D


_normalize.defvjp(_forward, _backward)


def _broadcast(vector_D: jax.Array, ndim: int) -> jax.Array:
    return vector_D.astype(jnp.float32).reshape((1,) * (ndim - 1) + vector_D.shape)
