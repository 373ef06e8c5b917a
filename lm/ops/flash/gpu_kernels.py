"""Flash attention (Dao et al., 2022) as GPU kernels in Triton: softmax(Q K^T) V block by block, no L x S array in memory.

cuDNN's kernel has neither a relative bias with its gradient, nor the dropout of the plain path, and it reads masked
blocks. These kernels do what those of `lm.ops.flash.tpu_kernels` do, and drop out attention weights. Blocks that
segments, window or causality mask completely are neither loaded nor computed.

The relative bias is given as a curve over distances, a few kilobytes a head, from which each block gathers. Blocks on
one diagonal have the same distances. So the gradient of the curve is a sum of blocks over rows and diagonals, in a fixed
order; then each summed block is added up along its own diagonals.

Array names carry their shape: B batch, L queries, S keys, H heads, K head dim, N distances, R and C the queries and keys
of a block, G groups of rows, D diagonals of blocks. L and S are whole blocks, K is a power of two.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from lm.ops.dropout import keep_places
from lm.ops.flash.blocks import HIDDEN, LEAST, NN, NT, bounds, padded, product, seen

Index = jax.Array | int
# The curve's gradient is computed by about so many programs: a few for each of a GPU's 100 to 150 processors.
_PROGRAMS = 1024


@dataclasses.dataclass(frozen=True)
class Launch:
    """How one kernel is launched: queries and keys of a block, warps of a program, stages of its pipeline."""

    queries: int
    keys: int
    warps: int = 4
    stages: int = 2


@dataclasses.dataclass(frozen=True)
class Tiling:
    """The static arguments of the kernels.

    Attributes:
        forward, of_query, of_key, of_curve: the launches of the forward pass and of the three gradients. The last has
            square blocks.
        keys: S.
        causal, windowed, biased: whether causality, a window and a relative bias apply, besides segments.
        rate: the rate of dropout of the attention weights.
        whole: H, L and S of the arrays over all devices, before padding. The hash of dropout counts by them.
        interpret: whether the kernels are interpreted, on any platform.
    """

    forward: Launch
    of_query: Launch
    of_key: Launch
    of_curve: Launch
    keys: int
    causal: bool = False
    windowed: bool = False
    biased: bool = False
    rate: float = 0.0
    whole: tuple[int, int, int] = (0, 0, 0)
    interpret: bool = False


def _attend(
    tiling: Tiling,
    query_BLHK: jax.Array,
    key_BSHK: jax.Array,
    value_BSHK: jax.Array,
    curve_HN: jax.Array,
    segments_BL: jax.Array,
    memory_segments_BS: jax.Array,
    place: jax.Array,
) -> jax.Array:
    """Computes attention on one device, and zeros for a query whose keys are all masked.

    Args:
        query_BLHK: queries, already scaled.
        curve_HN: float32, the bias of each distance from -S on, query column minus key column. It is unused where
            `tiling` is not biased.
        place: int32 [6]: the column of the first query, the window, the numbers of the first row and head over all
            devices, and the two words of the key of dropout.

    Returns:
        [B, L, H, K] in the queries' dtype.
    """
    operands = (query_BLHK, key_BSHK, value_BSHK, curve_HN, segments_BL, memory_segments_BS, place)
    return _forward(tiling, *operands)[0]


def _forward(tiling: Tiling, *operands: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    query_BLHK = operands[0]
    B, L, H, _ = query_BLHK.shape
    launch = tiling.forward
    blocks = _Blocks(operands, launch.queries, launch.keys)
    out_BLHK, log_sum_BHL = _call(
        _forward_kernel,
        tiling,
        launch,
        (L // launch.queries, H, B),
        [*blocks.constants, blocks.queries, blocks.all_keys, blocks.all_keys, blocks.curve, blocks.segments, blocks.all_memory],
        [blocks.queries, blocks.statistics],
        [
            jax.ShapeDtypeStruct(query_BLHK.shape, query_BLHK.dtype),
            jax.ShapeDtypeStruct((B, H, L), jnp.float32),
        ],
    )(*_bounded(tiling, launch, operands), *operands[:6])
    return out_BLHK, (*operands, out_BLHK, log_sum_BHL)


def _backward(
    tiling: Tiling, residuals: tuple[jax.Array, ...], gradient_BLHK: jax.Array
) -> tuple[jax.Array | None, ...]:
    *operands, out_BLHK, log_sum_BHL = residuals
    mean_BLH = (out_BLHK.astype(jnp.float32) * gradient_BLHK.astype(jnp.float32)).sum(axis=3)
    of_output = (gradient_BLHK, log_sum_BHL, mean_BLH.swapaxes(1, 2))
    of_query_BLHK = _of_query(tiling, tuple(operands), of_output)
    of_key_BSHK, of_value_BSHK = _of_key(tiling, tuple(operands), of_output)
    of_curve_HN = _of_curve(tiling, tuple(operands), of_output) if tiling.biased else jnp.zeros_like(operands[3])
    return of_query_BLHK, of_key_BSHK, of_value_BSHK, of_curve_HN, None, None, None


attend = jax.custom_vjp(_attend, nondiff_argnums=(0,))
attend.defvjp(_forward, _backward)


def _of_query(tiling: Tiling, operands: tuple[jax.Array, ...], of_output: tuple[jax.Array, ...]) -> jax.Array:
    query_BLHK, launch = operands[0], tiling.of_query
    B, L, H, _ = query_BLHK.shape
    blocks = _Blocks(operands, launch.queries, launch.keys)
    inputs = [blocks.queries, blocks.all_keys, blocks.all_keys, blocks.curve, blocks.segments, blocks.all_memory]
    return _call(
        _query_kernel,
        tiling,
        launch,
        (L // launch.queries, H, B),
        [*blocks.constants, *inputs, blocks.queries, blocks.statistics, blocks.statistics],
        blocks.queries,
        jax.ShapeDtypeStruct(query_BLHK.shape, query_BLHK.dtype),
    )(*_bounded(tiling, launch, operands), *operands[:6], *of_output)


def _of_key(
    tiling: Tiling, operands: tuple[jax.Array, ...], of_output: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    key_BSHK, launch = operands[1], tiling.of_key
    B, S, H, _ = key_BSHK.shape
    blocks = _Blocks(operands, launch.queries, launch.keys)
    inputs = [blocks.all_queries, blocks.keys, blocks.keys, blocks.curve, blocks.all_segments, blocks.memory]
    return _call(
        _key_kernel,
        tiling,
        launch,
        (S // launch.keys, H, B),
        [*blocks.constants, *inputs, blocks.all_queries, blocks.all_statistics, blocks.all_statistics],
        [blocks.keys, blocks.keys],
        [jax.ShapeDtypeStruct(key_BSHK.shape, array.dtype) for array in operands[1:3]],
    )(*_bounded(tiling, launch, operands, by_keys=True), *operands[:6], *of_output)


def _of_curve(tiling: Tiling, operands: tuple[jax.Array, ...], of_output: tuple[jax.Array, ...]) -> jax.Array:
    """Returns the gradient of the curve, [H, N]."""
    query_BLHK, key_BSHK, _, curve_HN, _, _, place = operands
    B, L, H, _ = query_BLHK.shape
    launch = tiling.of_curve
    block = launch.queries
    diagonals = L // block + key_BSHK.shape[1] // block - 1
    groups = min(B, -(-_PROGRAMS // (diagonals * H)))
    blocks = _Blocks(operands, block, block)
    sums_GHDRC = _call(
        functools.partial(_curve_kernel, rows=-(-B // groups)),
        tiling,
        launch,
        (diagonals, H, groups),
        [blocks.place, *blocks.whole, *blocks.whole_of_output],
        pl.BlockSpec((None, None, None, block, block), lambda diagonal, h, group: (group, h, diagonal, 0, 0)),
        jax.ShapeDtypeStruct((groups, H, diagonals, block, block), jnp.float32),
    )(*_bounded(tiling, launch, operands), *operands[:6], *of_output)
    sums_HN = along_diagonals(sums_GHDRC.sum(axis=0))
    return jax.lax.dynamic_update_slice(jnp.zeros_like(curve_HN), sums_HN, (0, place[0]))


def along_diagonals(blocks_HDRR: jax.Array) -> jax.Array:
    """Returns the sums of square blocks along their diagonals, by distance: [H, (D + 1) * R].

    Entry (r, c) of diagonal d is at distance (d + 1) * R + r - c.
    """
    H, D, R, _ = blocks_HDRR.shape
    # With one more column a row than it has places, the flat array's rows shift by one against each other.
    sheared = jnp.pad(blocks_HDRR[..., ::-1], ((0, 0), (0, 0), (0, 0), (1, R))).reshape(H, D, -1)
    sums_HDN = sheared[:, :, : 2 * R * R].reshape(H, D, R, 2 * R).sum(axis=2)
    near, far = padded(sums_HDN[..., :R], 0, 1, axis=1), padded(sums_HDN[..., R:], 1, 0, axis=1)
    return (near + far).reshape(H, -1)


def _call(kernel: Callable[..., None], tiling: Tiling, launch: Launch, grid: tuple[int, int, int], *specs):
    """Returns the call of a kernel. `specs` are those of the inputs and of the outputs, and the shapes of the outputs."""
    in_specs, out_specs, out_shape = specs
    return pl.pallas_call(
        functools.partial(kernel, tiling),
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        compiler_params=triton.CompilerParams(num_warps=launch.warps, num_stages=launch.stages),
        interpret=tiling.interpret,
        name="flash" + getattr(kernel, "func", kernel).__name__.removesuffix("_kernel"),
    )


def _bounded(tiling: Tiling, launch: Launch, operands: tuple[jax.Array, ...], *, by_keys: bool = False):
    """Returns the place, and the bounds of the unmasked blocks: int32 [B, blocks of queries, 2], or of keys."""
    *_, segments_BL, memory_segments_BS, place = operands
    shape, window = (launch.queries, launch.keys), place[1] if tiling.windowed else None
    seen_BRC = seen(segments_BL, memory_segments_BS, shape, start=place[0], causal=tiling.causal, window=window)
    seen_BRC = seen_BRC.swapaxes(1, 2) if by_keys else seen_BRC
    return place, bounds(seen_BRC).reshape(*seen_BRC.shape[:2], 2)


class _Blocks:
    """The blocks that a program (block, head, row) reads or writes. `all_` names whole rows of the batch."""

    def __init__(self, operands: tuple[jax.Array, ...], queries: int, keys: int):
        (B, L, _, K), S, N = operands[0].shape, operands[1].shape[1], operands[3].shape[1]
        heads = lambda size: pl.BlockSpec((None, size, None, K), lambda i, h, b: (b, i, h, 0))  # noqa: E731
        all_heads = lambda size: pl.BlockSpec((None, size, None, K), lambda i, h, b: (b, 0, h, 0))  # noqa: E731
        self.queries, self.all_queries = heads(queries), all_heads(L)
        self.keys, self.all_keys = heads(keys), all_heads(S)
        self.statistics = pl.BlockSpec((None, None, queries), lambda i, h, b: (b, h, i))
        self.all_statistics = pl.BlockSpec((None, None, L), lambda i, h, b: (b, h, 0))
        self.segments, self.all_segments = _row_spec(queries), _row_spec(L, whole=True)
        self.memory, self.all_memory = _row_spec(keys), _row_spec(S, whole=True)
        self.curve = pl.BlockSpec((None, N), lambda i, h, b: (h, 0))
        self.place = pl.BlockSpec((6,), lambda i, h, b: (0,))
        self.constants = [self.place, pl.BlockSpec((None, None, 2), lambda i, h, b: (b, i, 0))]
        # All rows of the batch, for one head.
        whole_heads = lambda size: pl.BlockSpec((B, size, None, K), lambda i, h, g: (0, 0, h, 0))  # noqa: E731
        whole_rows = lambda *shape: pl.BlockSpec((B, *shape), lambda i, h, g: (0,) * (1 + len(shape)))  # noqa: E731
        statistics = pl.BlockSpec((B, None, L), lambda i, h, g: (0, h, 0))
        self.whole = [whole_rows(L // queries, 2), whole_heads(L), whole_heads(S), whole_heads(S), self.curve]
        self.whole += [whole_rows(L), whole_rows(S)]
        self.whole_of_output = [whole_heads(L), statistics, statistics]


def _row_spec(size: int, *, whole: bool = False) -> pl.BlockSpec:
    return pl.BlockSpec((None, size), (lambda i, h, b: (b, 0)) if whole else (lambda i, h, b: (b, i)))


def _forward_kernel(tiling: Tiling, place, bounds, query, key, value, curve, segments, memory_segments, out, log_sum):
    queries, keys = tiling.forward.queries, tiling.forward.keys
    query_RK, segments_R = query[...], segments[...]
    i, scores = pl.program_id(0), _Scores(tiling, place, curve, pl.program_id(1), pl.program_id(2))

    def step(j, carry):
        top_R, total_R, mixed_RK = carry
        at = pl.ds(j * keys, keys)
        pairs = scores.pairs(i * queries, queries, j * keys, keys)
        scores_RC = scores(product(query_RK, key[at, :], NT), pairs, segments_R[:, None], memory_segments[at][None, :])
        before_R, top_R = top_R, jnp.maximum(top_R, scores_RC.max(axis=1))
        weights_RC = jnp.exp(scores_RC - top_R[:, None])
        fading_R = jnp.exp(before_R - top_R)
        total_R = total_R * fading_R + weights_RC.sum(axis=1)
        kept_RC = scores.dropped(weights_RC, pairs).astype(value.dtype)
        return top_R, total_R, mixed_RK * fading_R[:, None] + product(kept_RC, value[at, :], NN)

    start = jnp.full((queries,), LEAST, jnp.float32), jnp.zeros((queries,), jnp.float32)
    top_R, total_R, mixed_RK = _unmasked(bounds, step, (*start, jnp.zeros(query_RK.shape, jnp.float32)))
    sum_R = jnp.where(total_R == 0, 1.0, total_R)
    out[...] = (mixed_RK / sum_R[:, None]).astype(out.dtype)
    log_sum[...] = top_R + jnp.log(sum_R)


def _query_kernel(
    tiling: Tiling, place, bounds, query, key, value, curve, segments, memory_segments, gradient, log_sum, mean, of_query
):
    queries, keys = tiling.of_query.queries, tiling.of_query.keys
    query_RK, gradient_RK, segments_R = query[...], gradient[...], segments[...]
    log_sum_R, mean_R = log_sum[...], mean[...]
    i, scores = pl.program_id(0), _Scores(tiling, place, curve, pl.program_id(1), pl.program_id(2))

    def step(j, of_query_RK):
        at = pl.ds(j * keys, keys)
        key_CK = key[at, :]
        pairs = scores.pairs(i * queries, queries, j * keys, keys)
        scores_RC = scores(product(query_RK, key_CK, NT), pairs, segments_R[:, None], memory_segments[at][None, :])
        weights_RC = jnp.exp(scores_RC - log_sum_R[:, None])
        of_weights_RC = scores.dropped(product(gradient_RK, value[at, :], NT), pairs)
        of_scores_RC = weights_RC * (of_weights_RC - mean_R[:, None])
        return of_query_RK + product(of_scores_RC.astype(key.dtype), key_CK, NN)

    of_query[...] = _unmasked(bounds, step, jnp.zeros(query_RK.shape, jnp.float32)).astype(of_query.dtype)


def _key_kernel(
    tiling: Tiling, place, bounds, query, key, value, curve, segments, memory_segments, gradient, log_sum, mean, *out
):
    """Computes the gradients of keys and values. Its blocks are transposed, [C, R], as both products take them."""
    queries, keys = tiling.of_key.queries, tiling.of_key.keys
    key_CK, value_CK, memory_segments_C = key[...], value[...], memory_segments[...]
    j, scores = pl.program_id(0), _Scores(tiling, place, curve, pl.program_id(1), pl.program_id(2))

    def step(i, carry):
        of_key_CK, of_value_CK = carry
        at = pl.ds(i * queries, queries)
        query_RK, gradient_RK = query[at, :], gradient[at, :]
        pairs = scores.pairs(i * queries, queries, j * keys, keys, transposed=True)
        same = memory_segments_C[:, None], segments[at][None, :]
        weights_CR = jnp.exp(scores(product(key_CK, query_RK, NT), pairs, *same) - log_sum[at][None, :])
        of_value_CK += product(scores.dropped(weights_CR, pairs).astype(gradient.dtype), gradient_RK, NN)
        of_weights_CR = scores.dropped(product(value_CK, gradient_RK, NT), pairs)
        of_scores_CR = weights_CR * (of_weights_CR - mean[at][None, :])
        return of_key_CK + product(of_scores_CR.astype(query.dtype), query_RK, NN), of_value_CK

    zeros = jnp.zeros(key_CK.shape, jnp.float32)
    for ref, sums in zip(out, _unmasked(bounds, step, (zeros, zeros)), strict=True):
        ref[...] = sums.astype(ref.dtype)


def _curve_kernel(
    tiling: Tiling, place, bounds, query, key, value, curve, segments, memory_segments, gradient, log_sum, mean, out, *, rows
):
    """Computes the sum of the scores' gradients over a group of rows and over one diagonal of blocks."""
    block = tiling.of_curve.queries
    num_rows, num_queries, num_keys = bounds.shape[0], bounds.shape[1], key.shape[1] // block
    diagonal, head = pl.program_id(0) - (num_keys - 1), pl.program_id(1)
    first = pl.program_id(2) * rows

    def row_step(b, sums_RC):
        scores = _Scores(tiling, place, curve, head, b)

        def add(i, sums_RC):
            j = i - diagonal
            at, at_keys = pl.ds(i * block, block), pl.ds(j * block, block)
            pairs = scores.pairs(i * block, block, j * block, block)
            same = segments[b, at][:, None], memory_segments[b, at_keys][None, :]
            scores_RC = scores(product(query[b, at, :], key[b, at_keys, :], NT), pairs, *same)
            weights_RC = jnp.exp(scores_RC - log_sum[b, at][:, None])
            of_weights_RC = scores.dropped(product(gradient[b, at, :], value[b, at_keys, :], NT), pairs)
            return sums_RC + weights_RC * (of_weights_RC - mean[b, at][:, None])

        def step(i, sums_RC):
            sees = (bounds[b, i, 0] <= i - diagonal) & (i - diagonal <= bounds[b, i, 1])
            return jax.lax.fori_loop(0, sees.astype(jnp.int32), lambda _, sums_RC: add(i, sums_RC), sums_RC)

        stop = jnp.minimum(num_queries, num_keys + diagonal)
        return jax.lax.fori_loop(jnp.maximum(diagonal, 0), stop, step, sums_RC)

    zeros = jnp.zeros((block, block), jnp.float32)
    out[...] = jax.lax.fori_loop(first, jnp.minimum(first + rows, num_rows), row_step, zeros)


