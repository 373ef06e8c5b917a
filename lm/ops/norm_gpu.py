"""The norms of `lm.ops.norm` on a GPU: one kernel for the norm, one for its gradient. Each reads a row once.

XLA computes a layer norm of bfloat16 rows in two kernels and its gradient in three.

Array names carry their shape: N rows, D width, R rows of a block, P programs.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from lm import sharding

# Rows that a program holds at a time, and at most so many rows that it computes one after another for the gradient.
BLOCK, MOST = 4, 64


def takes(array: jax.Array) -> bool:
    """Returns whether the kernels take the array: bfloat16 [B, L, D] on a GPU, and a width of few powers of two."""
    if sharding.platform() != "gpu" or array.dtype != jnp.bfloat16 or array.ndim != 3 or len(_pieces(array)) > 3:
        return False
    shard = sharding.shard_shape("BL", array.shape[:2])
    return shard is not None and math.prod(shard) % BLOCK == 0


def normalize(
    centred: bool,
    eps: float,
    array_BLD: jax.Array,
    scale_D: jax.Array,
    bias_D: jax.Array | None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Computes `lm.ops.norm.normalize_plain` on each device's shards, for an array that `takes` admits."""

    def on_shard(array_BLD: jax.Array, *params: jax.Array) -> jax.Array:
        rows_ND = array_BLD.reshape(-1, array_BLD.shape[-1])
        return _normalize(centred, eps, interpret, rows_ND, *params).reshape(array_BLD.shape)

    params = (scale_D,) if bias_D is None else (scale_D, bias_D)
    return sharding.map_shards(on_shard, ("BLD", *["D"] * len(params)), "BLD")(array_BLD, *params)


def _compute(centred: bool, eps: float, interpret: bool, rows_ND: jax.Array, *params: jax.Array) -> jax.Array:
    return _forward(centred, eps, interpret, rows_ND, *params)[0]


def _forward(centred: bool, eps: float, interpret: bool, rows_ND: jax.Array, *params: jax.Array):
    N, D = rows_ND.shape
    rows, statistics = pl.BlockSpec((BLOCK, D), lambda i: (i, 0)), pl.BlockSpec((BLOCK,), lambda i: (i,))
    vector, of_N = pl.BlockSpec((D,), lambda i: (0,)), jax.ShapeDtypeStruct((N,), jnp.float32)
    out_ND, mean_N, inverse_N = _call(
        functools.partial(_norm, centred, eps),
        "norm",
        N // BLOCK,
        [rows, *[vector] * len(params)],
        [rows, statistics, statistics],
        [jax.ShapeDtypeStruct((N, D), rows_ND.dtype), of_N, of_N],
        interpret,
    )(rows_ND, *params)
    return out_ND, (rows_ND, mean_N, inverse_N, params)


def _backward(centred: bool, eps: float, interpret: bool, kept, gradient_ND: jax.Array) -> tuple[jax.Array, ...]:
    del eps
    rows_ND, mean_N, inverse_N, params = kept
    N, D = rows_ND.shape
    # The largest power of two that divides the rows.
    count = min(MOST, N & -N)
    rows, statistics = pl.BlockSpec((count, D), lambda i: (i, 0)), pl.BlockSpec((count,), lambda i: (i,))
    of_params = pl.BlockSpec((None, D), lambda i: (i, 0))
    of_rows_ND, *sums_PD = _call(
        functools.partial(_of_norm, centred),
        "of_norm",
        N // count,
        [rows, rows, statistics, statistics, pl.BlockSpec((D,), lambda i: (0,))],
        [rows, *[of_params] * len(params)],
        [
            jax.ShapeDtypeStruct((N, D), rows_ND.dtype),
            *[jax.ShapeDtypeStruct((N // count, D), jnp.float32)] * len(params),
        ],
        interpret,
    )(rows_ND, gradient_ND, mean_N, inverse_N, params[0])
    return of_rows_ND, *(sums.sum(axis=0) for sums in sums_PD)


_normalize = jax.custom_vjp(_compute, nondiff_argnums=(0, 1, 2))
_normalize.defvjp(_forward, _backward)


def _norm(centred: bool, eps: float, rows, *refs) -> None:
    """Computes rows; their means, 0 where the norm is not centred; and 1 / sqrt(var + eps)."""
    *params, out, mean, inverse = refs
    D, pieces = rows.shape[1], _pieces(rows)
    wide = [rows[:, piece].astype(jnp.float32) for piece in pieces]
    mean_R = sum(part.sum(axis=1) for part in wide) / D if centred else jnp.zeros(len(wide[0]), jnp.float32)
    wide = [part - mean_R[:, None] for part in wide]
    inverse_R = jax.lax.rsqrt(sum(jnp.square(part).sum(axis=1) for part in wide) / D + eps)
    for piece, part in zip(pieces, wide, strict=True):
        normed = part * inverse_R[:, None] * params[0][piece][None, :]
        out[:, piece] = (normed + params[1][piece][None, :] if len(params) > 1 else normed).astype(out.dtype)
    mean[...], inverse[...] = mean_R, inverse_R


def _of_norm(centred: bool, rows, gradient, mean, inverse, scale, of_rows, *of_params) -> None:
    """Computes the gradient of the rows, and the sums of those of scale and bias over the program's rows."""
    D, pieces = rows.shape[1], _pieces(rows)

    def step(i, sums):
        at = pl.ds(i * BLOCK, BLOCK)
        mean_R, inverse_R = mean[at][:, None], inverse[at][:, None]
        given = [gradient[at, piece].astype(jnp.float32) for piece in pieces]
        normal = [(rows[at, piece].astype(jnp.float32) - mean_R) * inverse_R for piece in pieces]
        of_normal = [part * scale[piece][None, :] for part, piece in zip(given, pieces, strict=True)]
        slope_R = sum((one * other).sum(axis=1) for one, other in zip(of_normal, normal, strict=True)) / D
        shift_R = sum(part.sum(axis=1) for part in of_normal) / D if centred else jnp.zeros_like(slope_R)
        for piece, one, other in zip(pieces, of_normal, normal, strict=True):
            of_row = (one - other * slope_R[:, None] - shift_R[:, None]) * inverse_R
            of_rows[at, piece] = of_row.astype(of_rows.dtype)
        found = [[one * other for one, other in zip(given, normal, strict=True)], given]
        return jax.tree.map(jnp.add, sums, found[: len(of_params)])

    zeros = [jnp.zeros((BLOCK, piece.stop - piece.start), jnp.float32) for piece in pieces]
    sums = jax.lax.fori_loop(0, rows.shape[0] // BLOCK, step, [zeros] * len(of_params))
    for of_param, parts in zip(of_params, sums, strict=True):
        for piece, part in zip(pieces, parts, strict=True):
            of_param[piece] = part.sum(axis=0)


def _pieces(rows) -> list[slice]:
    """Splits the width into powers of two, as Triton's arrays are: 768 is 512 and 256."""
    D, found = rows.shape[-1], []
    for size in (1 << bit for bit in reversed(range(D.bit_length()))):
        if D & size:
            start = found[-1].stop if found else 0
            found.append(slice(start, start + size))
    return found


def _call(kernel: Callable[..., None], name: str, programs: int, in_specs, out_specs, out_shape, interpret: bool):
    return pl.pallas_call(
        kernel,
        grid=(programs,),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        compiler_params=triton.CompilerParams(num_warps=8 if out_shape[0].shape[1] > 512 else 4, num_stages=2),
        interpret=interpret,
        name=name,
    )
