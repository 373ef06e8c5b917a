"""Flash attention (Dao et al., 2022) as TPU kernels: softmax(Q K^T) V block by block, no L x S array in memory.

We wrote our own because no library has all that packed encoders and T5 need: segments, windows that are traced values,
queries sharded over devices, and a relative bias with its gradient. Blocks that segments, window or causality mask
completely are neither loaded nor computed.

The relative bias is given as a curve over distances, a few kilobytes a head. Each block lays the curve out along its
diagonals by rotations. The backward pass sums the bias's gradient along the same diagonals.

Array names carry their shape: B batch, H heads, K head dim, L queries, S keys, N distances. A block of scores is
[S, L]: the softmax sums over its first axis, which is cheap on a TPU, and no array has a short last axis.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lm.ops.flash.blocks import HIDDEN, LEAST, NN, NT, TN, bounds, product, seen

LANES, SUBLANES = 128, 8
Index = jax.Array | int


@dataclasses.dataclass(frozen=True)
class Tiling:
    """The static arguments of the kernels.

    Attributes:
        block: the side of the square blocks, a multiple of 128 that divides L and S.
        keys: S.
        causal, windowed: whether causality and a window mask scores, besides segments.
        biased: whether a relative bias is added.
        interpret: whether the kernels are interpreted, on any platform.
    """

    block: int
    keys: int
    causal: bool = False
    windowed: bool = False
    biased: bool = False
    interpret: bool = False


def _attend(
    tiling: Tiling,
    query_BHKL: jax.Array,
    key_BHKS: jax.Array,
    value_BHKS: jax.Array,
    curve_HN: jax.Array,
    segments_BL: jax.Array,
    memory_segments_BS: jax.Array,
    place: jax.Array,
) -> jax.Array:
    """Computes attention on one device, and zeros for a query whose keys are all masked.

    Args:
        query_BHKL: queries, already scaled.
        curve_HN: float32, the bias of each distance from -S on, query column minus key column. It is unused where
            `tiling` is not biased.
        place: int32 [2]: the column of the first query, and the window.

    Returns:
        [B, H, K, L] in the queries' dtype.
    """
    operands = (query_BHKL, key_BHKS, value_BHKS, curve_HN, segments_BL, memory_segments_BS, place)
    return _forward(tiling, *operands)[0]


def _forward(tiling: Tiling, *operands: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    query_BHKL, _, _, _, segments_BL, memory_segments_BS, place = operands
    B, H, K, L = query_BHKL.shape
    blocks = _Blocks(tiling, operands)
    out_BHKL, log_sum_BH1L = pl.pallas_call(
        functools.partial(_forward_kernel, tiling),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(H, B, L // tiling.block, tiling.keys // tiling.block),
            in_specs=blocks.operands,
            out_specs=[blocks.queries, blocks.statistics],
            scratch_shapes=[pltpu.VMEM((rows, tiling.block), jnp.float32) for rows in (1, 1, K)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(query_BHKL.shape, query_BHKL.dtype),
            jax.ShapeDtypeStruct((B, H, 1, L), jnp.float32),
        ],
        compiler_params=_parallel(3),
        interpret=tiling.interpret,
        name="flash_forward",
    )(place, bounds(_seen(tiling, segments_BL, memory_segments_BS, place)), *_arranged(tiling, operands))
    return out_BHKL, (*operands, out_BHKL, log_sum_BH1L)


def _backward(
    tiling: Tiling, residuals: tuple[jax.Array, ...], gradient_BHKL: jax.Array
) -> tuple[jax.Array | None, ...]:
    *operands, out_BHKL, log_sum_BH1L = residuals
    query_BHKL, key_BHKS, value_BHKS, curve_HN, segments_BL, memory_segments_BS, place = operands
    B, H, K, L = query_BHKL.shape
    rows, columns = L // tiling.block, tiling.keys // tiling.block
    mean_BH1L = (out_BHKL.astype(jnp.float32) * gradient_BHKL.astype(jnp.float32)).sum(axis=2, keepdims=True)
    inputs = (*_arranged(tiling, operands), gradient_BHKL, log_sum_BH1L, mean_BH1L)
    seen_BLS = _seen(tiling, segments_BL, memory_segments_BS, place)
    partial_sum = pltpu.VMEM((K, tiling.block), jnp.float32)

    blocks = _Blocks(tiling, operands)
    together = rows == 1  # one kernel then computes the gradients of queries, keys and values from the same scores
    keys = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (key_BHKS, value_BHKS)]
    curve = [jax.ShapeDtypeStruct((H, 1, curve_HN.shape[1]), jnp.float32)] * tiling.biased
    of_query_BHKL, *rest = pl.pallas_call(
        functools.partial(_query_kernel, tiling, together),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(H, B, rows, columns),
            in_specs=[*blocks.operands, blocks.queries, blocks.statistics, blocks.statistics],
            out_specs=[blocks.queries, *[blocks.every_key] * 2 * together, *[blocks.curve] * tiling.biased],
            scratch_shapes=[partial_sum],
        ),
        out_shape=[jax.ShapeDtypeStruct(query_BHKL.shape, query_BHKL.dtype), *keys * together, *curve],
        compiler_params=_parallel(1 if tiling.biased else 3),  # the curve's gradient sums over every axis but heads
        interpret=tiling.interpret,
        name="flash_backward" if together else "flash_backward_queries",
    )(place, bounds(seen_BLS), *inputs)
    of_curve_HN = rest.pop()[:, 0] if tiling.biased else jnp.zeros_like(curve_HN)
    if together:
        return of_query_BHKL, *rest, of_curve_HN, None, None, None

    blocks = _Blocks(tiling, operands, by_keys=True)
    of_key_BHKS, of_value_BHKS = pl.pallas_call(
        functools.partial(_key_kernel, tiling),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(H, B, columns, rows),
            in_specs=[*blocks.operands, blocks.queries, blocks.statistics, blocks.statistics],
            out_specs=[blocks.keys, blocks.keys],
            scratch_shapes=[partial_sum, partial_sum],
        ),
        out_shape=keys,
        compiler_params=_parallel(3),
        interpret=tiling.interpret,
        name="flash_backward_keys",
    )(place, bounds(seen_BLS.swapaxes(1, 2)), *inputs)
    return of_query_BHKL, of_key_BHKS, of_value_BHKS, of_curve_HN, None, None, None


attend = jax.custom_vjp(_attend, nondiff_argnums=(0,))
attend.defvjp(_forward, _backward)


def _seen(tiling: Tiling, segments_BL: jax.Array, memory_segments_BS: jax.Array, place: jax.Array) -> jax.Array:
    window, shape = place[1] if tiling.windowed else None, (tiling.block, tiling.block)
    return seen(segments_BL, memory_segments_BS, shape, start=place[0], causal=tiling.causal, window=window)


def _arranged(tiling: Tiling, operands: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns the operands as the kernels take them: arrays [B, L] or [H, N] become [B, 1, L] or [H, 1, N]."""
    query_BHKL, key_BHKS, value_BHKS, curve_HN, segments_BL, memory_segments_BS, _ = operands
    rows = [segments_BL, memory_segments_BS, *[curve_HN] * tiling.biased]
    return [query_BHKL, key_BHKS, value_BHKS, *(array[:, None] for array in rows)]