def _unmasked(bounds, step, carry):
    """Returns the carry after a loop over the unmasked blocks."""
    return jax.lax.fori_loop(bounds[0], bounds[1] + 1, step, carry)


class _Scores:
    """Bias, mask and dropout of the blocks of one head and row."""

    def __init__(self, tiling: Tiling, place, curve, head: Index, row: Index):
        self._tiling, self._place, self._curve = tiling, place, curve
        self._head, self._row = head, row

    def pairs(self, query: Index, queries: int, key: Index, keys: int, *, transposed: bool = False):
        """Returns the columns of a block's queries, [R, 1], and of its keys, [1, C]; transposed [1, R] and [C, 1]."""
        query_R, key_C = query + jnp.arange(queries, dtype=jnp.int32), key + jnp.arange(keys, dtype=jnp.int32)
        query_R = self._place[0] + query_R
        return (query_R[None, :], key_C[:, None]) if transposed else (query_R[:, None], key_C[None, :])

    def __call__(self, scores: jax.Array, pairs, one_segments: jax.Array, other_segments: jax.Array) -> jax.Array:
        """Returns the scores plus the bias, HIDDEN where they are masked."""
        tiling = self._tiling
        distance = pairs[0] - pairs[1]
        if tiling.biased:
            scores += self._curve[distance + tiling.keys]
        visible = one_segments == other_segments
        if tiling.causal:
            visible &= distance >= 0
        if tiling.windowed:
            visible &= jnp.abs(distance) <= self._place[1]
        return jnp.where(visible, scores, HIDDEN)

    def dropped(self, weights: jax.Array, pairs) -> jax.Array:
        """Returns weights, or their gradient, after dropout: `lm.ops.dropout.keep_mask` of the whole [B, H, L, S]."""
        rate, (heads, length, keys) = self._tiling.rate, self._tiling.whole
        if rate == 0:
            return weights
        word = lambda value: jnp.asarray(value).astype(jnp.uint32)  # noqa: E731
        row, head = word(self._place[2] + self._row), word(self._place[3] + self._head)
        start = (row * jnp.uint32(heads) + head) * jnp.uint32(length)
        places = (start + word(pairs[0])) * jnp.uint32(keys) + word(pairs[1])
        keep = keep_places(rate, places, word(self._place[4]), word(self._place[5]))
        return jnp.where(keep, weights / (1 - rate), 0.0)