def _parallel(axes: int) -> pltpu.CompilerParams:
    """Returns compiler parameters: the first `axes` of the grid's four axes may be computed in any order."""
    return pltpu.CompilerParams(dimension_semantics=("parallel",) * axes + ("arbitrary",) * (4 - axes))


class _Blocks:
    """The block of each array that a step of the grid (head, row, outer, inner) works on.

    The outer axis goes over blocks of queries and the inner axis over blocks of keys; with `by_keys` it is the reverse.
    A masked inner block is not loaded: the index of the nearest unmasked block is used, which is loaded already.
    `every_key` is for outputs, of which every block is written.
    """

    def __init__(self, tiling: Tiling, operands: Sequence[jax.Array], *, by_keys: bool = False):
        query_BHKL, curve_HN = operands[0], operands[3]
        _, _, K, L = query_BHKL.shape
        count = (tiling.keys if by_keys else L) // tiling.block

        def at(row: Index, outer: Index, inner: Index, bounds: jax.Array) -> tuple[Index, Index]:
            start = 2 * (row * count + outer)
            inner = jnp.maximum(jnp.minimum(inner, bounds[start + 1]), bounds[start])
            return (inner, outer) if by_keys else (outer, inner)

        def spec(shape: tuple[int | None, ...], index: Callable[..., tuple[Index, ...]]) -> pl.BlockSpec:
            def place(head: Index, row: Index, outer: Index, inner: Index, place: jax.Array, bounds: jax.Array):
                del place
                return index(head, row, *at(row, outer, inner, bounds))

            return pl.BlockSpec(shape, place)

        block = tiling.block
        self.queries = spec((None, None, K, block), lambda h, b, i, j: (b, h, 0, i))
        self.keys = spec((None, None, K, block), lambda h, b, i, j: (b, h, 0, j))
        self.every_key = pl.BlockSpec((None, None, K, block), lambda h, b, outer, inner, *_: (b, h, 0, inner))
        self.statistics = spec((None, None, 1, block), lambda h, b, i, j: (b, h, 0, i))
        self.curve = spec((None, 1, curve_HN.shape[1]), lambda h, b, i, j: (h, 0, 0))
        segments = spec((None, 1, block), lambda h, b, i, j: (b, 0, i))
        memory_segments = spec((None, 1, block), lambda h, b, i, j: (b, 0, j))
        self.operands = [self.queries, self.keys, self.keys, segments, memory_segments, *[self.curve] * tiling.biased]


def _steps(bounds: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns the outer block, the inner block, whether any of the pair is unmasked, and whether this step is the last.

    The last step is that of the last inner block.
    """
    outer, inner = pl.program_id(2), pl.program_id(3)
    start = 2 * (pl.program_id(1) * pl.num_programs(2) + outer)
    return outer, inner, (bounds[start] <= inner) & (inner <= bounds[start + 1]), inner == pl.num_programs(3) - 1


def _forward_kernel(tiling: Tiling, place, bounds, query, key, value, segments, memory_segments, *refs):
    *curve, out, log_sum, top, total, mixed = refs
    i, j, sees, is_last = _steps(bounds)

    @pl.when(j == 0)
    def _():
        top[...] = jnp.full_like(top, LEAST)
        total[...] = jnp.zeros_like(total)
        mixed[...] = jnp.zeros_like(mixed)

    @pl.when(sees)
    def _():
        scores_SL = _scores(tiling, place, i, j, query, key, segments, memory_segments, *curve)
        before_1L = top[...]
        top[...] = jnp.maximum(before_1L, scores_SL.max(axis=0, keepdims=True))
        weights_SL = jnp.exp(scores_SL - top[...])
        fading_1L = jnp.exp(before_1L - top[...])
        total[...] = total[...] * fading_1L + weights_SL.sum(axis=0, keepdims=True)
        mixed[...] = mixed[...] * fading_1L + product(value[...], weights_SL.astype(value.dtype), NN)

    @pl.when(is_last)
    def _():
        sum_1L = jnp.where(total[...] == 0, 1.0, total[...])
        out[...] = (mixed[...] / sum_1L).astype(out.dtype)
        log_sum[...] = top[...] + jnp.log(sum_1L)


def _query_kernel(tiling: Tiling, together, place, bounds, query, key, value, segments, memory_segments, *refs):
    """Computes the gradients of queries and curve; with `together` also those of keys and values."""
    curve, refs = refs[: tiling.biased], refs[tiling.biased :]
    gradient, log_sum, mean, of_query, *refs, partial = refs
    of_keys_values, of_curve = (refs[:2], refs[2:]) if together else ([], refs)
    i, j, sees, is_last = _steps(bounds)

    @pl.when(j == 0)
    def _():
        partial[...] = jnp.zeros_like(partial)

    if tiling.biased:

        @pl.when((pl.program_id(1) == 0) & (i == 0) & (j == 0))
        def _():
            of_curve[0][...] = jnp.zeros_like(of_curve[0])

    @pl.when(sees)
    def _():
        scores_SL = _scores(tiling, place, i, j, query, key, segments, memory_segments, *curve)
        weights_SL, of_scores_SL = _of_scores(scores_SL, value, gradient, log_sum, mean)
        partial[...] += product(key[...], of_scores_SL.astype(key.dtype), NN)
        for out, rows, weights in zip(of_keys_values, (query, gradient), (of_scores_SL, weights_SL), strict=False):
            out[...] = product(rows[...], weights.astype(rows.dtype), NT).astype(out.dtype)
        if tiling.biased:
            near, far = _distances(tiling, place, i, j)
            sums = along_diagonals(of_scores_SL)
            of_curve[0][:, near] += sums[:, tiling.block :]
            of_curve[0][:, far] += sums[:, : tiling.block]

    @pl.when(jnp.logical_not(sees))
    def _():
        for out in of_keys_values:
            out[...] = jnp.zeros_like(out)

    @pl.when(is_last)
    def _():
        of_query[...] = partial[...].astype(of_query.dtype)


def _key_kernel(tiling: Tiling, place, bounds, query, key, value, segments, memory_segments, *refs):
    *curve, gradient, log_sum, mean, of_key, of_value, partial_key, partial_value = refs
    j, i, sees, is_last = _steps(bounds)

    @pl.when(i == 0)
    def _():
        partial_key[...] = jnp.zeros_like(partial_key)
        partial_value[...] = jnp.zeros_like(partial_value)

    @pl.when(sees)
    def _():
        scores_SL = _scores(tiling, place, i, j, query, key, segments, memory_segments, *curve)
        weights_SL, of_scores_SL = _of_scores(scores_SL, value, gradient, log_sum, mean)
        partial_value[...] += product(gradient[...], weights_SL.astype(gradient.dtype), NT)
        partial_key[...] += product(query[...], of_scores_SL.astype(query.dtype), NT)

    @pl.when(is_last)
    def _():
        of_key[...] = partial_key[...].astype(of_key.dtype)
        of_value[...] = partial_value[...].astype(of_value.dtype)


def _scores(tiling: Tiling, place, i, j, query, key, segments, memory_segments, curve=None) -> jax.Array:
    """Returns the float32 scores of query block i and key block j, HIDDEN where they are masked."""
    scores_SL = product(key[...], query[...], TN)
    if tiling.biased:
        assert curve is not None
        near, far = _distances(tiling, place, i, j)
        scores_SL += on_diagonals(jnp.concatenate([curve[:, far], curve[:, near]], axis=1), tiling.block)
    # A vector unit cannot hold a single column. We transpose a whole tile whose columns are equal.
    across_SC = jnp.broadcast_to(memory_segments[...], (LANES, tiling.block)).T
    visible_SL = jnp.tile(across_SC, (1, tiling.block // LANES)) == segments[...]
    if tiling.causal or tiling.windowed:
        column = lambda axis: jax.lax.broadcasted_iota(jnp.int32, scores_SL.shape, axis)  # noqa: E731
        distance_SL = place[0] + (i - j) * tiling.block + column(1) - column(0)
        if tiling.causal:
            visible_SL &= distance_SL >= 0
        if tiling.windowed:
            visible_SL &= jnp.abs(distance_SL) <= place[1]
    return jnp.where(visible_SL, scores_SL, HIDDEN)


def _of_scores(scores_SL, value, gradient, log_sum, mean) -> tuple[jax.Array, jax.Array]:
    """Returns the attention weights P and the gradient of the scores: dS = P * (dP - sum of P dP), dP = V^T dO."""
    weights_SL = jnp.exp(scores_SL - log_sum[...])
    return weights_SL, weights_SL * (product(value[...], gradient[...], TN) - mean[...])


def _distances(tiling: Tiling, place, i, j) -> tuple[slice | pl.Slice, slice | pl.Slice]:
    """Returns two slices of a curve: the distances below that of the blocks' first columns, and those from it on."""
    own = tiling.keys + place[0] + (i - j) * tiling.block
    window = lambda start: pl.ds(pl.multiple_of(start, LANES), tiling.block)  # noqa: E731
    return window(own - tiling.block), window(own)


def on_diagonals(curve_1N: jax.Array, rows: int) -> jax.Array:
    """Returns [rows, N / 2]: row r is the first half of the curve, rotated right by r."""
    curves = jnp.broadcast_to(curve_1N, (SUBLANES, curve_1N.shape[1]))
    row = jax.lax.broadcasted_iota(jnp.int32, curves.shape, 0)
    for shift in (1, 2, 4):
        curves = jnp.where(row & shift != 0, pltpu.roll(curves, shift, 1), curves)
    while len(curves) < rows:
        curves = jnp.concatenate([curves, pltpu.roll(curves, len(curves), 1)])
    return curves[:, : curve_1N.shape[1] // 2]


def along_diagonals(block_SL: jax.Array) -> jax.Array:
    """Returns the gradient of `on_diagonals`, sums along the diagonals of a block: [1, N]."""
    width = 2 * block_SL.shape[1]
    sums = jnp.concatenate([block_SL, jnp.zeros_like(block_SL)], axis=1)
    while (half := len(sums) // 2) >= SUBLANES:
        sums = sums[:half] + pltpu.roll(sums[half:], width - half, 1)
    row = jax.lax.broadcasted_iota(jnp.int32, sums.shape, 0)
    for shift in (4, 2, 1):
        sums = jnp.where(row & shift != 0, pltpu.roll(sums, width - shift, 1), sums)
    return sums.sum(axis=0, keepdims=True)
